"""`python -m foldin.cluster PRIMARIES`: make the servers of the address that the environment has one cluster,
or make it whole again (see `forming`). Ends with code 2 and one line where a person must do something.
"""

import os
import sys
from dataclasses import replace

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from featurestore.settings import StoreSettings, split_address
from foldin.cluster.forming import form
from processes.errors import CannotStartError
from processes.settings import SettingsError, load


def servers_of(settings: StoreSettings) -> list[Redis]:
    """Return a client of each server that the address names."""
    if not settings.is_cluster:
        raise SettingsError("FOLDIN_REDIS_URL must name all servers of a cluster: redis+cluster://one,two,..")
    parts = split_address(settings.address())
    scheme = parts.scheme.removesuffix("+cluster")
    return [
        Redis.from_url(
            str(replace(parts, scheme=scheme, hosts=(host,))),
            socket_timeout=settings.timeout_s,
            socket_connect_timeout=settings.timeout_s,
            decode_responses=True,
            # What asks them asks again by itself.
            retry=Retry(NoBackoff(), 0),
        )
        for host in parts.hosts
    ]


def main() -> int:
    """Form it; return the exit code."""
    try:
        servers = servers_of(load(StoreSettings, (), os.environ))
        if away := form(servers, int(sys.argv[1])):
            sys.stdout.write(f"all slots of the cluster are served; {', '.join(away)}: no answer\n")
            return 0
    except (CannotStartError, TimeoutError, RedisError) as exc:
        why = " ".join(str(exc).split())
        line = why if isinstance(exc, CannotStartError) else f"the servers do not become a cluster: {why}"
        sys.stdout.write(f"{line}\n")
        return 2
    sys.stdout.write(f"the cluster of {len(servers)} servers is whole\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
