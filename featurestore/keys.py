"""The name of every key. Invariant: all keys that one function call touches lie in one slot of a cluster.

A key without braces hashes as a whole, so `{NS:live}:x` lies in the slot of `NS:live`, and `NS.E:{p}:...` in
that of `{p}`. Braces in a user id do no harm: the first pair in a key counts, and a namespace has none.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from zlib import crc32

import numpy as np

from factors import Int64s
from featurestore.errors import StoreDamaged
from featurestore.id_columns import Ids, checksums

# A user id ends these.
_OF_A_USER = re.compile(rb"(.*\{\d+\}:(?:user|history|contexts|attributes):)(.*)", re.DOTALL)
# Of the keys of one call: its partition's and those of the first user.
_SHOWN_KEYS = 6
# Enough to see what kind of bytes stand there.
_SHOWN_BYTES = 20


def partition_of(user_id: bytes, partitions: int) -> int:
    """The partition of a user; every process on any machine computes the same. Keys depend on it for ever."""
    # Not `hash`, whose key is another in each process.
    return crc32(user_id) % partitions


def partitions_of(user_ids: Ids | Sequence[bytes], partitions: int) -> Int64s:
    """The partition (m,) of each user; the same for many at once."""
    return (checksums(user_ids) % np.uint32(partitions)).astype(np.int64)


def digest_of(user_id: bytes) -> bytes:
    """blake2b-128 of a user id: tells forgotten users apart without keeping their ids. 16 bytes."""
    # Of 128 bits two in a billion users are alike with a chance of 1 to 10^21.
    return hashlib.blake2b(user_id, digest_size=16).digest()


def tag_of(key: bytes) -> bytes:
    """Return what decides the slot of a key: what stands in its first pair of braces, if anything does."""
    start = key.find(b"{") + 1
    stop = key.find(b"}", start) if start else -1
    return key[start:stop] if stop > start else key


def record_field(generation: int) -> bytes:
    """The field of a user's hash that holds the record of a generation."""
    return b"g%d" % generation


def shown_key(key: bytes) -> str:
    """Return a key as a log line may have it: in place of a user id its blake2b-128, in hexadecimal."""
    match = _OF_A_USER.fullmatch(key)
    if match is None:
        return key.decode("utf-8", "backslashreplace")
    return f"{match[1].decode('ascii', 'backslashreplace')}<blake2b {digest_of(match[2]).hex()}>"


def shown_keys(keys: Sequence[bytes]) -> str:
    """Return the keys of a call, one of which is damaged."""
    shown = ", ".join(map(shown_key, keys[:_SHOWN_KEYS]))
    return shown if len(keys) <= _SHOWN_KEYS else f"{shown} and {len(keys) - _SHOWN_KEYS} more"


def whole(text: bytes | str, key: bytes) -> int:
    """Return a whole number as the store keeps it, from 0 on. Raises `StoreDamaged` for any other text."""
    # int() alone would take signs, spaces and underscores.
    if not text.isdigit():
        raise StoreDamaged(shown_key(key), f"{text[:_SHOWN_BYTES]!r} is no number")
    return int(text)


