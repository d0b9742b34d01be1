"""The loops that fold in one history give what `half_step` gives: run as plain Python for every term."""

import itertools
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from factors import Columns, Float32s, Histories, PosteriorModel, posterior_of
from factors.inference.compiled import history, history_kernels, object_code
from factors.model.layout import Layout, pack
from factors.model.parameters import ColdStart, Parameters, Side, to_model
from factors.model.types import Float64s
from factors.posterior.rating_posterior import RatingPosterior
from featurestore.users import compiled
from tests.unit.factors.factors_world import STARS

DAY, BEGIN, N_ITEMS = 86_400.0, 8.8e8, 40
# Between the last digits of float32: covariances of items are read as codes, or decoded.
CLOSE: dict[str, Any] = {"rtol": 3e-6, "atol": 1e-6}
PLAIN = history_kernels.fold_in


def spread(rng: np.random.Generator, dim: int, size: float) -> Float64s:
    """A covariance (dim, dim)."""
    root = rng.normal(0, size, (dim, 2 * dim))
    return np.asarray(root @ root.T / dim)


def side_of(rng: np.random.Generator, layout: Layout, *, cold: bool, columns: int, sitting: float) -> Side:
    """A side of random priors, with sittings of a length."""
    dim = layout.dim
    matrices = [spread(rng, dim, 0.6) for _ in range(2)]
    effects = [rng.normal(0, 0.1, (columns, dim)) if columns else None for _ in range(2)]
    means = rng.normal(0, 0.3, (3, dim))
    first, second = matrices
    inverses: list[Float64s] = [np.asarray(np.linalg.inv(each), np.float64) for each in matrices]
    start = ColdStart(means[1], 0.1 * means[2], 30.0, second, inverses[1], effects[1])
    return Side(
        *(layout, means[0], first, inverses[0]),
        *(DAY * (layout.slots > 0), 0.2 * (layout.slots > 0), 2.0),
        cold_start=start if cold else None,
        attribute_effects=effects[0],
        sitting_length=sitting,
        sitting_variance=0.15 * (sitting > 0),
    )


def world(
    seed: int, link: str, rank: int, *, slots: tuple[int, int] = (0, 0), cold: bool = True, columns: int = 0
) -> tuple[PosteriorModel, Float32s]:
    """A model of random parameters and its item table, of which a third has no implicit effects. Users of 2
    and of 16 slots have sittings.
    """
    rng, sitting = np.random.default_rng(seed), 4 * DAY * (slots[0] in (2, 16))
    layouts = [Layout(rank, each) for each in slots]
    users, items = (
        side_of(rng, layout, cold=cold, columns=n, sitting=length)
        for layout, n, length in zip(layouts, (columns, 0), (sitting, 0.0), strict=True)
    )
    cuts = np.array([-1.5, -0.4, 0.3, 1.6]) if link == "ordinal" else np.zeros(0)
    model = to_model(Parameters(link, STARS, 0.1, 0.7, users, items, cuts))  # type: ignore[arg-type]
    posterior, layout = posterior_of(model), layouts[1]
    rows = np.zeros((N_ITEMS, layout.width))
    rows[:, layout.mean] = rng.normal(0, 0.8, (N_ITEMS, layout.dim))
    rows[:, layout.covariance] = pack(np.stack([spread(rng, layout.dim, 0.2) for _ in range(N_ITEMS)]))
    rows[::3, layout.implicit_effect] = rng.normal(0, 0.1, (len(rows[::3]), layout.dim))
    rows[:, layout.keys] = BEGIN // DAY + np.arange(layout.slots)
    rows[:, layout.effects] = rng.normal(0, 0.3, (N_ITEMS, layout.slots))
    rows[:, layout.variances] = 0.05
    return posterior, posterior.item_codec.encode(rows)


