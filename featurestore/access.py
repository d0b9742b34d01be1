"""API keys as the store holds them. Invariant: the store holds digests alone, so that a copy of it opens no
door.

A key is 256 random bits. A password needs a slow, salted hash because it can be guessed; a random key
cannot, so that one SHA-256 is enough, and one lookup by digest finds it without a comparison whose time
would tell how much of it was right.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

from featurestore.client import Client
from featurestore.errors import LastOperateKey, StoreRefused, StoreUnavailable
from featurestore.keys import Keys
from featurestore.wire.connection import Connection
from featurestore.wire.functions import call_many
from featurestore.wire.resp import by_field, encode

Role = Literal["metrics", "read", "rate", "operate"]
# Each may do what the ones before it may. `metrics`: for what scrapes, which asks after no user.
ROLES: tuple[Role, ...] = get_args(Role)
# Every worker reads all of them twice a second: 150 KB.
MOST_KEYS = 1_000
# As often others may change the keys between a look and the removal that rests on it.
_ATTEMPTS = 10
# Workers know of a change of the keys within this time.
KEYS_FOLLOWED_S = 2.0
# A name stands in log lines.
KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SECRET = re.compile(r"fk_[A-Za-z0-9_-]{43}")


class ApiKey(msgspec.Struct, frozen=True):
    """What is stored of a key under its digest. `created`: seconds since 1970, by the clock of the store."""

    name: str
    role: Role
    created: float


# By digest. None: a record that this version cannot read; it lets no request in, and stays as it is. So
# does the empty digest, which marks that there was a key once: keys go on being asked for when the last one
# is removed, by processes that start after that, too.
StoredKeys = Mapping[str, ApiKey | None]
_MARK = ""


def new_secret() -> str:
    """Return a new key: `fk_`, so that scanners of sources find one that leaks, and 32 random bytes."""
    return "fk_" + secrets.token_urlsafe(32)


def is_secret(text: str) -> bool:
    """Whether `text` has the form of a key."""
    return _SECRET.fullmatch(text) is not None


def digest_of_secret(secret: str) -> str:
    """Return the SHA-256 of a key, in hexadecimal. Any text of a header has one."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def parse_keys(fields: Mapping[Any, Any]) -> StoredKeys:
    """Return the keys that the hash of the store holds."""
    return {digest.decode("ascii", "replace"): _parse(value) for digest, value in fields.items()}


def parse_texts(texts: Mapping[str, str]) -> StoredKeys:
    """Return the keys of what `AccessKeys.texts` returned."""
    return {digest: _parse(text.encode()) for digest, text in texts.items()}


def _parse(value: bytes) -> ApiKey | None:
    try:
        return msgspec.json.decode(value, type=ApiKey)
    except msgspec.DecodeError:
        return None


def names_of(keys: StoredKeys) -> list[str]:
    """Return keys as people know them: never the key itself."""
    return sorted(f"{key.name}:{key.role}" for key in keys.values() if key is not None)


def count_of(keys: StoredKeys) -> int:
    """Return how many keys there are, those that cannot be read included."""
    return len(keys) - (_MARK in keys)


def operating(keys: StoredKeys) -> list[str]:
    """Return the digests of the keys that may operate. One that this version cannot read lets no request
    in.
    """
    return [digest for digest, key in keys.items() if key is not None and key.role == "operate"]


class AccessKeys:
    """The keys of one namespace."""

    def __init__(self, keys: Keys, connection: Connection, client: Client) -> None:
        self._key = keys.access
        self._connection = connection
        self._client = client
        self._ask = encode(b"HGETALL", keys.access)

    async def load(self) -> StoredKeys:
        """Return all keys. Raises `StoreError`."""
        (reply,) = await call_many(self._connection, [self._ask])
        return parse_keys(by_field(reply))

    async def texts(self) -> dict[str, str]:
        """Return what is stored of each key by its digest, also what this version cannot read. Raises
        `StoreError`.
        """
        fields: Any = await self._client.hgetall(self._key)
        return {
            digest.decode("ascii", "replace"): value.decode("utf-8", "replace")
            for digest, value in fields.items()
        }

    async def put_back(self, texts: Mapping[str, str]) -> None:
        """Let keys in again of which `texts` returned these; keys are asked for from now on, also where there
        is none among them.
        """
        fields = {digest: text.encode() for digest, text in texts.items()}
        await self._client.change_fields(self._key, {_MARK: b"", **fields})

    async def add(self, secret: str, name: str, role: Role) -> None:
        """Let `secret` in from now on; repeating it changes nothing.

        Raises `StoreRefused` where there are too many keys.
        """
        known = await self.load()
        digest = digest_of_secret(secret)
        if count_of(known) >= MOST_KEYS and digest not in known:
            raise StoreRefused(f"{count_of(known)} keys are stored, as many as there may be: remove some")
        seconds, _ = await self._client.time()
        # With its mark: a key that was seen without it could be removed without a trace.
        if digest not in known:
            await self._client.change_fields(
                self._key, {_MARK: b"", digest: msgspec.json.encode(ApiKey(name, role, seconds))}
            )

    async def remove(self, name: str, *, operable: bool = False) -> int:
        """Let the keys called `name` in no longer; return how many there were. `operable`: one that may
        operate stays while there is any other. Raises `LastOperateKey`, `StoreError`.
        """
        for _ in range(_ATTEMPTS):
            stored = await self.load()
            going = [digest for digest, key in stored.items() if key is not None and key.name == name]
            if not going:
                return 0
            left = {digest: key for digest, key in stored.items() if digest not in going}
            staying = operating(left)
            if not operable or not count_of(left) or not operating(stored):
                # None has to stay.
                staying = [""]
            elif not staying:
                raise LastOperateKey(name)
            args = [b"%d" % len(stored), b"%d" % len(going), *map(str.encode, (*going, *staying))]
            (reply,) = await self._client.call("remove_keys", ([self._key], args))
            if reply[0] == b"OK":
                return int(reply[1])
        raise StoreUnavailable("others are changing the keys", 0.1)
