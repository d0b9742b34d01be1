"""What was put into a view is in its columns before a mask is made of them."""

from typing import Any, cast

from featurestore.catalogue.catalogue import ItemState
from featurestore.catalogue.item import CatalogueItem, pack_item, unpack_item
from service.catalogue.view import CatalogueView
from service.rules.filters import Filter, TextMatch

CRIME = Filter(must=(TextMatch("categories", ("crime",)),))


class _Catalogue:
    def read(self, data: bytes) -> CatalogueItem:
        return unpack_item(data, "key")


class _Registry:
    def __init__(self) -> None:
        self.ids: list[bytes] = []

    def row(self, item_id: bytes) -> int | None:
        return self.ids.index(item_id) if item_id in self.ids else None


def state(item_id: str, *, hidden: bool = False) -> ItemState:
    item = CatalogueItem(item_id, categories=["crime"], hidden=hidden)
    return ItemState(item_id.encode(), pack_item(item), deleted=False)


async def test_a_mask_has_all_that_was_put() -> None:
    registry = _Registry()
    view = CatalogueView(cast("Any", _Catalogue()), cast("Any", registry))
    for row in range(300):
        view.put([state(str(row), hidden=row == 2)], [row])
    assert (await view.mask(CRIME, 301, {})).tolist() == [True] * 300 + [False]
    allowed = view.allowed(0.0, 301)
    assert allowed is not None
    assert [row for row in range(301) if not allowed[row]] == [2]
    # Deleted, damaged, and one of which nothing was ever stored.
    view.put([ItemState(b"0", None, deleted=True)], [0])
    view.put([ItemState(b"1", b"{", deleted=False)], [1])
    view.put([ItemState(b"2", None, deleted=False)], [2])
    assert (await view.mask(CRIME, 4, {})).tolist() == [False, False, False, True]
    allowed = view.allowed(0.0, 4)
    assert allowed is not None
    assert allowed.tolist() == [False, False, True, True]


async def test_an_item_that_gets_its_row_later_is_in_the_next_mask() -> None:
    registry = _Registry()
    view = CatalogueView(cast("Any", _Catalogue()), cast("Any", registry))
    view.put([state("late", hidden=True)], [None])
    assert not (await view.mask(CRIME, 2, {})).any()
    assert view.allowed(0.0, 2) is None
    registry.ids += [b"other", b"late"]
    allowed = view.allowed(0.0, 2)
    assert allowed is not None
    assert allowed.tolist() == [True, False]
    assert (await view.mask(CRIME, 2, {})).tolist() == [False, True]


async def test_what_was_known_before_an_item_had_a_row_does_not_replace_what_came_later() -> None:
    registry = _Registry()
    view = CatalogueView(cast("Any", _Catalogue()), cast("Any", registry))
    view.put([state("late")], [None])
    registry.ids.append(b"late")
    view.put([state("late", hidden=True)], [0])
    allowed = view.allowed(0.0, 1)
    assert allowed is not None
    assert allowed.tolist() == [False]