def histories(seed: int, lengths: list[int]) -> Histories:
    """Random ratings with repeats, some taken back, of unknown items, of unknown times, off the scale."""
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    value: Float64s = rng.integers(1, 6, n).astype(np.float64) + rng.choice(
        [0.0, 0.4, 7.0], n, p=[0.8, 0.1, 0.1]
    ).astype(np.float64)
    value[rng.random(n) < 0.1] = np.nan
    time: Float64s = BEGIN + rng.integers(0, 30, n).astype(np.float64) * DAY
    time[rng.random(n) < 0.1] = np.nan
    item = rng.integers(-2, N_ITEMS + 4, n).astype(np.int32)
    return Histories(np.concatenate([[0], np.cumsum(lengths)]), item, value, time)


def both(
    monkeypatch: pytest.MonkeyPatch, posterior: PosteriorModel, loop: history.Loop, *given: Any, **more: Any
) -> tuple[Float32s, Float32s]:
    """Rows by numpy and by `loop`."""
    with monkeypatch.context() as patch:
        patch.setattr(history.LOADED, "loop", None)
        expected = posterior.fold_in_users(*given, **more)
    with monkeypatch.context() as patch:
        patch.setattr(history.LOADED, "loop", loop)
        patch.setattr("factors.posterior.rating_posterior.half_step", lambda *_, **__: pytest.fail("numpy"))
        return expected, posterior.fold_in_users(*given, **more)


LENGTHS = [0, 1, 2, 3, 5, 0, 17, 60]


@pytest.mark.parametrize(
    ("link", "rank", "slots", "cold"),
    [
        *itertools.product(["gaussian", "ordinal"], [1, 3, 4], [(0, 0), (3, 0), (2, 4)], [True, False]),
        ("ordinal", 9, (16, 2), True),
    ],
)
def test_plain_loops_give_what_numpy_gives(
    monkeypatch: pytest.MonkeyPatch, link: str, rank: int, slots: tuple[int, int], cold: bool
) -> None:
    posterior, items = world(rank, link, rank, slots=slots, cold=cold)
    given = histories(rank, LENGTHS)
    current = np.repeat(posterior.prior_user[None], len(LENGTHS), axis=0)
    # Users who were in the fit have implicit effects of their own, which are kept.
    current[::2, posterior.parameters.users.layout.implicit_effect] = 0.25
    for more in ({}, {"current": current}, {"current": current, "at": BEGIN + 4 * DAY}):
        expected, found = both(monkeypatch, posterior, PLAIN, items, given, **more)
        np.testing.assert_allclose(found, expected, **CLOSE)


def test_attributes_are_part_of_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior, items = world(5, "ordinal", 2, columns=3)
    table = np.random.default_rng(3).normal(size=(len(LENGTHS) - 1, 3))
    row, column = np.indices(table.shape).astype(np.float64)
    cells: Float64s = np.stack([row.ravel(), column.ravel(), table.ravel()])
    attributes = Columns.of(cells, table.mean(axis=0), len(LENGTHS))
    expected, found = both(monkeypatch, posterior, PLAIN, items, histories(5, LENGTHS), attributes=attributes)
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_a_long_history_is_thinned_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factors.inference.compiled.history.compress", thinned_to_ten)
    monkeypatch.setattr("factors.posterior.rating_posterior.compress", thinned_to_ten)
    monkeypatch.setattr("factors.inference.compiled.history.RECENT", 0)
    monkeypatch.setattr("factors.inference.compiled.history.SAMPLED", 10)
    posterior, items = world(6, "ordinal", 2, slots=(2, 0))
    expected, found = both(monkeypatch, posterior, PLAIN, items, histories(6, [30, 4, 38]))
    np.testing.assert_allclose(found, expected, **CLOSE)


def thinned_to_ten(given: Histories, n_other: int, *, whole: bool) -> Any:
    """`compress` that leaves at most ten entries of a history."""
    from factors.inference.histories import compress

    data = compress(given, N_ITEMS + 9, whole=True).thinned(4, 6)
    data.other[(data.other < 0) | (data.other >= n_other)] = -1
    assert not whole
    return data


