"""Folding in users whose record is behind. Invariant: `n`, the history and the earlier record of a user are
of one moment, so that the new record has seen exactly what it says.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from factors import RECENT, Columns, Float32s
from featurestore import codecs
from featurestore.catalogue.columns import columns_of_users
from featurestore.codecs import ENTRY_BYTES, History
from featurestore.generations.live import LiveGeneration
from featurestore.users.counter_rule import may_continue, unseen
from featurestore.users.histories import Look

# Ratings of one fold-in, which take most of its memory; what is more is folded in block by block.
BLOCK_ENTRIES = 200_000
# Users with few ratings take memory as well: a vector and a covariance each.
BLOCK_USERS = 4_096
# What the event loop reads of histories, and folds in, by itself. So many ratings at rank 16 take 2 ms by
# compiled loops and six times as long without; of larger rows there may be the fewer.
INLINE_BYTES, _INLINE_DIM = 2_000 * ENTRY_BYTES, 17


@dataclass(frozen=True, slots=True)
class StaleUser:
    """A user whose record is not current: what was read at one moment, of which `history` has the entries
    that count, and the record of this generation if there is one; one that is `damaged` is none.
    """

    user_id: bytes
    look: Look
    history: bytes
    record: bytes | None = None
    damaged: bool = False

    @property
    def n(self) -> int:
        """How many rating events the user has made."""
        return self.look.n or 0

    @property
    def has_events(self) -> bool:
        """Whether what was read has any entry that is no rating."""
        return codecs.has_events(self.history)


@dataclass(frozen=True, slots=True)
class FoldedUsers:
    """`vectors` float32 (b, user_width) and the effective history of each."""

    vectors: Float32s
    histories: list[History]


def fold_in(live: LiveGeneration, users: Sequence[StaleUser], histories: list[History]) -> FoldedUsers:
    """Fold users in with the item table of `live`. `histories`: the effective one of each.

    A user of whom only events that are no ratings came since the record keeps its vector.
    """
    # A fold-in takes over from the record so far what only a fit learns, or from the prior.
    continued = [may_continue(user.record, user.n) for user in users]
    records = [
        (goes_on and user.record) or live.prior_record for user, goes_on in zip(users, continued, strict=True)
    ]
    _, current = codecs.unpack_records(records, live.model.user_width)
    rated = [k for k, user in enumerate(users) if not (continued[k] and has_its_ratings(user))]
    rows = current.copy()
    if rated:
        rows[rated] = live.posterior.fold_in_users(
            live.items,
            codecs.pack_histories([histories[k] for k in rated]),
            current=current[rated],
            attributes=columns_of(live, [users[k].look.attributes or b"" for k in rated]),
        )
    return FoldedUsers(rows, histories)


def is_brief(size: int, live: LiveGeneration) -> bool:
    """Say whether the event loop itself folds in histories of so many bytes: what that takes grows with the
    square of the numbers of a state.
    """
    users = live.posterior.parameters.users.layout
    # Of a user who moves, a velocity is folded in with the position.
    dim = users.dim * (1 + users.moving)
    return size * max(dim, _INLINE_DIM) ** 2 <= INLINE_BYTES * _INLINE_DIM**2


def columns_of(live: LiveGeneration, stored: Sequence[bytes]) -> Columns | None:
    """Return the columns (m, c) of users by their attributes as these are `stored`, empty for none; None
    where attributes of users play no part.
    """
    known = live.user_attributes
    return None if known is None else columns_of_users(known.encoding, stored)


def has_its_ratings(user: StaleUser) -> bool:
    """Say whether the record of a user, which may be continued, has seen all ratings: the entries of the
    events that it has not seen are all of other types.
    """
    count = 0 if user.record is None else unseen(user.record, user.n)
    if count == user.n:
        # As it is marked where the attributes are others.
        return False
    # Where the history was ever compacted, its last entries may not be those of the last events: one that was
    # taken back has none. What was read has at least so many of the latest.
    if not 0 < count <= RECENT or user.n != user.look.entries:
        return False
    latest = user.history[-count * ENTRY_BYTES :]
    return len(latest) == count * ENTRY_BYTES and not codecs.has_ratings(latest)


def blocks(users: Sequence[StaleUser]) -> Iterator[list[StaleUser]]:
    """Users that may be folded in together, block by block."""
    block: list[StaleUser] = []
    entries = 0
    for user in users:
        size = len(user.history) // ENTRY_BYTES
        if block and (entries + size > BLOCK_ENTRIES or len(block) >= BLOCK_USERS):
            yield block
            block, entries = [], 0
        block.append(user)
        entries += size
    if block:
        yield block
