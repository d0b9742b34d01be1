"""Which servers of an embedded cluster may take their primary's place.

Invariant: none may that never had all of its primary's data. It would serve nothing in its place, and the
primary come back to copy that.
"""

from collections.abc import Sequence
from pathlib import Path

from redis import Redis

from foldin.cluster.embedded import MAY, failover_file
from foldin.cluster.forming import command, myself, until

# Of the first copy of a server's data to its replica.
COPIED_WITHIN_S = 300.0


def allow_failover(directory: Path, servers: Sequence[Redis], within_s: float = COPIED_WITHIN_S) -> None:
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

    until(allowed, "each replica has all that its primary has", within_s)
