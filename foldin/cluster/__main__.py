"""`python -m foldin.cluster PRIMARIES`: make the servers of the address that the environment has one cluster,
or make it whole again (see `forming`). Ends with code 2 and one line where a person must do something.

Of an embedded cluster the folder follows, and it ends when each server may take its primary's place. None may
that never had all of its primary's data: it would serve nothing, and the primary come back to copy that.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from featurestore.settings import StoreSettings, split_address
from foldin.cluster.embedded import MAY, failover_file
from foldin.cluster.forming import command, form, myself, until
from processes.errors import CannotStartError
from processes.settings import SettingsError, load

# Of the first copy of a server's data to its replica.
COPIED_WITHIN_S = 300.0


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


def allow_failover(directory: Path, servers: Sequence[Redis]) -> None:
    """Let each server of a folder do so, now and after each start, once it has slots or all that its primary
    has. Raises TimeoutError where one has not: that one may not until this is called again.
    """
    files = [failover_file(directory, number) for number in range(len(servers))]
    waiting = {
        file: server for file, server in zip(files, servers, strict=True) if file.read_text("utf-8") != MAY
    }

    def allowed() -> bool:
        for file, server in list(waiting.items()):
            copied = command(server, "INFO", "replication").get("master_link_status") == "up"
            if copied or myself(server).slots:
                command(server, "CONFIG", "SET", *MAY.split())
                beside = file.with_suffix(".new")
                beside.write_text(MAY, "utf-8")
                beside.replace(file)
                del waiting[file]
        return not waiting

    until(allowed, "each replica has all that its primary has", COPIED_WITHIN_S)


def main() -> int:
    """Form it; return the exit code."""
    try:
        servers = servers_of(load(StoreSettings, (), os.environ))
        if away := form(servers, int(sys.argv[1])):
            sys.stdout.write(f"all slots of the cluster are served; {', '.join(away)}: no answer\n")
            return 0
        if len(sys.argv) > 2:
            try:
                allow_failover(Path(sys.argv[2]), servers)
            except TimeoutError as exc:
                sys.stdout.write(f"a server cannot be replaced until the next start: {exc}\n")
    except (CannotStartError, TimeoutError, RedisError) as exc:
        why = " ".join(str(exc).split())
        line = why if isinstance(exc, CannotStartError) else f"the servers do not become a cluster: {why}"
        sys.stdout.write(f"{line}\n")
        return 2
    sys.stdout.write(f"the cluster of {len(servers)} servers is whole\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