class Keys:
    """Key names of one namespace; `partitions` fixes how users are spread, `tags` in which slots of a cluster
    those are: decimal numbers, of one server those of the partitions.
    """

    def __init__(self, namespace: str, partitions: int, tags: Sequence[bytes] = ()) -> None:
        self._ns = namespace.encode("ascii")
        self.partitions = partitions
        self._tags = tags or [b"%d" % partition for partition in range(partitions)]
        # Hash: `layout`, `partitions`, `tags`, `scale`, `identity`, `backed_up`; `scale_open` until the scale
        # is decided.
        self.config = self._ns + b":config"
        # Hash, the pointer: `epoch`, `generation`, `previous` (to roll back to), `held` (after a roll-back),
        # `next`, `last_epoch`, `fence`, `erasures` (counted), `full` (why ratings are refused, until when),
        # of a new epoch `pending`, `pending_since`, `pending_by`, `abandoned`, `taking_over`.
        self.live = self._ns + b":live"
        # String that expires: the token of the leader.
        self.lease = b"{%b}:lease" % self.live
        # String: why the last trainer ended, if a person must act.
        self.ended = b"{%b}:ended" % self.live
        # String that expires: an import writes to this store.
        self.importing = b"{%b}:importing" % self.live
        # Hash: generation -> JSON; its `state` is `writing`, `ready` or `removing`.
        self.generations = b"{%b}:generations" % self.live
        # Stream, for the trainer: `refit`, `epoch`, `erase`, `take_back`.
        self.commands = b"{%b}:commands" % self.live
        # Hash: id of a command -> how far an open `erase` or `take_back` is.
        self.erasing = b"{%b}:erasing" % self.live
        # Hash: id of a worker -> heartbeat.
        self.workers = b"{%b}:workers" % self.live
        # Set: epochs of which something is stored.
        self.stored = b"{%b}:epochs" % self.live
        # Hash: name -> definition; the empty field is the default scenario.
        self.experiments = b"{%b}:experiments" % self.live
        # Hash: what came of lists, by generation.
        self.showings = b"{%b}:showings" % self.live
        # Streams: points of each process; marks of traced calls.
        self.telemetry = b"{%b}:telemetry" % self.live
        self.traces = b"{%b}:traces" % self.live
        # What a function needs that decides which generation is live.
        self.switched = [self.live, self.generations]
        # String of a minute: what `WAITAOF` or `WAIT` waits for.
        self.synced = self._ns + b":synced"
        # Hash: SHA-256 of an API key -> `name`, `role`, `created`; the empty field: there was a key once.
        self.access = self._ns + b":access"
        # Strings, JSON: types of events; fields of contexts.
        self.event_types = self._ns + b":event_types"
        self.contexts = self._ns + b":contexts"
        # String, the version: number of the last change, a dash, a random number.
        self.catalogue = self._ns + b":catalogue"
        # Hash: item id -> JSON. Sorted sets, for pages and searches by prefix. Set of ids. Stream: the last
        # changes.
        self.catalogue_items = b"{%b}:items" % self.catalogue
        self.catalogue_ids = b"{%b}:ids" % self.catalogue
        self.catalogue_titles = b"{%b}:titles" % self.catalogue
        self.catalogue_deleted = b"{%b}:deleted" % self.catalogue
        self.catalogue_changes = b"{%b}:changes" % self.catalogue
        # Hashes: `items:NAME`, `users:NAME` -> type of the attribute; name -> JSON, `:NAME` -> its version.
        self.schema = b"{%b}:schema" % self.catalogue
        self.scenarios = b"{%b}:scenarios" % self.catalogue
        # Made once an epoch: the key of a lookup is then one concatenation.
        self.user_prefixes = lru_cache(maxsize=8)(self._user_prefixes)

    def command(self, command_id: str) -> bytes:
        """The outcome of one command."""
        return b"{%b}:command:%b" % (self.live, command_id.encode("ascii"))

    def experiment_sums(self, name: str) -> bytes:
        """What came of an experiment, by arm."""
        return b"{%b}:experiment:%b:sums" % (self.live, name.encode())

    def experiment_users(self, name: str, arm: int) -> bytes:
        """How many users an arm has had."""
        return b"{%b}:experiment:%b:users:%d" % (self.live, name.encode(), arm)

    def shown_items(self, generation: int) -> bytes:
        """Which items a generation has shown."""
        return b"{%b}:shown:%d" % (self.live, generation)

    def epochs(self, partition: int) -> bytes:
        """Which epochs a partition's ratings go to: `1`, or `1,2` while 2 is prepared."""
        return b"%b:{%b}:epochs" % (self._ns, self._tags[partition])

    def attributes(self, user_id: bytes) -> bytes:
        """A user's attributes, in every epoch."""
        return b"%b:{%b}:attributes:%b" % (self._ns, self._tag_of(user_id), user_id)

    def _tag_of(self, user_id: bytes) -> bytes:
        return self._tags[partition_of(user_id, self.partitions)]

    def attributes_list(self, partition: int) -> bytes:
        """Ids of the users of a partition of whom there are attributes."""
        return b"%b:{%b}:attributes" % (self._ns, self._tags[partition])

    @property
    def attributes_pattern(self) -> bytes:
        """Glob pattern of the keys of all users' attributes."""
        return b"%b:{*}:attributes:*" % self._ns

    @staticmethod
    def attributes_user(key: bytes) -> bytes:
        """The user whose attributes a key has."""
        # The first one: an id may have any bytes.
        return key.partition(b"}:attributes:")[2]

    def _user_prefixes(self, epoch: int) -> tuple[bytes, ...]:
        return tuple(b"%b.%d:{%b}:user:" % (self._ns, epoch, tag) for tag in self._tags)

    def history_prefix(self, epoch: int, partition: int) -> bytes:
        """What the keys of a partition's histories begin with."""
        return b"%b.%d:{%b}:history:" % (self._ns, epoch, self._tags[partition])

    def contexts_prefix(self, epoch: int, partition: int) -> bytes:
        """What the keys of a partition's contexts begin with."""
        return b"%b.%d:{%b}:contexts:" % (self._ns, epoch, self._tags[partition])

    def user(self, epoch: int, user_id: bytes) -> bytes:
        """A user's hash: `n`; `gG`, the record in the generation G; `sample` of a long history; `described`,
        when attributes changed.
        """
        return self.user_prefixes(epoch)[partition_of(user_id, self.partitions)] + user_id

    def users(self, epoch: int, user_ids: Sequence[bytes]) -> list[bytes]:
        """The hash of each user."""
        prefixes, partitions = self.user_prefixes(epoch), self.partitions
        return [prefixes[partition_of(user_id, partitions)] + user_id for user_id in user_ids]

    def users_pattern(self, epoch: int) -> bytes:
        """Glob pattern that the hashes of all users of an epoch begin with."""
        return b"%b.%d:{*}:user:" % (self._ns, epoch)

    @staticmethod
    def user_of(key: bytes) -> bytes:
        """The user whose hash a key has."""
        # The first one: an id may have any bytes.
        return key.partition(b"}:user:")[2]

    def history(self, epoch: int, user_id: bytes) -> bytes:
        """A user's packed ratings."""
        return self.history_prefix(epoch, partition_of(user_id, self.partitions)) + user_id

    def user_contexts(self, epoch: int, user_id: bytes) -> bytes:
        """The contexts of a user's ratings, where any has one."""
        return self.contexts_prefix(epoch, partition_of(user_id, self.partitions)) + user_id

    def ratings(self, epoch: int, partition: int) -> bytes:
        """The stream of a partition's rating events."""
        return b"%b.%d:{%b}:ratings" % (self._ns, epoch, self._tags[partition])

    def forgotten(self, epoch: int, partition: int) -> bytes:
        """Digests of forgotten users with their last `n`."""
        return b"%b.%d:{%b}:forgotten" % (self._ns, epoch, self._tags[partition])

    def active(self, epoch: int, partition: int) -> bytes:
        """Ids of the users of a partition among whom neighbours are looked for."""
        return b"%b.%d:{%b}:active" % (self._ns, epoch, self._tags[partition])

    def counts(self, epoch: int, partition: int) -> bytes:
        """Of a stream: id of its `last` entry, number of the last event that is `done`, and how many ratings
        came in live, not with the call that began the epoch (the field is called `loose`); `contexts` is 1
        where any user of the partition gave a context; `floor` is the least time, `identity` the store's.
        """
        return b"%b.%d:{%b}:counts" % (self._ns, epoch, self._tags[partition])

    def items(self, epoch: int) -> bytes:
        """Item id -> item row."""
        return b"%b.%d:items" % (self._ns, epoch)

    def order(self, epoch: int) -> bytes:
        """Item row -> item id."""
        return b"{%b}:order" % self.items(epoch)

    def meta(self, epoch: int, generation: int) -> bytes:
        """What a generation is, JSON: summary, positions, model, checksums, blobs."""
        return b"%b.%d:generation:%d:meta" % (self._ns, epoch, generation)

    def chunk(self, epoch: int, generation: int, chunk: int) -> bytes:
        """One chunk of a generation's item table."""
        return b"%b.%d:generation:%d:items:%d" % (self._ns, epoch, generation, chunk)

    def index_chunk(self, epoch: int, generation: int, chunk: int) -> bytes:
        """One chunk of the index of a generation's items, where it has one."""
        return b"%b.%d:generation:%d:index:%d" % (self._ns, epoch, generation, chunk)

    def deltas(self, epoch: int, generation: int) -> bytes:
        """Item rows folded in since the fit."""
        return b"%b.%d:generation:%d:deltas" % (self._ns, epoch, generation)

    def epoch_pattern(self, epoch: int) -> bytes:
        """Glob pattern of the keys of an epoch, all but `order`."""
        return b"%b.%d:*" % (self._ns, epoch)
