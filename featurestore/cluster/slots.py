"""Which slot of a cluster a key lies in, and tags that lie in the slots that are wanted. Invariant: a key is
in the slot that every server and client computes for it (Redis Cluster specification, "Key distribution
model").
"""

from binascii import crc_hqx
from collections.abc import Sequence
from functools import lru_cache
from itertools import count

from featurestore.keys import tag_of

# Of each cluster.
SLOTS = 16_384
# How partitions are spread: the names of all keys of users depend on it.
TAGS_FORMAT = b"even-1"


def slot_of_tag(tag: bytes) -> int:
    """Return the slot of keys with this tag."""
    # CRC16 of XMODEM, which is the one that clusters use.
    return crc_hqx(tag, 0) % SLOTS


def slot_of(key: bytes) -> int:
    """Return the slot of a key."""
    return slot_of_tag(tag_of(key))


@lru_cache(maxsize=8)
def even_tags(parts: int) -> tuple[bytes, ...]:
    """Return a decimal number for each of `parts` partitions, whose slots are spread evenly: however many
    servers share all slots in ranges of one length, the fullest has at most one partition more than another.
    The smallest that there are: every process finds the same.
    """
    wanted = {(2 * part + 1) * SLOTS // (2 * parts): part for part in range(parts)}
    found: dict[int, bytes] = {}
    for number in count():
        tag = b"%d" % number
        part = wanted.get(slot_of_tag(tag))
        if part is not None and part not in found:
            found[part] = tag
            if len(found) == parts:
                break
    return tuple(found[part] for part in range(parts))


def split_commands(payload: bytes, count: int) -> Sequence[bytes]:
    """Return the commands of which a payload is made, `count` of them, each as RESP."""
    if count == 1:
        return [payload]
    commands, start = [], 0
    for _ in range(count):
        at = payload.index(b"\r\n", start)
        left = int(payload[start + 1 : at])
        at += 2
        for _ in range(left):
            stop = payload.index(b"\r\n", at)
            at = stop + 4 + int(payload[at + 1 : stop])
        commands.append(payload[start:at])
        start = at
    return commands
