"""`python -m torture`: a torture by its flags. Exit code 1 where anything is wrong, 2 where it cannot run."""

import sys
from collections.abc import Sequence

from processes.errors import CannotStartError, StackFailedError
from processes.settings import SettingsError, load
from torture.campaign import TortureOptions, run_torture

ABOUT = "Call a stack of its own and hurt it; hold all that it says against what was acknowledged. Linux, cc."


def main(argv: Sequence[str]) -> int:
    """Torture; return the exit code."""
    try:
        return run_torture(load(TortureOptions, argv, {}, command="foldin torture", about=ABOUT))
    except (SettingsError, CannotStartError) as exc:
        print(f"foldin torture: {exc}", file=sys.stderr)
        return 2
    except StackFailedError as exc:
        print(f"foldin torture: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
