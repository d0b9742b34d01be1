"""Which registries a process keeps."""

from typing import Any, cast

from featurestore.item_registry import EPOCHS_KEPT, ItemRegistries
from featurestore.keys import Keys


def test_the_live_epoch_keeps_its_registry_while_histories_are_given_up() -> None:
    nothing = cast("Any", None)
    registries = ItemRegistries(Keys("ns", 1), nothing, nothing, 10)
    live = registries.of(1)
    for epoch in range(2, 10):
        registries.of(epoch)
        assert registries.of(1) is live


def test_an_epoch_that_is_not_asked_for_any_more_goes() -> None:
    nothing = cast("Any", None)
    registries = ItemRegistries(Keys("ns", 1), nothing, nothing, 10)
    old = registries.of(1)
    for epoch in range(2, 2 + EPOCHS_KEPT):
        registries.of(epoch)
    assert registries.of(1) is not old
