#!/bin/sh
# Starts a server of a cluster, as start.sh does a store. REDIS_PEERS: the names of all its servers.
#
# Beside it, until this server knows all and has what it is to have: it is introduced to those that do not know where it
# is now, and lets replicas in as soon as it has slots, or all that its primary has. Before that the user `replica` is
# off: a server that begins anew under its old address must not be copied by the replica that has what it has lost.
# Nor may it take the place of its primary before: it would have nothing, and its primary come back to copy that.
set -eu
# Says that it may, as long as there is the data that it was written for; the server reads it at each start.
failover=/data/failover.conf
if [ ! -e /data/nodes.conf ] || [ ! -d /data/appendonlydir ] || ! grep -qsx 'cluster-replica-no-failover no' "$failover"; then
  echo 'cluster-replica-no-failover yes' >"$failover"
fi
cli() { sh /etc/foldin/cli.sh "$@" 2>/dev/null; }
has_data() { # whether it has slots or follows
  printf '%s\n' "$1" | grep -Eq '^[^ ]+ [^ ]+ myself,master[^ ]* .* connected [0-9]' \
    || cli INFO replication | grep -q '^master_link_status:up'
}
knows_all() { [ "$(printf '%s\n' "$1" | grep -v handshake | grep -c ' connected')" -ge "$(echo "$REDIS_PEERS" | wc -w)" ]; }
may_take_over() {
  cli CONFIG SET cluster-replica-no-failover no >/dev/null || return
  echo 'cluster-replica-no-failover no' >"$failover.new" && mv "$failover.new" "$failover"
}
join() {
  open=''
  while sleep 1; do
    nodes=$(cli CLUSTER NODES) || continue
    if [ -z "$open" ] && has_data "$nodes"; then
      cli ACL SETUSER replica on >/dev/null && may_take_over && open=1
    fi
    if ! knows_all "$nodes"; then
      for peer in $REDIS_PEERS; do
        address=$(getent hosts "$peer" | cut -d' ' -f1) && cli CLUSTER MEET "$address" 6379 >/dev/null || :
      done
      sleep 4
    elif [ -n "$open" ]; then
      return
    fi
  done
}
join &
# A server alone serves its slots, whatever becomes of the others. After all have been away, too, a replica may take over
# that was whole once: with FOLDIN_DURABILITY=replicated it has whatever was answered.
exec /bin/sh /etc/foldin/start.sh "$@" \
  --cluster-enabled yes --cluster-node-timeout 5000 --cluster-require-full-coverage no \
  --cluster-replica-validity-factor 0 --repl-diskless-sync-delay 0 --include /acl/replication.conf \
  --include "$failover"
