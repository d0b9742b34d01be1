#!/bin/sh
# Makes the passwords of the store at the first start, and the list of its users at each one. The store is user 999.
#
#   /acl       the list, which has hashes alone, and the administrator's password: mounted by the store, nothing else
#   /password  the password with which service and trainer log in: mounted by them
set -eu
acl=${1:-/acl} password=${2:-/password} data=${3:-/data} user=${4:-999}
umask 077

secret() { # a file with 256 random bits, made once, whole or not at all
  [ -s "$1" ] && return
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$1.new"
  chmod "$2" "$1.new"
  mv "$1.new" "$1"
}
hash_of() { sha256sum <"$1" | cut -d' ' -f1; }

secret "$password/redis" 0444
secret "$acl/admin" 0440
chgrp "$user" "$acl/admin"
[ "$(stat -c %u "$data")" = "$user" ] || chown "$user:$user" "$data"

# Keys of the one namespace, what reads and writes them, the functions of this version. Of what administers a server
# only its version and role, and to have its file written anew, which ends an erasure. `health` may do nothing but PING.
#
# The user `default` is off. But it keeps its rights, because as this user a server reads its append-only file:
# without them it would leave out every transaction in there, as one warning each, and come up without that data.
ns=${FOLDIN_NAMESPACE:-foldin}
cat >"$acl/users.new" <<ACL
user default off resetpass ~* &* +@all
user health on nopass resetkeys resetchannels -@all +ping
user admin on #$(hash_of "$acl/admin") ~* &* +@all
user foldin on #$(hash_of "$password/redis") resetkeys resetchannels ~$ns:* ~$ns.* ~{$ns:* ~{$ns.* -@all +@read +@write +@connection +fcall +fcall_ro +function|load +function|list +time +waitaof +wait -function|flush -function|delete -function|restore -@dangerous -@admin +info +role +bgrewriteaof
ACL
chmod 0444 "$acl/users.new"
mv "$acl/users.new" "$acl/users.acl"
