"""What can go wrong with a child, and what ends a command early, split by what the person should do."""

# The trainer's line begins so when a person must decide about stored data: the rest of a stack goes on
# without it.
DATA_REFUSED = "the archive is left as it is"


class ChildEndedError(Exception):
    """The child ended, or was not ready in time, before it was of use. `code` is None for the latter."""

    def __init__(self, name: str, code: int | None, last_line: str) -> None:
        super().__init__(f"{name}: {last_line or 'ended without a word'}")
        self.name = name
        self.code = code
        self.last_line = last_line


class CannotStartError(Exception):
    """A person must change something first: exit code 2. The message is one line that says what to do."""


class StackFailedError(Exception):
    """A part kept failing after the stack was up: exit code 1. The message is one line that names its log."""
