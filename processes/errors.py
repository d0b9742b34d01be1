"""What ends a command early, split by what the person in front of it should do."""


class CannotStartError(Exception):
    """A person must change something first: exit code 2. The message is one line that says what to do."""


class StackFailedError(Exception):
    """A part kept failing after the stack was up: exit code 1. The message is one line that names its log."""
