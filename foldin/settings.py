"""What the `foldin` command takes from the environment, read once. Flags of the command win."""

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
