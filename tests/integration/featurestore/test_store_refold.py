"""A user who rates once more keeps what only a fit knows of him, so that no prediction gets worse by it."""

import numpy as np
import pytest

from factors import (
    FitSettings,
    Fitted,
    Float32s,
    Histories,
    Ranker,
    Ratings,
    Scale,
    Scorer,
    fit,
)
from factors.model.layout import user_layout
from featurestore.generations.catalog import GenerationSummary
from featurestore.generations.live import LiveGeneration
from featurestore.ratings.log import NewRating
from featurestore.store import Store
from tests.support.factories import lead
from tests.support.waiting import wait_until_async

N_USERS, N_ITEMS, N_FIT, N_TEST = 150, 80, 4000, 1500


def chosen_ratings(seed: int) -> Ratings:
    """People rate what they like, so that what was rated says something: no pair twice."""
    rng = np.random.default_rng(seed)
    taste, trait = rng.normal(0, 0.8, (N_USERS, 3)), rng.normal(0, 0.8, (N_ITEMS, 3))
    score = taste @ trait.T + rng.normal(0, 0.4, N_USERS)[:, None] + rng.normal(0, 0.5, N_ITEMS)
    utility = score + rng.gumbel(0, 0.7, score.shape)
    order = np.argsort(-utility, axis=None)[: N_FIT + N_TEST]
    order = rng.permutation(order)
    user, item = np.divmod(order, N_ITEMS)
    value = np.clip(np.rint(3.0 + score[user, item] + rng.normal(0, 0.6, len(user))), 1, 5)
    return Ratings(user.astype(np.int32), item.astype(np.int32), value, np.full(len(user), np.nan))


def part(ratings: Ratings, rows: slice) -> Ratings:
    """Some of the ratings."""
    return Ratings(ratings.user_row[rows], ratings.item_row[rows], ratings.value[rows], ratings.time[rows])


def error(fitted: Fitted, users: Float32s, items: Float32s, test: Ratings) -> float:
    """Root mean square error."""
    scores = Scorer(fitted.posterior, items).score(users, test.user_row, test.item_row)
    return float(np.sqrt(np.mean((scores.rating - test.value) ** 2)))


def items_again(fitted: Fitted, users: Float32s, known: Ratings) -> Float32s:
    """All items folded in again, as the trainer does with those that got a rating."""
    order = np.argsort(known.item_row, kind="stable")
    offsets = np.searchsorted(known.item_row[order], np.arange(N_ITEMS + 1)).astype(np.int64)
    histories = Histories(offsets, known.user_row[order], known.value[order], known.time[order])
    return fitted.posterior.fold_in_items(users, histories, current=fitted.items)


@pytest.mark.timeout(60)
async def test_the_error_does_not_jump_when_everybody_rates_once_more(store: Store) -> None:
    ratings = chosen_ratings(5)
    known, more = part(ratings, slice(0, N_FIT)), part(ratings, slice(N_FIT, N_FIT + N_USERS))
    test = part(ratings, slice(N_FIT + N_USERS, None))
    settings = FitSettings(Scale(1.0, 5.0, 1.0), rank=3, link="gaussian", sweeps=15)
    fitted = fit(known, N_USERS, N_ITEMS, settings=settings, rng=np.random.default_rng(0))
    effect = user_layout(fitted.model).implicit_effect
    assert np.abs(fitted.users[:, effect]).max() > 0

    await store.items(1).register([b"%d" % row for row in range(N_ITEMS)])
    await store.ratings.append(
        [
            NewRating(b"%d" % user, b"%d" % item, value, np.nan)
            for user, item, value in zip(known.user_row, known.item_row, known.value, strict=True)
        ]
    )
    ids = [b"%d" % row for row in range(N_USERS)]
    live = await _published(store, fitted, ids, known)
    before = await store.users.current(live, ids)
    assert not before.folded.any()
    np.testing.assert_array_equal(before.vectors, fitted.users)

    await store.ratings.append(
        [
            NewRating(b"%d" % user, b"%d" % item, value, np.nan)
            for user, item, value in zip(more.user_row, more.item_row, more.value, strict=True)
        ]
    )
    after = await store.users.current(live, ids)
    rated = np.unique(more.user_row)
    assert np.array_equal(np.flatnonzero(after.folded), rated)
    np.testing.assert_array_equal(after.vectors[:, effect], fitted.users[:, effect])
    everything = part(ratings, slice(0, N_FIT + N_USERS))
    items = items_again(fitted, after.vectors, everything)
    first = error(fitted, fitted.users, fitted.items, test)
    assert error(fitted, after.vectors, items, test) < first + 0.002

    # It is in what was handed back, too: the next reader, here or elsewhere, has the same.
    async def settled() -> bool:
        return not (await store.users.current(live, ids)).folded.any()

    await wait_until_async(settled, "the records are handed back")
    again = await store.users.current(live, ids)
    np.testing.assert_array_equal(again.vectors, after.vectors)
    profile = await store.users.profile(live, ids[int(rated[0])])
    np.testing.assert_array_equal(profile.vector, after.vectors[rated[0]])


async def _published(store: Store, fitted: Fitted, ids: list[bytes], known: Ratings) -> LiveGeneration:
    draft = GenerationSummary(
        generation=0,
        epoch=1,
        state="writing",
        created=0.0,
        rank=fitted.model.rank,
        link=fitted.model.link,
        engine="variational",
        n_users=N_USERS,
        n_items=N_ITEMS,
        n_ratings=len(known.value),
        metrics={},
    )
    writer = await store.generations.begin(await lead(store), draft, {})
    await writer.write_items(fitted.items, fitted.model)
    n = np.bincount(known.user_row, minlength=N_USERS).astype(np.int64)
    await writer.write_users(ids, n, fitted.users)
    meta = await writer.finish()
    assert await writer.flip()
    return LiveGeneration(
        epoch=1,
        generation=writer.number,
        posterior=fitted.posterior,
        items=fitted.items,
        n_items=N_ITEMS,
        scorer=Scorer(fitted.posterior, fitted.items),
        ranker=Ranker(fitted.posterior, fitted.items),
        meta=meta,
    )


def test_the_world_of_these_tests_jumps_without_it() -> None:
    ratings = chosen_ratings(5)
    known, test = part(ratings, slice(0, N_FIT)), part(ratings, slice(N_FIT + N_USERS, None))
    settings = FitSettings(Scale(1.0, 5.0, 1.0), rank=3, link="gaussian", sweeps=15)
    fitted = fit(known, N_USERS, N_ITEMS, settings=settings, rng=np.random.default_rng(0))
    users = fitted.users.copy()
    users[:, user_layout(fitted.model).implicit_effect] = fitted.posterior.prior_user[
        user_layout(fitted.model).implicit_effect
    ]
    items = items_again(fitted, users, known)
    assert error(fitted, users, items, test) > error(fitted, fitted.users, fitted.items, test) + 0.004
