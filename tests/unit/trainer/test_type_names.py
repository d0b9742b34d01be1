"""The types of events beside the segments of an archive."""

from pathlib import Path

import pytest
from msgspec import structs

from featurestore.ratings.event_types import DEFAULT_TYPES, EventType
from trainer.archive.type_names import NAME, TypeNames, read_types
from trainer.errors import ArchiveFailedError

SHARE = 8


def test_a_name_on_the_disk_stays_and_a_changed_type_is_written(tmp_path: Path) -> None:
    share = EventType("share", SHARE, "positive")
    TypeNames(tmp_path).name(DEFAULT_TYPES)
    assert not (tmp_path / NAME).exists()
    names = TypeNames(tmp_path)
    for weight in (None, 0.5):
        changed = structs.replace(share, weight=weight)
        names.name((*DEFAULT_TYPES, changed))
        assert read_types(tmp_path) == [*DEFAULT_TYPES, changed]
    # As of a store that was put back from an older copy.
    again = TypeNames(tmp_path)
    again.name(DEFAULT_TYPES)
    assert read_types(tmp_path)[-1] == structs.replace(share, weight=0.5)
    assert SHARE in again.codes


@pytest.mark.parametrize("content", ["{", '{"format": 1}', '{"format": 1, "types": [{"name": "a"}]}'])
def test_a_damaged_file_is_told_and_written_again(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    with pytest.raises(ArchiveFailedError, match=NAME):
        read_types(tmp_path)
    TypeNames(tmp_path).name(DEFAULT_TYPES)
    assert read_types(tmp_path) == list(DEFAULT_TYPES)
