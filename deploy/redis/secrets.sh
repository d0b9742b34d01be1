#!/bin/sh
# Makes the passwords of the store at the first start, and the list of its users at each one. The store is user 999.
#
#   /acl       the list, which has hashes alone, and the administrator's password: mounted by the store, nothing else
#   /password  the password with which service and trainer log in: mounted by them
#
# Of a cluster one list is that of all servers; a fifth argument says so, and where the password goes of what forms it.
set -eu
acl=${1:-/acl} password=${2:-/password} data=${3:-/data} user=${4:-999} cluster=${5:-}
umask 077

# Else all that is stored would go to the one server. On Kubernetes the variable is not there.
case ${cluster:+of a cluster: ${FOLDIN_REDIS_URL-+cluster:}} in
  '' | *+cluster:*) ;;
  *)
    echo "the profile cluster is without its settings: put the lines of deploy/redis/cluster.env into .env, or --env-file deploy/redis/cluster.env" >&2
    exit 2
    ;;
esac

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
for folder in $data; do
  [ "$(stat -c %u "$folder")" = "$user" ] || chown "$user:$user" "$folder"
done

# Keys of the one namespace, what reads and writes them, the functions of this version. Of what administers a server
# only its version and role, and to have its file written anew, which ends an erasure. `health` may do nothing but PING.
#
# The user `default` is off. But it keeps its rights, because as this user a server reads its append-only file:
# without them it would leave out every transaction in there, as one warning each, and come up without that data.
ns=${FOLDIN_NAMESPACE:-foldin} where=''
[ -z "$cluster" ] || where=' +cluster|slots +cluster|info +cluster|nodes'
cat >"$acl/users.new" <<ACL
user default off resetpass ~* &* +@all
user health on nopass resetkeys resetchannels -@all +ping
user admin on #$(hash_of "$acl/admin") ~* &* +@all
user foldin on #$(hash_of "$password/redis") resetkeys resetchannels ~$ns:* ~$ns.* ~{$ns:* ~{$ns.* -@all +@read +@write +@connection +fcall +fcall_ro +function|load +function|list +time +waitaof +wait -function|flush -function|delete -function|restore -@dangerous -@admin +info +role +bgrewriteaof$where
ACL
if [ -n "$cluster" ]; then
  secret "$cluster/redis" 0444
  secret "$acl/replica" 0400
  # Not in the command line, which others on the machine see.
  printf 'masteruser replica\nmasterauth %s\n' "$(cat "$acl/replica")" >"$acl/replication.new"
  chmod 0440 "$acl/replication.new"
  chgrp "$user" "$acl/replication.new"
  mv "$acl/replication.new" "$acl/replication.conf"
  # `replica` is off until its server has data (node.sh). `cluster` forms it, and reads no key.
  cat >>"$acl/users.new" <<ACL
user replica off #$(hash_of "$acl/replica") resetkeys resetchannels -@all +psync +replconf +ping
user cluster on #$(hash_of "$cluster/redis") resetkeys resetchannels -@all +@connection +info +dbsize +cluster|nodes +cluster|info +cluster|meet +cluster|addslotsrange +cluster|set-config-epoch +cluster|failover +cluster|replicate +cluster|forget
ACL
fi
chmod 0444 "$acl/users.new"
mv "$acl/users.new" "$acl/users.acl"
