#!/bin/sh
# redis-cli as the administrator of the store:  docker compose exec redis sh /etc/foldin/cli.sh INFO memory
REDISCLI_AUTH=$(cat /acl/admin)
export REDISCLI_AUTH
exec redis-cli --user admin "$@"
