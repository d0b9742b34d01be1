"""The types of events beside the segments of an archive."""

from pathlib import Path

import pytest

from featurestore.ratings.event_types import DEFAULT_TYPES
from trainer.archive.type_names import NAME, TypeNames, read_types
from trainer.errors import ArchiveFailedError


@pytest.mark.parametrize("content", ["{", '{"format": 1, "types": [{"name": "a"}]}'])
def test_a_damaged_file_is_told_and_written_again(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    with pytest.raises(ArchiveFailedError, match=NAME):
        read_types(tmp_path)
    TypeNames(tmp_path).name(DEFAULT_TYPES)
    assert read_types(tmp_path) == list(DEFAULT_TYPES)
