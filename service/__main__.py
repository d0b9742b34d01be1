"""`python -m service`: reads the settings, binds the port, and serves in this process or in workers of its
own.
"""

import asyncio
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING

from service.server.supervisor import CANNOT_START, Supervisor, bind

if TYPE_CHECKING:
    from service.settings import ServiceSettings, WorkerSlot


def _work(settings: "ServiceSettings", slot: "WorkerSlot", sock: socket.socket) -> int:
    """Be a worker. What only workers need is imported here, so that a supervisor stays small."""
    from processes.loop import run
    from service.server.worker import serve

    return run(serve(settings, slot, sock))


def main() -> int:
    """Serve; the exit code."""
    from featurestore.telemetry.log_lines import configure
    from processes.configuration import configured
    from processes.settings import SettingsError
    from service.settings import read_settings

    arguments = sys.argv[1:]
    try:
        settings, slot = read_settings(*configured(arguments, os.environ))
    except SettingsError as exc:
        print(f"service: {exc}", file=sys.stderr)
        return CANNOT_START
    configure(settings.log_level, settings.log_format)
    # The record of who operated is kept whatever else is logged.
    logging.getLogger("foldin.audit").setLevel(logging.INFO)
    if slot.socket is not None:
        return _work(settings, slot, socket.socket(fileno=slot.socket))
    try:
        sockets = bind(settings.host, settings.port, settings.workers)
    except (OSError, UnicodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
        where = f"{settings.host} port {settings.port}"
        line = f"service: cannot listen on {where}: {reason}; choose another with --port or FOLDIN_PORT"
        print(line, file=sys.stderr)
        return CANNOT_START
    if settings.workers == 1:
        # No supervisor: what started this process starts it again.
        return _work(settings, slot, sockets[0])
    return asyncio.run(Supervisor(sockets, arguments, settings.grace_s).run())


if __name__ == "__main__":
    sys.exit(main())
