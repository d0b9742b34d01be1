"""skeleton"""


class Lease:
    """skeleton"""

    token: str
    fence: int

    async def renew(self) -> None:
        raise NotImplementedError

    async def release(self) -> None:
        raise NotImplementedError


class Leases:
    """skeleton"""

    async def acquire(self, token: str, ttl_ms: int) -> Lease | None:
        raise NotImplementedError
