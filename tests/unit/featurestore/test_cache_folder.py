"""The folder of the item table: where all may write, another user may be the one who made it."""

from pathlib import Path

import pytest

from featurestore.errors import StoreRefused
from featurestore.generations.item_table_file import TableCache


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own"
    TableCache(own, "foldin")
    assert own.stat().st_mode & 0o777 == 0o700
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(StoreRefused, match="another user may write there"):
        TableCache(open_to_all, "foldin")
    link = tmp_path / "link"
    link.symlink_to(open_to_all)
    with pytest.raises(StoreRefused, match="another user"):
        TableCache(link, "foldin")