@pytest.mark.parametrize("noise", [1e-6, 1e-3, 50.0])
def test_worlds_without_noise_and_of_noise_alone(monkeypatch: pytest.MonkeyPatch, noise: float) -> None:
    posterior, items = world(8, "ordinal", 2)
    posterior = posterior_of(to_model(replace(posterior.parameters, noise=noise)))
    expected, found = both(monkeypatch, posterior, PLAIN, items, histories(8, LENGTHS))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_has_no_posterior_is_left_to_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior, items = world(9, "ordinal", 2)
    items[:, 4] = np.nan
    assert isinstance(posterior, RatingPosterior)
    given = histories(9, [6])
    monkeypatch.setattr(history.LOADED, "loop", PLAIN)
    assert not np.isfinite(posterior.fold_in_users(items, given)).all()


def test_arrays_are_as_the_compiled_code_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another type, order or number of arrays would be read as garbage."""
    from factors.inference.compiled.object_code import _KINDS

    def checked(*arrays: Any) -> int:
        assert [array.dtype.name for array in arrays] == list(_KINDS)
        assert all(array.flags.c_contiguous for array in arrays)
        return PLAIN(*arrays)

    posterior, items = world(4, "ordinal", 2, slots=(2, 3))
    given = histories(4, LENGTHS)
    columns = given.other_row, given.value, given.time
    # Every second number of arrays twice as long.
    strided = Histories(given.offsets, *(np.repeat(column, 2)[::2] for column in columns))  # type: ignore[arg-type]
    expected, found = both(monkeypatch, posterior, checked, items, strided)
    np.testing.assert_allclose(found, expected, **CLOSE)
    # A table that is no block of memory is left to numpy.
    monkeypatch.setattr(history.LOADED, "loop", lambda *_: pytest.fail("read as a block"))
    posterior.fold_in_users(np.asfortranarray(items), given)


@pytest.mark.parametrize(("rank", "length", "kept"), [(4, 60, True), (4, 1_900, True), (60, 60, False)])
def test_a_call_that_takes_long_gives_the_interpreters_lock_up(
    monkeypatch: pytest.MonkeyPatch, rank: int, length: int, kept: bool
) -> None:
    loop, taken = object.__new__(object_code.NativeLoop), list[bool]()

    def called(*, brief: bool) -> int:
        taken.append(brief)
        # No user is folded in: numpy does it.
        return 0

    loop._brief, loop._long = (lambda *_, at=at: called(brief=at) for at in (True, False))  # type: ignore[assignment]
    posterior, items = world(rank, "gaussian", rank)
    monkeypatch.setattr(history.LOADED, "loop", loop)
    posterior.fold_in_users(items, histories(rank, [length]))
    assert taken == [kept]


@pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed (extra `fast`)")
@pytest.mark.timeout(600)
def test_compiled_code_gives_what_the_plain_loops_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made once for a machine, as `make setup` does."""
    path = compiled.HOME / compiled.file_name()
    compiled.main([])
    code = compiled.kept([path])
    assert code is not None
    loop = object_code.load_code(code)
    for rank, slots, link in itertools.product((1, 4, 9, 17), ((0, 0), (3, 2)), ("gaussian", "ordinal")):
        posterior, items = world(rank, link, rank, slots=slots)
        for lengths in ([], [0], [1], [0, 3, 2, 4000, 31], [2048], [5] * 300):
            expected, found = both(monkeypatch, posterior, loop, items, histories(rank, lengths))
            np.testing.assert_allclose(found, expected, **CLOSE)
    items[:, 4] = np.nan
    monkeypatch.setattr(history.LOADED, "loop", loop)
    assert np.isnan(posterior.fold_in_users(items, histories(1, [40]))).any()
