"""What the event loop folds in by itself."""

import pytest

from featurestore.codecs import ENTRY_BYTES
from featurestore.users.fold_in import is_brief


@pytest.mark.parametrize(
    ("ratings", "rank", "brief"),
    [(2_000, 8, True), (2_001, 8, False), (2_000, 16, True), (2_000, 64, False), (130, 64, True)],
)
def test_the_larger_the_rows_the_fewer_ratings_a_brief_fold_in_has(
    ratings: int, rank: int, brief: bool
) -> None:
    assert is_brief(ratings * ENTRY_BYTES, rank + 1) is brief
