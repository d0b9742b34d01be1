"""`python -m benchmarks [NAME ...]`: one benchmark by its name, all of them without one. Exit code 2 with one
line where it cannot run.
"""

import signal
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.harness.progress import hide
from foldin.commands.bench import NO_BAR, benchmarks_in
from processes.settings import SettingsError


def main(argv: list[str]) -> int:
    """Run the `main` of the benchmark with the arguments after its name; `all` where none is named."""
    if argv[:1] == [NO_BAR]:
        hide()
        argv = argv[1:]
    name, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("all", argv)
    found = benchmarks_in(Path(__file__).parent)
    if name not in found:
        print(f"no benchmark is called {name!r}: choose one of {', '.join(found)}", file=sys.stderr)
        return 2
    # SIGTERM ends this process as an exception does, so that the servers that it has started are stopped.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        code: int = import_module(found[name].module).main(rest)
    # Here for all of them: each declares its flags, and the loader finds all that is wrong.
    except (SettingsError, BenchmarkError) as exc:
        print(f"foldin bench {name}: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
