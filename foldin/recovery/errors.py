"""Why a recovery ends early, split by what the person should do."""

from processes.errors import CannotStartError


class RecoveryRefusedError(CannotStartError):
    """Nothing was changed, and a person must change something first: exit code 2."""


class RecoveryStoppedError(Exception):
    """It ended on the way: exit code 1. Nothing is lost, and the message says how to go on."""
