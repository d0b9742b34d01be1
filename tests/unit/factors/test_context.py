"""Contexts of ratings: how they are encoded, what a fit learns of them, and that folding in reads them as the
fit does."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from environment.world import WorldOptions, make_world
from factors import (
    FitRefused,
    FitSettings,
    Fitted,
    Float32s,
    Histories,
    Link,
    ModelUnreadable,
    Ratings,
    Scorer,
    explain,
    fit,
    from_bytes,
    posterior_of,
    to_bytes,
)
from factors.inference.backend import NumpyBackend
from factors.inference.entry_moments import HalfStepInput
from factors.inference.half_step import half_step
from factors.model.context import MOST_CONTEXT_COLUMNS, learn_context_encoding
from factors.training.fit import prepare
from factors.training.terms import terms_of
from tests.unit.factors.factors_world import STARS, histories_of

USERS, ITEMS, FIELDS = 60, 80, 3
KINDS = ("number",) * FIELDS


def world(seed: int, n: int, n_known: int) -> tuple[Ratings, Ratings]:
    """Known and later ratings of a world whose variables move each rating."""
    made = make_world(seed, WorldOptions(USERS, ITEMS, n_known, n_variables=FIELDS))
    nothing = np.full(n, np.nan)
    context = made.variables[:n].astype(np.float32)
    found = Ratings(made.user[:n], made.item[:n], made.rating[:n].astype(float), nothing, context)
    return found.take(np.arange(n_known)), found.take(np.arange(n_known, n))


def fitted(ratings: Ratings, link: Link = "ordinal", **more: object) -> Fitted:
    settings = FitSettings(STARS, link=link)
    rng = np.random.default_rng(3)
    return fit(ratings, USERS, ITEMS, settings=settings, rng=rng, context_kinds=KINDS, **more)  # type: ignore[arg-type]


def errors(found: Fitted, test: Ratings, context: Float32s | None) -> float:
    scorer = Scorer(found.posterior, found.items)
    scores = scorer.score(found.users, test.user_row, test.item_row, context=context)
    return float(np.mean((scores.rating - test.value) ** 2))


def in_context(ratings: Ratings, *, by: str) -> Histories:
    own = ratings.user_row if by == "user" else ratings.item_row
    order = np.argsort(own, kind="stable")
    assert ratings.context is not None
    rows = USERS if by == "user" else ITEMS
    return replace(histories_of(ratings, rows, by=by), context=ratings.context[order])


@pytest.fixture(scope="module", params=["gaussian", "ordinal"])
def moved(request: pytest.FixtureRequest) -> tuple[Fitted, Ratings, Ratings]:
    known, later = world(5, 3_400, 2_400)
    return fitted(known, request.param), known, later


@pytest.mark.slow
def test_what_shifts_and_turns_the_taste_is_learned(moved: tuple[Fitted, Ratings, Ratings]) -> None:
    found, known, later = moved
    plain = fitted(replace(known, context=None), found.model.link)
    assert found.posterior.reads_context
    assert not plain.posterior.reads_context
    # Variables make about a fifth of the variance of the scores, and nearly all of that can be known.
    assert errors(found, later, later.context) < 0.5 * errors(plain, later, None)
    # Who is asked without them is answered for the mean of all.
    assert errors(found, later, None) < 1.1 * errors(plain, later, None)


def test_folding_in_a_full_history_gives_the_row_of_the_fit(moved: tuple[Fitted, Ratings, Ratings]) -> None:
    found, known, _ = moved
    posterior, histories = found.posterior, in_context(known, by="user")
    rows = posterior.fold_in_users(found.items, histories, current=found.users)
    np.testing.assert_allclose(rows, found.users, rtol=2e-4, atol=2e-5)
    alone = posterior.fold_in_users(found.items, histories.part(7, 8), current=found.users[7:8])
    np.testing.assert_allclose(alone[0], found.users[7], rtol=2e-4, atol=2e-5)
    without = posterior.fold_in_users(found.items, replace(histories, context=None), current=found.users)
    assert np.abs(without - found.users).max() > 0.05


@pytest.mark.slow
def test_items_are_folded_in_with_users_as_they_were_then(moved: tuple[Fitted, Ratings, Ratings]) -> None:
    found, known, _ = moved
    posterior = found.posterior
    items = posterior.fold_in_items(found.users, in_context(known, by="item"), current=found.items)
    by_item = prepare(known, USERS, ITEMS, FitSettings(STARS)).by_other(ITEMS)
    step = half_step(HalfStepInput.of(posterior.parameters, "item", found.users, by_item))
    kept = posterior.item_codec.decode(items)
    layout = posterior.parameters.items.layout
    np.testing.assert_allclose(kept[:, layout.mean], step.rows[:, layout.mean], rtol=1e-4, atol=1e-4)


def test_a_half_step_is_the_regression_on_shifted_users() -> None:
    """The users' half-step with the Gaussian link, entry by entry with matrices."""
    known, _ = world(5, 900, 900)
    found = fitted(known, "gaussian")
    parameters = found.posterior.parameters
    layout, items = parameters.users.layout, found.posterior.item_codec.decode(found.items).astype(float)
    data = prepare(known, USERS, ITEMS, FitSettings(STARS))
    rows = half_step(HalfStepInput.of(parameters, "user", items, data)).rows
    assert parameters.context is not None
    assert data.context is not None
    shift = parameters.context.shifts(data.context)
    dim = layout.dim
    triangle = np.tril_indices(dim)
    for user in range(0, USERS, 11):
        precision = parameters.users.precision.copy()
        linear = precision @ parameters.users.mean
        for entry in range(data.indptr[user], data.indptr[user + 1]):
            item = items[data.other[entry]]
            covariance = np.zeros((dim, dim))
            covariance[triangle] = item[layout.covariance]
            covariance = covariance + covariance.T - np.diag(np.diag(covariance))
            feature = np.append(item[layout.latent], 1.0)
            second, cross = np.outer(feature, feature), feature * item[layout.bias]
            second[:-1, :-1] += covariance[:-1, :-1]
            cross[:-1] += covariance[:-1, -1]
            precision += second / parameters.noise
            value = data.value[entry] - parameters.mean
            linear += (feature * value - cross - second @ shift[entry]) / parameters.noise
        mean = np.linalg.solve(precision, linear)
        np.testing.assert_allclose(rows[user, layout.mean], mean, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_shifted_users_get_the_scores_of_their_context(moved: tuple[Fitted, Ratings, Ratings]) -> None:
    found, _, later = moved
    assert later.context is not None
    scorer = Scorer(found.posterior, found.items)
    asked = later.user_row[:50], later.item_row[:50]
    scores = scorer.score(found.users, *asked, context=later.context[:50])
    users = found.posterior.shift_users(found.users[asked[0]], later.context[:50])
    again = scorer.score(users, None, asked[1])
    np.testing.assert_allclose(again.rating, scores.rating, rtol=1e-6)
    np.testing.assert_allclose(again.std, scores.std, rtol=1e-6)
    one = scorer.score(found.users, asked[0][:1], asked[1][:1], context=later.context[:1])
    assert one.rating[0] == scores.rating[0]


def test_contributions_add_up_to_the_score_in_a_context(moved: tuple[Fitted, Ratings, Ratings]) -> None:
    found, known, later = moved
    assert later.context is not None
    history = in_context(known, by="user").part(4, 5)
    context = later.context[:1]
    reasons = explain(found.posterior, found.items, history, 9, current=found.users[4:5], context=context)
    scorer = Scorer(found.posterior, found.items)
    score = scorer.score(found.users[4:5], None, np.array([9]), context=context)
    assert reasons.base + reasons.contributions.sum() == pytest.approx(score.rating[0], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("link", ["gaussian", "ordinal"])
def test_a_context_that_says_nothing_is_left_out(link: Link) -> None:
    known, _ = world(6, 2_000, 2_000)
    noise = np.random.default_rng(0).standard_normal((2_000, FIELDS)).astype(np.float32)
    without = fitted(replace(known, context=None), link)
    found = fitted(replace(known, context=noise), link)
    assert not found.posterior.reads_context
    assert "context_effects" not in found.model.parameters
    np.testing.assert_array_equal(found.users, without.users)
    np.testing.assert_array_equal(found.items, without.items)


def test_a_model_without_the_term_has_no_word_of_it() -> None:
    known, _ = world(6, 600, 600)
    plain = replace(known, context=None)
    found = fitted(plain)
    assert not [name for name in found.model.parameters if "context" in name]
    unknown = fitted(replace(known, context=np.full((600, FIELDS), np.nan, dtype=np.float32)))
    assert to_bytes(unknown.model) == to_bytes(found.model)
    np.testing.assert_array_equal(unknown.users, found.users)
    scorer = Scorer(found.posterior, found.items)
    asked = (found.users, plain.user_row[:9], plain.item_row[:9])
    context = known.context[:9] if known.context is not None else None
    np.testing.assert_array_equal(scorer.score(*asked, context=context).rating, scorer.score(*asked).rating)


def test_a_model_keeps_what_contexts_do(moved: tuple[Fitted, Ratings, Ratings]) -> None:
    found, _, later = moved
    again = posterior_of(from_bytes(to_bytes(found.model)))
    mine, theirs = found.posterior.parameters.context, again.parameters.context
    assert mine is not None
    assert theirs is not None
    np.testing.assert_array_equal(mine.effects, theirs.effects)
    assert later.context is not None
    np.testing.assert_array_equal(mine.shifts(later.context), theirs.shifts(later.context))
    assert terms_of(again.parameters) == terms_of(found.posterior.parameters)
    assert terms_of(again.parameters).context


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("context_numbers", np.array([[0.0, 1.0, 0.0]] * FIELDS)),
        ("context_numbers", np.array([[0.5, 1.0, 1.0]] * FIELDS)),
        ("context_codes", np.zeros((2, 3))),
        ("context_effects", np.zeros((FIELDS, 99))),
    ],
)
def test_stored_effects_that_cannot_be_are_refused(
    moved: tuple[Fitted, Ratings, Ratings], name: str, value: np.ndarray
) -> None:
    found, _, _ = moved
    model = replace(found.model, parameters={**found.model.parameters, name: value})
    with pytest.raises(ModelUnreadable):
        from_bytes(to_bytes(model))


