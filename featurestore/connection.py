"""skeleton"""

import asyncio
from typing import Any
from featurestore.settings import StoreSettings


def encode(*args: bytes) -> bytes:
    """A command as RESP."""
    return b"*%d\r\n%b" % (len(args), b"".join([b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args]))


class Connection:
    """skeleton"""

    connected: bool

    def execute(self, payload: bytes, replies: int, *, wait_s: float = 0.0) -> asyncio.Future[list[Any]]:
        raise NotImplementedError
