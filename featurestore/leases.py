"""Which trainer leads. Invariant: of two that believe to lead, only the one with the newest fence changes
anything.

The fence is a number that grows with each lease. Every function by which a leader changes something compares
it, so that a leader that was paused for longer than its lease does no harm when it wakes up. docs/trainer.md
lists the writes, and what needs no comparison.
"""

from featurestore.client import Client
from featurestore.keys import Keys

# Longer than a write of an import and the pause before the next. After a kill the first fit waits so long.
IMPORT_MS = 30_000


class Lease:
    """Leadership until `ttl_ms` after the last `renew`. `fence`: its number."""

    def __init__(self, keys: Keys, client: Client, token: str, ttl_ms: int, fence: int) -> None:
        self._keys = keys
        self._client = client
        self.token = token
        self.ttl_ms = ttl_ms
        self.fence = fence

    async def renew(self) -> None:
        """Lead on. An expired lease that no other trainer took goes on.

        Raises `LeaseLost`, `StoreUnavailable` (try again).
        """
        # A function, because another trainer could take the lease between a read and a write.
        args = [self.token.encode(), b"%d" % self.ttl_ms, b"%d" % self.fence]
        await self._client.call("renew_lease", ([self._keys.lease, self._keys.live], args))

    async def release(self) -> None:
        """Let the next one lead at once."""
        await self._client.call("release_lease", ([self._keys.lease], [self.token.encode()]))


def fence_of(lease: Lease | None) -> bytes:
    """Return the fence as the functions take it; empty for a caller that leads nothing."""
    return b"" if lease is None else b"%d" % lease.fence


class Leases:
    """Hands out the one lease of a namespace."""

    def __init__(self, keys: Keys, client: Client) -> None:
        self._keys = keys
        self._client = client

    async def acquire(self, token: str, ttl_ms: int) -> Lease | None:
        """Lead, unless another trainer does. `token` names the process: asked again with the same token it is
        the same lease.
        """
        args = [token.encode(), b"%d" % ttl_ms]
        (reply,) = await self._client.call("acquire_lease", ([self._keys.lease, self._keys.live], args))
        if reply[0] != b"OK":
            return None
        return Lease(self._keys, self._client, token, ttl_ms, int(reply[1]))

    async def held(self) -> bool:
        """Say whether a trainer leads."""
        return bool(await self._client.exists(self._keys.lease))

    async def say_ended(self, why: str) -> None:
        """Tell who asks something of a trainer why none leads, in a line that says what a person has to do;
        "" where one does.
        """
        if why:
            await self._client.set(self._keys.ended, why.encode())
        else:
            await self._client.unlink(self._keys.ended)

    async def ended(self) -> str | None:
        """Return why no trainer leads, where the last one said so; None while one does."""
        pipe = self._client.pipeline()
        pipe.exists(self._keys.lease)
        pipe.get(self._keys.ended)
        held, why = await pipe.execute()
        return None if held or not why else why.decode("utf-8", "replace")

    async def keep_import(self) -> None:
        """Say that an import writes, for `IMPORT_MS` from now."""
        await self._client.set(self._keys.importing, b"1", px=IMPORT_MS)

    async def end_import(self) -> None:
        """Say that an import has ended. Another one that runs says by its next write that it does."""
        await self._client.unlink(self._keys.importing)

    async def importing(self) -> bool:
        """Return whether an import writes to this store."""
        return bool(await self._client.exists(self._keys.importing))
