# ruff: noqa: N818 - the names say what happened, as in the interfaces of docs/architecture.md
"""What can go wrong between a process and the store, split by what the caller should do about it."""

from typing import Literal, get_args

FullReason = Literal["store_memory", "store_disk", "archive_disk", "worker_memory"]
"""What has no room left: for all, or for the workers of one replica."""
FULL_REASONS: tuple[FullReason, ...] = get_args(FullReason)

# Room comes back by what a person does; a client that asks this often is served soon after.
RETRY_WHEN_FULL_S = 5.0


class StoreError(Exception):
    """Anything that the feature store refuses or cannot do.

    As itself: an unexpected reply; look at it.
    """


class StoreUnavailable(StoreError):
    """The store cannot be reached or cannot take this now (lost, timed out, loading, read-only).

    Retry after `retry_after_s`. A write in flight may or may not have been done; each write may be repeated.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreFull(StoreUnavailable):
    """There is no room for what would grow: `reason` says where. What frees room goes on, and reads.

    Retry later (507). Of a call that spans partitions some may be written; the whole may be sent again, as
    the last rating of a pair counts.
    """

    def __init__(self, message: str, reason: FullReason, retry_after_s: float = RETRY_WHEN_FULL_S) -> None:
        super().__init__(message, retry_after_s)
        self.reason = reason


class StreamFull(StoreUnavailable):
    """More events wait for the trainer than the stream limit allows.

    Retry later (429); nothing was written.
    """


class HistoryFull(StoreError):
    """The user has as many ratings as one may have. Refuse the input; nothing was written of this user."""

    def __init__(self, user_id: bytes, most: int) -> None:
        super().__init__(f"a user may have {most} entries in the history")
        self.user_id = user_id
        self.most = most


class StoreRefused(StoreError):
    """A person must change something (version, permission, namespace settings, a folder): exit code 2.

    The message is one line that says what to do.
    """


class LastOperateKey(StoreError):
    """Keys would be left of which none may operate. Refuse the input; nothing was removed."""


class OffScale(StoreError):
    """A rating is off the scale, which was decided since it was checked. Refuse the input."""

    def __init__(self, rating: float, scale: str) -> None:
        super().__init__(f"the scale is {scale} since just now, and a rating is {rating:g}")


class UserChanged(StoreError):
    """The user was written to since. Look at the user again; nothing was written."""


class StoreDamaged(StoreRefused):
    """What a key holds is not what was written there: truncated, foreign, of another type. Answer 503, and
    leave it as it is: docs/operations.md says what a person can do. `key` is shown without a user id.
    """

    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"the store is damaged at {key}: {why}")
        self.key = key


class LeaseLost(StoreError):
    """Another trainer leads. Stop acting as the leader at once."""


class StoreChanged(StoreError):
    """Behind the address is another store, or one that lost what it had acknowledged. End what rests on it,
    and look again.
    """


class GenerationUnknown(StoreError):
    """There is no such generation that could go live. Refuse the input."""

    def __init__(self, generation: int, why: str = "does not exist") -> None:
        super().__init__(f"generation {generation} {why}")
        self.generation = generation


class GenerationBroken(StoreDamaged):
    """Checksum, count or layout of a generation does not fit. Keep the one that is live; a fit makes another.

    `key`: where it is stored, if it is.
    """

    def __init__(self, why: str, key: str = "") -> None:
        super().__init__(key, why)
        if not key:
            self.args = (why,)


class EpochBusy(StoreError):
    """Another new history is being prepared. Try again when it has gone live or was abandoned."""


class RatingsLeftOut(StoreError):
    """A new epoch would not have `ratings` that came in by other ways. Ask the person; nothing changed."""

    def __init__(self, ratings: int) -> None:
        super().__init__(f"{ratings} ratings would not be in the new epoch")
        self.ratings = ratings


class EpochGone(StoreError):
    """The epoch takes no ratings (any more): it was abandoned or replaced. Begin again."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"the history of epoch {epoch} was replaced or given up")
        self.epoch = epoch


class ItemDeleted(StoreError):
    """The item was deleted, and what was to change is not there any more. Refuse the input."""


class RegistryFull(StoreError):
    """The namespace has as many items as it may have. Refuse the input."""
