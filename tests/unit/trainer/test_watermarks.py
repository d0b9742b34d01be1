"""When ratings are refused for lack of room."""

import pytest

from featurestore.errors import FULL_REASONS
from featurestore.generations.manifest import read_pointer
from trainer.capacity.watermarks import LEAST_FREE_BYTES, MOST_FREE_BYTES, Space, disk, fullest, memory

GB = 2**30


@pytest.mark.parametrize(
    ("total", "kept"), [(GB // 4, LEAST_FREE_BYTES), (10 * GB, GB // 2), (4_000 * GB, MOST_FREE_BYTES)]
)
def test_a_disk_keeps_a_share_within_bounds_and_room_for_a_rewrite(total: int, kept: int) -> None:
    assert disk("archive_disk", total, total).needed_bytes == kept
    assert disk("store_disk", total, total, 3 * GB).needed_bytes == kept + 3 * GB


def test_a_store_without_a_limit_is_never_full() -> None:
    assert memory(GB, 0) is None
    space, beyond = memory(95 * GB, 100 * GB), memory(120 * GB, 100 * GB)
    assert space is not None
    assert beyond is not None
    assert (fullest([space], None), beyond.free_bytes, fullest([space, beyond], None)) == (None, 0, beyond)


def test_what_is_refused_is_taken_again_only_with_clearly_more_room() -> None:
    def space(free: int) -> Space:
        return Space("store_disk", free, 1000, 100)

    assert fullest([space(100)], None) is None
    assert fullest([space(99)], None) == space(99)
    assert fullest([space(109)], "store_disk") == space(109)
    assert fullest([space(109)], "archive_disk") is None
    assert fullest([space(111)], "store_disk") is None


@pytest.mark.parametrize(
    ("text", "at_9", "at_10"),
    [
        *((f"{reason}:10", reason, None) for reason in FULL_REASONS),
        # Of a leader of another version, and what no leader wrote.
        ("something_else:10", "store_disk", None),
        ("store_disk:soon", None, None),
        ("", None, None),
    ],
)
def test_what_a_leader_said_holds_until_it_ends(text: str, at_9: str | None, at_10: str | None) -> None:
    pointer = read_pointer({b"epoch": b"1", b"full": text.encode()}, b"live")
    assert (pointer.full_at(9.0), pointer.full_at(10.0)) == (at_9, at_10)
