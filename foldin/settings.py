"""What the `foldin` command takes from the environment, read once, and the reference of all settings."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FrontDoorSettings:
    """`redis_url`: a store that is already there, or None for an embedded one. `state_dir`:

    positions of imports. `inherited` is handed to every process of the stack: each reads its own settings
    from it.
    """

    redis_url: str | None
    state_dir: Path
    inherited: Mapping[str, str]

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "FrontDoorSettings":
        """Read `FOLDIN_REDIS_URL`, and the place where programs keep state (`XDG_STATE_HOME`, else below
        `HOME`).
        """
        if "XDG_STATE_HOME" in environ:
            state = Path(environ["XDG_STATE_HOME"])
        elif "HOME" in environ:
            state = Path(environ["HOME"]) / ".local" / "state"
        else:
            state = Path(tempfile.gettempdir())
        return cls(
            redis_url=environ.get("FOLDIN_REDIS_URL") or None,
            state_dir=state / "foldin",
            inherited=dict(environ),
        )


INTRODUCTION = """\
# Settings

Printed by `foldin settings`. A flag wins over an environment variable, a variable over the default. Each
process reads its settings once, at its start, and reports all mistakes together: one line, exit code 2.

The variables that only the compose file reads are in [operations.md](operations.md).
"""


def settings_reference() -> str:
    """Every setting of every process as a Markdown document, from the declarations."""
    from environment.settings import ServerSettings
    from evaluation.course.settings import EvaluationSettings, PlaySettings
    from featurestore.settings import StoreSettings
    from processes.settings import reference
    from service.settings import ServiceSettings
    from trainer.settings import TrainerSettings

    tables = (
        ("The store, as service and trainer open it", reference(StoreSettings)),
        ("`python -m service`", reference(ServiceSettings, without=("store",))),
        ("`python -m trainer`", reference(TrainerSettings, without=("store",))),
        ("`python -m environment`", reference(ServerSettings)),
        ("`python -m evaluation.course.play`", reference(PlaySettings)),
        ("`foldin evaluate`, the course's protocol", reference(EvaluationSettings)),
    )
    return INTRODUCTION + "".join(f"\n## {title}\n\n{table}" for title, table in tables)
