"""`foldin version`."""

import sys
from importlib.metadata import version

from foldin.settings import FrontDoorSettings, NoOptions


def run_version(_options: NoOptions, settings: FrontDoorSettings) -> int:
    """Print the version of foldin and of Python; return the exit code."""
    foldin, python = version("foldin"), sys.version.split()[0]
    print(f"foldin {foldin} (Python {python})")
    settings.emit({"foldin": foldin, "python": python})
    return 0
