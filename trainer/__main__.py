"""`python -m trainer`: read the settings and work until SIGTERM or SIGINT."""

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from processes.loop import stop_event

if TYPE_CHECKING:
    from trainer.settings import TrainerSettings

# As argparse and most commands have it: a person must change something. A supervisor does not start it again.
CANNOT_START = 2


def main() -> int:
    """Work; return the exit code: 0 after a signal, 2 where a person must change something."""
    from processes.settings import SettingsError
    from trainer.errors import CannotStartError
    from trainer.log import configure
    from trainer.settings import TrainerSettings

    try:
        settings = TrainerSettings.load(sys.argv[1:], os.environ)
    except SettingsError as exc:
        print(f"trainer: {exc}", file=sys.stderr)
        return CANNOT_START
    configure(settings.log_level)
    try:
        asyncio.run(_run(settings))
    except CannotStartError as exc:
        print(f"trainer: {exc}", file=sys.stderr)
        return CANNOT_START
    return 0


async def _run(settings: "TrainerSettings") -> None:
    from trainer.app import Trainer
    from trainer.health.listener import serving_health

    trainer, stop = Trainer(settings), stop_event()
    async with serving_health(trainer, settings.address):
        await trainer.run(stop)


if __name__ == "__main__":
    sys.exit(main())
