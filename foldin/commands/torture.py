"""`foldin torture`: runs the torture of a checkout, in a process of its own.

Invariant: nothing of the torture is in the wheel, nor loaded by the product.
"""

import subprocess
import sys
import time
from collections.abc import Sequence

from foldin.commands.bench import NO_BAR, ROOT, ended
from foldin.settings import FrontDoorSettings, no_document
from processes.errors import CannotStartError

# Beside the product.
FOLDER = "torture"


def run_torture(arguments: Sequence[str], settings: FrontDoorSettings | None) -> int:
    """Run the torture with these arguments, emit how it ended; return its exit code. `settings`: None for
    help. Raises CannotStartError outside a checkout.
    """
    if not (ROOT / FOLDER / "__main__.py").is_file():
        raise CannotStartError("the torture comes with a checkout of the repository, not with the package")
    began = time.monotonic()
    # Not by `processes`: this one stands in for the command that the user runs, and Ctrl-C must reach it. It
    # runs in the folder of its caller, which `--data` is relative to.
    flags = () if settings is None or settings.emit is no_document else (NO_BAR,)
    command = [sys.executable, "-m", FOLDER, *flags, *arguments]
    code = subprocess.run(command, check=False).returncode  # noqa: S603 - ours
    if settings is not None:
        settings.emit({**ended("the torture", code), "seconds": round(time.monotonic() - began, 3)})
    return code
