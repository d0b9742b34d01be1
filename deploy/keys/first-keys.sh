#!/bin/sh
# Makes the first keys of the API, once: the operator's, and that with which Prometheus scrapes. `play`: the player's.
set -eu

ensure() { python -P -m foldin keys ensure "$1" --role "$2" --file "$3"; }
if [ "${1:-}" = play ]; then
  ensure player operate /data/player-key/player.key
  exit
fi
ensure operator operate /data/keys/operator.key
# In a step of its own: a list that fails ends this, and says of no key that it is not there.
known=$(python -P -m foldin keys list)
is_known() { printf '%s\n' "$known" | grep -Eq "^$1 +"; }
# Earlier releases made one that may operate for a player that may never play. Its file goes last, so that what fails here is done again.
if [ -e /data/keys/player.key ]; then
  if is_known player; then python -P -m foldin keys remove player; fi
  rm /data/keys/player.key
fi
# One of an earlier release reads all that is known of users: another takes its place.
if is_known 'prometheus +read'; then python -P -m foldin keys remove prometheus; fi
ensure prometheus metrics /data/scrape-key/prometheus.key
# Prometheus is another user, and the only one besides this container that has this volume.
chmod 0444 /data/scrape-key/prometheus.key
echo 'Show the operator its key:  docker compose run --rm --no-deps --entrypoint cat keys /data/keys/operator.key'
