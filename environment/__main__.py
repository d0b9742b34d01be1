"""`python -m environment`: serve the rating environment until SIGTERM or SIGINT, then leave with code 0."""

import os
import sys

from environment.server import serve
from environment.settings import ServerSettings
from processes.configuration import configured
from processes.loop import run
from processes.settings import SettingsError


def main(argv: list[str]) -> int:
    """Return the exit code: 0 after a signal, 2 when a person must change something first."""
    try:
        settings = ServerSettings.load(*configured(argv, os.environ))
        run(serve(settings, lambda address: print(f"environment on {address}", flush=True)))
    except SettingsError as error:
        print(f"environment: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
