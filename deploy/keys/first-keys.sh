#!/bin/sh
# Makes the first keys of the API, once: the operator's, and that with which Prometheus scrapes. `play`: the player's.
set -eu

ensure() { python -P -m foldin keys ensure "$1" --role "$2" --file "$3"; }
if [ "${1:-}" = play ]; then
  ensure player operate /data/player-key/player.key
  exit
fi
ensure operator operate /data/keys/operator.key
ensure prometheus metrics /data/scrape-key/prometheus.key
# Prometheus is another user, and the only one besides this container that has this volume.
chmod 0444 /data/scrape-key/prometheus.key
echo 'Show the operator its key:  docker compose run --rm --no-deps --entrypoint cat keys /data/keys/operator.key'
