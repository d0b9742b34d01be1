"""Items that new accounts push: told of under attack, and not where users do what users do."""

from collections.abc import Sequence

import numpy as np
import pytest

from factors import Float64s, Int64s
from trainer.item_updates.pushed import PushedItem, PushWatch

N_ITEMS, COUNT, MEAN = 50, 60, 3.4


Arrivals = tuple[Int64s, Int64s, Float64s]


def told(arriving: Arrivals, first_new: int = 95, count: int = COUNT) -> list[PushedItem]:
    """What is told of arrivals in batches of 50. Accounts from `first_new` on are new, and each item has
    `count` ratings of mean `MEAN` from before.
    """
    users, items, ratings = arriving
    watch = PushWatch(4.0)
    found: list[PushedItem] = []
    for start in range(0, len(users), 50):
        stop = min(start + 50, len(users))
        for row in watch.add(items[start:stop], ratings[start:stop], users[start:stop] >= first_new):
            last = {int(users[k]): k for k in range(stop) if items[k] == row}
            index = np.array(list(last.values()))
            pushed = watch.look(row, ratings[index], users[index] >= first_new, count, MEAN)
            found += [] if pushed is None else [pushed]
    return found


def arrivals(seed: int, n: int = 600) -> Arrivals:
    """Users 0 to 99, of whom those from 95 on are new, rate by popularity."""
    rng = np.random.default_rng(seed)
    popular = 1.0 / np.arange(1, N_ITEMS + 1)
    items = rng.choice(N_ITEMS, n, p=popular / popular.sum())
    ratings = np.clip(np.round(rng.normal(MEAN, 1.0, n)), 1, 5)
    return rng.integers(100, size=n), items, ratings


def with_more(seed: int, users: Sequence[int], item: int, rating: float) -> Arrivals:
    """The same, and among them a rating of this item by each of `users`."""
    plain = arrivals(seed)
    place = np.sort(np.random.default_rng(seed).integers(len(plain[0]), size=len(users)))
    return (
        np.insert(plain[0], place, users),
        np.insert(plain[1], place, item),
        np.insert(plain[2], place, rating),
    )


def test_of_300_worlds_without_an_attack_nothing_is_told() -> None:
    assert [told(arrivals(seed)) for seed in range(300)] == [[]] * 300


@pytest.mark.parametrize(("item", "rating"), [(30, 5.0), (30, 1.0)])
def test_new_accounts_that_move_an_item_are_told_of_once(item: int, rating: float) -> None:
    for seed in range(10):
        (found,) = told(with_more(seed, range(200, 212), item, rating))
        assert found.item_row == item
        assert 5 <= found.new_accounts <= 12 + 3
        assert found.usual < 0.1
        assert (found.moved > 0.1) == (rating == 5.0)
        assert abs(found.moved) > 0.1


def test_what_every_new_account_is_asked_to_rate_moves_nothing() -> None:
    assert told(with_more(1, range(200, 240), 30, MEAN)) == []


def test_a_hit_is_rated_by_old_accounts_too() -> None:
    users = [k if k % 20 else 200 + k for k in range(80)]
    assert told(with_more(1, users, 30, 5.0)) == []


def test_one_account_is_one_however_often_it_rates() -> None:
    assert told(with_more(1, [200] * 100, 30, 5.0)) == []


def test_where_all_accounts_are_new_none_are_unusual() -> None:
    assert told(arrivals(1), first_new=0, count=0) == []


def test_an_item_that_new_accounts_alone_have_rated_is_held_against_what_others_get() -> None:
    (found,) = told(with_more(1, range(200, 212), 49, 5.0), count=0)
    assert found.item_row == 49
    assert found.moved > 0.5
