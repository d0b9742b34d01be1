"""Likeness by content is the Jaccard index of the texts of two items."""

from hypothesis import given
from hypothesis import strategies as st

from featurestore.catalogue.item import CatalogueItem
from service.rules.likeness import likeness
from tests.unit.service.rules_world import columns_of

TEXTS = st.lists(st.sampled_from("abcd"), max_size=3)
ITEM = st.builds(
    CatalogueItem,
    st.just(""),
    st.sampled_from(["", "title"]),
    TEXTS,
    st.fixed_dictionaries(
        {}, optional={"kind": st.sampled_from("ab"), "tags": TEXTS, "year": st.just(1900.0)}
    ),
)


def texts_of(item: CatalogueItem) -> set[tuple[str, str]]:
    """What is compared: a text counts with the attribute in which it stands."""
    lists = {"categories": item.categories, **item.attributes}
    found: set[tuple[str, str]] = set()
    for key, value in lists.items():
        if isinstance(value, str):
            found.add((key, value))
        elif isinstance(value, list):
            found |= {(key, each) for each in value}
    return found


@given(st.lists(ITEM, min_size=1, max_size=8), st.integers(0, 8))
def test_likeness_is_the_share_of_texts_of_both(items: list[CatalogueItem], row: int) -> None:
    columns = columns_of(items)
    known = [texts_of(item) for item in items] + [set()]
    row = min(row, len(items))
    expected = [
        len(texts & known[row]) / len(texts | known[row]) if texts | known[row] else 0.0 for texts in known
    ]
    assert likeness(columns, row, len(known)).tolist() == expected
