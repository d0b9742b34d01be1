"""`python -m benchmarks [NAME ...]`: one benchmark by its name, all of them without one."""

import sys
from importlib import import_module
from pathlib import Path


def main(argv: list[str]) -> int:
    """Run `benchmarks.NAME.main` with the arguments after the name; `all` where none is named."""
    name, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("all", argv)
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("_"))
    if name not in names:
        print(f"no benchmark is called {name!r}: choose one of {', '.join(names)}", file=sys.stderr)
        return 2
    try:
        code: int = import_module(f"benchmarks.{name}").main(rest)
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
