"""Which store and archive a command works on."""

from dataclasses import replace
from pathlib import Path

from foldin.address import running_stack
from foldin.settings import FrontDoorSettings
from foldin.sinks import STORE_TIMEOUT_S
from processes.errors import CannotStartError
from trainer.settings import TrainerSettings


def find_place(data: Path | None, settings: FrontDoorSettings) -> TrainerSettings:
    """Return which store and archive to work on: of the stack on `data` (or the usual one), else those of the
    environment. Raises CannotStartError.
    """
    folder = data or settings.data
    stack = running_stack(folder)
    if stack is not None:
        # As `foldin up` tells its trainer.
        environ = {
            **settings.inherited,
            **stack,
            "FOLDIN_ARCHIVE_DIR": str(folder / "archive"),
            "FOLDIN_STORE_DIR": str(folder / "store"),
        }
    elif data is not None:
        raise CannotStartError(f"no stack runs on {data}: start one with `foldin up --data {data}`")
    elif settings.redis_url is None:
        raise CannotStartError(
            f"no stack runs on {folder}: give --data, or FOLDIN_REDIS_URL and FOLDIN_ARCHIVE_DIR"
        )
    else:
        environ = dict(settings.inherited)
    found = TrainerSettings.load((), environ)
    # A late answer does no harm here, and a store that is busy with large calls answers late.
    return replace(found, store=replace(found.store, timeout_s=max(found.store.timeout_s, STORE_TIMEOUT_S)))
