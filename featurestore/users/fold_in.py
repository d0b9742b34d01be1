"""Folding in users whose record is behind. Invariant: `n`, the history and the earlier record of a user are
of one moment, so that the new record has seen exactly what it says.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from factors import Float32s
from featurestore import codecs
from featurestore.codecs import ENTRY_BYTES, History
from featurestore.generations.live import LiveGeneration
from featurestore.generations.manifest import Kept
from featurestore.keys import Keys, digest_of, partition_of, record_field
from featurestore.wire.functions import encode_call

# Ratings of one fold-in, which take most of its memory; what is more is folded in block by block.
BLOCK_ENTRIES = 200_000
# Users with few ratings take memory as well: a vector and a covariance each.
BLOCK_USERS = 4_096


@dataclass(frozen=True, slots=True)
class StaleUser:
    """A user whose record is not current, read at one moment: `n`, the stored history, and the record of
    this generation if there is one.
    """

    user_id: bytes
    n: int
    history: bytes
    record: bytes | None = None


@dataclass(frozen=True, slots=True)
class FoldedUsers:
    """`vectors` float32 (b, user_width) and the effective history of each."""

    vectors: Float32s
    histories: list[History]


def fold_in(live: LiveGeneration, users: Sequence[StaleUser]) -> FoldedUsers:
    """Fold users in with the item table of `live`."""
    histories = [codecs.unpack_history(user.history) for user in users]
    packed = codecs.pack_histories(histories)
    rows = live.posterior.fold_in_users(live.items, packed, current=_earlier_rows(live, users))
    return FoldedUsers(rows, histories)


def _earlier_rows(live: LiveGeneration, users: Sequence[StaleUser]) -> Float32s:
    """Rows (b, user_width) that these users had in this generation; the prior where there was none.

    A fold-in takes over from them what only a fit learns.
    """
    rows = np.repeat(live.posterior.prior_user[None], len(users), axis=0)
    width = live.model.user_width
    size = codecs.record_dtype(width).itemsize
    records = [(k, user.record) for k, user in enumerate(users) if user.record and len(user.record) == size]
    if records:
        known = np.array([k for k, _ in records])
        seen, vectors = codecs.unpack_records([record for _, record in records], width)
        # A record that has seen more than there is belongs to a history that was lost.
        earlier = seen <= np.array([users[k].n for k in known], dtype=np.uint64)
        rows[known[earlier]] = vectors[earlier]
    return rows


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


def encode_write_back(
    keys: Keys, live: LiveGeneration, users: Sequence[StaleUser], folded: FoldedUsers, kept: Kept
) -> list[bytes]:
    """A call for each user that stores its record, unless a newer one is there or the user was forgotten.

    A history of which most is superseded is stored anew with it, unless a rating has come in since.
    """
    n = np.array([user.n for user in users], dtype=np.int64)
    calls = []
    for user, record, history in zip(
        users, codecs.pack_records(n, folded.vectors), folded.histories, strict=True
    ):
        names = [
            keys.user(live.epoch, user.user_id),
            keys.history(live.epoch, user.user_id),
            keys.forgotten(live.epoch, partition_of(user.user_id, keys.partitions)),
        ]
        args = [
            record_field(live.generation),
            record,
            digest_of(user.user_id),
            b"%d" % kept.upto,
            kept.fields,
        ]
        if codecs.worth_compacting(user.history, history):
            args += [b"%d" % user.n, codecs.pack_history(history)]
        calls.append(encode_call("put_record", names, args))
    return calls