def test_a_refit_goes_on_with_what_was_learned(moved: tuple[Fitted, Ratings, Ratings]) -> None:
    found, known, later = moved
    more = Ratings(*(np.concatenate([getattr(known, name), getattr(later, name)[:100]]) for name in _COLUMNS))
    again = fitted(more, found.model.link, start=found)
    rest = later.take(np.arange(100, 1_000))
    assert again.posterior.reads_context
    assert errors(again, rest, rest.context) < 1.05 * errors(found, rest, rest.context)


_COLUMNS = ("user_row", "item_row", "value", "time", "context")


def test_of_many_ratings_numpy_does_not_look_at_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    known, _ = world(5, 400, 400)
    monkeypatch.setattr(NumpyBackend, "most_apart", 400)
    found, plain = fitted(known), fitted(replace(known, context=None))
    assert not found.posterior.reads_context
    np.testing.assert_array_equal(found.users, plain.users)


@pytest.mark.timeout(600)  # compiling takes 20 s, and several times that on a machine that does other things
@pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed (extra `fast`)")
def test_of_many_ratings_compiled_loops_learn_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    known, later = world(5, 3_400, 2_400)
    expected = fitted(known)
    monkeypatch.setattr("factors.inference.compiled.backend.MANY_RATINGS", 400)
    found = fitted(known)
    assert found.posterior.reads_context
    assert errors(found, later, later.context) < 1.01 * errors(expected, later, later.context)


