"""skeleton"""

from collections.abc import Sequence


class ItemRegistry:
    """skeleton"""

    def row(self, item_id: bytes) -> int | None:
        raise NotImplementedError

    async def rows(self, item_ids: Sequence[bytes]) -> list[int | None]:
        raise NotImplementedError

    async def register(self, item_ids: Sequence[bytes]) -> list[int]:
        raise NotImplementedError

    def id(self, row: int) -> str:
        raise NotImplementedError

    async def refresh(self) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError
