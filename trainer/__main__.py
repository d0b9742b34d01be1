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
    from featurestore.telemetry.log_lines import configure
    from processes.configuration import configured
    from processes.settings import SettingsError
    from trainer.errors import CannotStartError
    from trainer.settings import TrainerSettings

    try:
        settings = TrainerSettings.load(*configured(sys.argv[1:], os.environ))
    except SettingsError as exc:
        print(f"trainer: {exc}", file=sys.stderr)
        return CANNOT_START
    configure(settings.log_level, settings.log_format)
    try:
        asyncio.run(_run(settings))
    except CannotStartError as exc:
        print(f"trainer: {exc}", file=sys.stderr)
        return CANNOT_START
    return 0


async def _run(settings: "TrainerSettings") -> None:
    import pyarrow as pa

    from processes.memory import give_back_freed
    from processes.priority import step_back
    from trainer.app import Trainer
    from trainer.fit_job.compiling import NICENESS
    from trainer.health.listener import serving_health
    from trainer.health.reporter import reporting

    # Arrow's own allocators keep what each of many threads has freed.
    pa.set_memory_pool(pa.system_memory_pool())
    give_back_freed()
    # Those that answer users go first. What it starts gives way to it as well.
    step_back(NICENESS)
    trainer, stop = Trainer(settings), stop_event()
    async with serving_health(trainer, settings.address), reporting(trainer):
        await trainer.run(stop)


if __name__ == "__main__":
    sys.exit(main())