def test_categories_and_numbers_become_columns() -> None:
    nan = np.nan
    context = np.array([[1.0, 0.0]] * 6 + [[3.0, 1.0]] * 6 + [[nan, 2.0], [nan, nan]], dtype=np.float32)
    encoding = learn_context_encoding(context, ("number", "category"))
    assert encoding is not None
    # The third category has one rating: it has no column.
    assert encoding.width == 3
    columns = encoding.encode(context)
    np.testing.assert_allclose(columns[0], [-1.0, 0.5, -0.5])
    np.testing.assert_allclose(columns[6], [1.0, -0.5, 0.5])
    # What is not given, or was not known to the fit, does nothing; a number that is far off is cut.
    np.testing.assert_array_equal(columns[12:], 0.0)
    np.testing.assert_allclose(encoding.encode(np.array([[1e30, 77.0]], np.float32)), [[4.0, 0.0, 0.0]])
    # Fields that came later say nothing, those that a row does not have neither.
    np.testing.assert_array_equal(encoding.encode(np.ones((1, 1), np.float32)), [[-1.0, 0.0, 0.0]])
    wider = np.array([[1.0, 0.0, 5.0]], np.float32)
    np.testing.assert_allclose(encoding.encode(wider), columns[:1])


def test_one_number_that_is_off_by_far_does_not_silence_a_field() -> None:
    value = np.random.default_rng(1).normal(12.0, 3.0, (500, 1)).astype(np.float32)
    clean = learn_context_encoding(value, ("number",))
    value[7] = 1e38
    spoiled = learn_context_encoding(value, ("number",))
    assert clean is not None
    assert spoiled is not None
    np.testing.assert_allclose(spoiled.numbers, clean.numbers, rtol=0.05)
    # Where nearly all are one number the others still count.
    rare = np.zeros((500, 1), np.float32)
    rare[::20] = 1.0
    found = learn_context_encoding(rare, ("number",))
    assert found is not None
    assert found.numbers[0, 2] == pytest.approx(rare.std(), rel=1e-6)


def test_an_encoding_is_never_wider_than_it_may_be() -> None:
    rng = np.random.default_rng(0)
    context = np.column_stack([rng.standard_normal((4_000, 20)), rng.integers(0, 200, (4_000, 3))])
    kinds = ("number",) * 20 + ("category",) * 3
    encoding = learn_context_encoding(context.astype(np.float32), kinds)  # type: ignore[arg-type]
    assert encoding is not None
    assert encoding.width == MOST_CONTEXT_COLUMNS


def test_a_context_of_another_length_is_refused() -> None:
    known, _ = world(5, 200, 200)
    assert known.context is not None
    with pytest.raises(FitRefused, match="context"):
        fitted(replace(known, context=known.context[:-1]))
