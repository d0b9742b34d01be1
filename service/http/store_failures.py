"""What the feature store cannot do, told to clients.

Invariant: whatever may work later says when, by `Retry-After`.
"""

from featurestore.errors import (
    EpochBusy,
    EpochGone,
    GenerationUnknown,
    RegistryFull,
    StoreError,
    StoreUnavailable,
    StreamFull,
)
from service.http.problems import Problem


def problem_of(exc: StoreError) -> Problem | None:
    """The problem that `exc` is for a client; None where it is a mistake of this program."""
    match exc:
        case StreamFull():
            found = Problem("stream_full", str(exc), retry_after_s=exc.retry_after_s)
        case StoreUnavailable():
            found = Problem("store_unavailable", "try again", retry_after_s=exc.retry_after_s)
        case EpochBusy():
            found = Problem("train_in_progress", str(exc), retry_after_s=5)
        case EpochGone():
            found = Problem("training_failed", "the new history was abandoned meanwhile; send it again")
        case GenerationUnknown():
            found = Problem("unknown_generation", str(exc))
        case RegistryFull():
            found = Problem("too_many_items", str(exc))
        case _:
            return None
    return found
