#!/bin/sh
# Starts the store, and starts it again by itself when its disk was full and there is room: an engine that restarts
# containers waits longer each time. However else the server ends, the container ends with its code.
set -eu
umask 0077
stopped='' server=''
# The server is not process 1, so that a stop of the container is this script's to pass on: twice, because what is just
# being started may take the first for its parent's.
trap 'stopped=1; { kill -TERM "$server" && sleep 1 && kill -TERM "$server"; } 2>/dev/null || :' TERM INT

full() { # whether 16 MB cannot be written, as `foldin up` asks; unlike free blocks this sees quotas
  said=$(LC_ALL=C dd if=/dev/zero of=/data/temp-room bs=1048576 count=16 2>&1) || :
  rm -f /data/temp-room
  case $said in *"No space left"* | *[qQ]"uota exceeded"*) ;; *) return 1 ;; esac
}

while :; do
  # A rewrite of its files that was killed leaves one with all that was stored, users who were forgotten since as well,
  # which no server removes.
  rm -f /data/temp-* /tmp/waits-for-room
  # Not the entrypoint of the image, which images have under different names; as another user than root it does no more.
  "$@" &
  server=$!
  [ -z "$stopped" ] || kill -TERM "$$" # that came before there was a server
  code=0
  wait "$server" || code=$?
  while [ -n "$stopped" ]; do # a signal ended the wait, not the server
    wait "$server" && code=0 || code=$?
    kill -0 "$server" 2>/dev/null || exit "$code"
  done
  server=''
  # With 1 a server ends that cannot write what it has promised to.
  { [ "$code" = 1 ] && full; } || exit "$code"
  echo "the disk of the store is full; it starts again when 16 MB can be written" >&2
  touch /tmp/waits-for-room || : # the probe of Kubernetes leaves it alone
  seconds=0
  while sleep 1; [ -z "$stopped" ] && full; do
    seconds=$((seconds + 1))
    [ "$seconds" -lt 3600 ] || exit "$code" # after an hour by a new container, which has what was changed of it
  done
  [ -z "$stopped" ] || exit 0
done
