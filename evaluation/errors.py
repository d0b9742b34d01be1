"""What goes wrong with one predictor; the others go on."""


class EngineFailedError(Exception):
    """The predictor gave no answer, or none that can be used; the message is one line that says why."""


class NotInstalledError(EngineFailedError):
    """What this predictor needs is not there; its row is skipped with this reason."""
