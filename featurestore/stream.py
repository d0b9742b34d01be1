"""skeleton"""

from collections.abc import Mapping
from dataclasses import dataclass
from factors.tables import Float64s, Int32s, Int64s
from featurestore.lease import Lease


@dataclass(frozen=True, slots=True)
class Events:
    """Rating events as columns, in stream order within a partition.

    `partition` int32 (m,); `stream_ms`, `stream_seq` int64 (m,): the stream id; `user_id`: m ids; `n` int64 (m,);
    `item_row` int64 (m,), `codecs.FORGOTTEN_ROW` where the user was forgotten; `rating` (NaN deletes), `time` float64 (m,).
    """

    partition: Int32s
    stream_ms: Int64s
    stream_seq: Int64s
    user_id: list[bytes]
    n: Int64s
    item_row: Int64s
    rating: Float64s
    time: Float64s

    def __len__(self) -> int:
        return len(self.user_id)


class RatingsStream:
    """skeleton"""

    async def read(self, epoch: int, lease: Lease, count: int, block_ms: int) -> Events:
        raise NotImplementedError

    async def done(self, epoch: int, lease: Lease, last: Mapping[int, str]) -> None:
        raise NotImplementedError

    async def lag(self, epoch: int) -> dict[int, int]:
        raise NotImplementedError
