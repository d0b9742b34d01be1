"""Copies of users: of one generation, bounded in bytes and in time, and none of a user who was forgotten."""

import numpy as np
import pytest

from factors import Ranker, Scorer, posterior_of
from featurestore.codecs import History, pack_records
from featurestore.generations.live import LiveGeneration
from featurestore.users import copies as copies_module
from featurestore.users.copies import LONGEST_HISTORY, SETTLED_S, UserCopies
from featurestore.users.counter_rule import Profile
from tests.support.factories import make_items, make_model

MODEL = make_model()
ITEMS = make_items(MODEL, 4)
POSTERIOR = posterior_of(MODEL)
SCORER, RANKER = Scorer(POSTERIOR, ITEMS), Ranker(POSTERIOR, ITEMS)
LIVE = LiveGeneration(1, 1, POSTERIOR, ITEMS, len(ITEMS), SCORER, RANKER, None)  # type: ignore[arg-type]  # no meta


def record(n: int) -> bytes:
    return pack_records(np.array([n]), POSTERIOR.prior_user[None] + n)[0]


def profile(n: int, ratings: int = 1) -> Profile:
    history = History(np.zeros(ratings, np.int32), np.full(ratings, 3.0), np.zeros(ratings))
    return Profile(n, POSTERIOR.prior_user, history, False)


def held(copies: UserCopies, *user_ids: bytes) -> list[int]:
    found = copies.lookup(LIVE, user_ids)
    assert found.behind == []
    return list(map(int, found.n))


def test_who_was_forgotten_is_not_there_even_when_an_answer_comes_late() -> None:
    copies = UserCopies()
    copies.keep(LIVE, [b"ann", b"bob"], [record(1), record(2)])
    copies.keep_profile(LIVE, b"ann", profile(1))
    copies.forget(0.0)
    copies.age(SETTLED_S - 0.1)
    copies.keep(LIVE, [b"ann"], [record(1)])
    copies.keep_profile(LIVE, b"ann", profile(1))
    assert held(copies, b"ann", b"bob") == [0, 0]
    assert copies.profile(LIVE, b"ann") is None
    copies.age(SETTLED_S)
    copies.keep(LIVE, [b"bob"], [record(2)])
    assert held(copies, b"ann", b"bob") == [0, 2]
    # Elsewhere: from the next poll on.
    copies = UserCopies()
    for at_s, said, there in ((0.0, b"7", 1), (1.0, b"7", 1), (2.0, b"8", 0), (2.0 + SETTLED_S, b"8", 1)):
        copies.age(at_s, said)
        copies.keep(LIVE, [b"ann"], [record(1)])
        assert held(copies, b"ann") == [there]


def test_their_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies_module, "RECORDS_BYTES", 100_000)
    monkeypatch.setattr(copies_module, "PROFILES_BYTES", 100_000)
    copies, last = UserCopies(), 1_200
    ids = [b"%d" % n for n in range(1, last + 1)]
    for n, user_id in enumerate(ids, 1):
        copies.keep(LIVE, [user_id], [record(n)])
        copies.keep_profile(LIVE, user_id, profile(n, 20))
    size = copies_module.OVERHEAD_BYTES + len(record(1))
    found = held(copies, *ids)
    assert 50 < sum(n > 0 for n in found) <= 100_000 // size
    assert found[-1] == last
    known = [user_id for user_id in ids if copies.profile(LIVE, user_id)]
    assert 20 < len(known) <= 100_000 // (size + 20 * 20)
    copies.keep_profile(LIVE, b"long", profile(1, LONGEST_HISTORY + 1))
    assert copies.profile(LIVE, b"long") is None
