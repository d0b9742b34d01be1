"""What ends a command early, split by what the person in front of it should do."""


class ImportStoppedError(Exception):
    """An import ended before its end: exit code 1.

    What was written stays, and the message says how to go on.
    """


class ExportStoppedError(Exception):
    """An export ended before its end: exit code 1, and no file where one was asked for."""
