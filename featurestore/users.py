"""skeleton"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
import numpy as np
import numpy.typing as npt
from factors.tables import Float32s, Int64s
from featurestore.codecs import History
from featurestore.live import LiveGeneration


@dataclass(frozen=True, slots=True)
class Current:
    """Users as of now. `n` int64 (u,); `vectors` float32 (u, user_width); `folded` bool (u,): which were folded in here."""

    n: Int64s
    vectors: Float32s
    folded: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Profile:
    """One user as of now: `n`, `vector` float32 (user_width,), the effective history, whether it was folded in here."""

    n: int
    vector: Float32s
    history: History
    folded: bool


class Users:
    """skeleton"""

    def read(self, epoch: int, generation: int, user_ids: Sequence[bytes]) -> asyncio.Future[list[Any]]:
        raise NotImplementedError

    async def current(self, live: LiveGeneration, user_ids: Sequence[bytes]) -> Current:
        raise NotImplementedError

    async def history(self, epoch: int, user_id: bytes) -> tuple[int, History]:
        raise NotImplementedError

    async def current_with_history(self, live: LiveGeneration, user_id: bytes) -> Profile:
        raise NotImplementedError
