"""What ends a command early, beside `processes.errors`."""


class StoppedError(Exception):
    """A command ended on the way: exit code 1. The message says what was done, and how to go on."""
