"""Runs a command of the course to its exit code."""

import sys
from collections.abc import Callable, Coroutine
from typing import Any

from environment.client import EnvironmentFailedError
from evaluation.players import PlayerFailedError
from processes.loop import run_until_stopped
from processes.settings import SettingsError


def run_command(
    name: str,
    start: Callable[[], Coroutine[Any, Any, object]],
    failed: Callable[[str], None] = lambda _why: None,
) -> int:
    """Run a command; return the exit code: 0 at the end or after a signal, 1 when the environment or the API
    did not answer or a file cannot be written, 2 for a wrong setting. `failed` is given why it is not 0.
    """
    try:
        run_until_stopped(start())
    except (SettingsError, EnvironmentFailedError, PlayerFailedError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        failed(str(error))
        return 2 if isinstance(error, SettingsError) else 1
    return 0
