"""What goes wrong with one engine; the others go on."""


class EngineFailedError(Exception):
    """The engine gave no answer, or none that can be used; the message is one line that says why."""


class NotInstalledError(EngineFailedError):
    """What this engine needs is not there; its row is skipped with this reason."""
