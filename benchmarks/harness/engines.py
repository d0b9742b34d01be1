"""The predictors that are compared: Foldin's fit, simple baselines, Surprise, myFM. One configuration each.

Invariant: an engine sees a `Question` only; nothing here is chosen by looking at test ratings or at the data
set's name. Settings of the peers are their documented defaults, or those of their authors' own MovieLens
example.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness.jobs import Array, Question

Predicted = tuple[Array, Array, str]
Engine = Callable[[Question, int], Predicted]
NO_STD = np.empty(0)
REFIT_EVENTS = 5000  # the trainer's default
FOLD_EVENTS = 250  # items follow within a second: so many ratings are made in one by a busy site of this size


def _foldin(question: Question, seed: int) -> Predicted:
    """`factors.fit` with its defaults, asked as the service asks."""
    from factors import FitSettings, Ratings, Scorer, fit

    ratings = Ratings(question.train_user, question.train_item, question.train_value, question.train_time)
    fitted = fit(
        ratings,
        int(question.n_users),
        int(question.n_items),
        settings=FitSettings(_scale(question)),
        rng=np.random.default_rng(seed),
    )
    scorer = Scorer(fitted.model, fitted.items)
    scores = scorer.score(fitted.users, question.test_user, question.test_item, question.test_time)
    sweeps = fitted.metrics.get("sweeps", float("nan"))
    note = f"rank {fitted.model.rank}, {fitted.model.link}, {sweeps:.0f} sweeps"
    return scores.rating, scores.std, note


def _scale(question: Question) -> Any:
    from factors import Scale

    return Scale(float(question.low), float(question.high), float(question.step) or None)


def _global_mean(question: Question, _: int) -> Predicted:
    return np.full(len(question.test_user), question.train_value.mean()), NO_STD, ""


def _item_mean(question: Question, _: int) -> Predicted:
    count = np.bincount(question.train_item, minlength=int(question.n_items))
    total = np.bincount(question.train_item, question.train_value, minlength=int(question.n_items))
    mean = np.where(count > 0, total / np.maximum(count, 1), question.train_value.mean())
    return mean[question.test_item], NO_STD, ""


def _bias(question: Question, _: int) -> Predicted:
    """Koren's baseline (2010): mean + user + item effect, ten rounds of ridge with 15 and 10."""
    mean = question.train_value.mean()
    users, items = np.zeros(int(question.n_users)), np.zeros(int(question.n_items))
    for _round in range(10):
        items = _effect(
            question.train_item, question.train_value - mean - users[question.train_user], len(items), 10
        )
        users = _effect(
            question.train_user, question.train_value - mean - items[question.train_item], len(users), 15
        )
    return _clip(mean + users[question.test_user] + items[question.test_item], question), NO_STD, ""


def _effect(rows: npt.NDArray[np.int32], residual: Array, size: int, ridge: float) -> Array:
    return np.bincount(rows, residual, minlength=size) / (np.bincount(rows, minlength=size) + ridge)


def _clip(rating: Array, question: Question) -> Array:
    return np.clip(rating, question.low, question.high)


def _surprise(make: Callable[[Any, int], Any]) -> Engine:
    def predict(question: Question, seed: int) -> Predicted:
        surprise: Any = import_module("surprise")
        reader = surprise.Reader(rating_scale=(float(question.low), float(question.high)))
        rows = zip(
            question.train_user.tolist(),
            question.train_item.tolist(),
            question.train_value.tolist(),
            strict=True,
        )
        train = surprise.Dataset(reader).construct_trainset(
            [(user, item, value, None) for user, item, value in rows]
        )
        algorithm = make(surprise, seed)
        algorithm.verbose = False
        algorithm.fit(train)
        pairs = zip(question.test_user.tolist(), question.test_item.tolist(), strict=True)
        return np.array([algorithm.predict(user, item).est for user, item in pairs]), NO_STD, "defaults"

    return predict


def _myfm(question: Question, seed: int) -> Predicted:
    """Ids only: Bayesian factorization machine by Gibbs sampling."""
    from scipy import sparse

    myfm: Any = import_module("myfm")

    def one_hot(users: npt.NDArray[np.int32], items: npt.NDArray[np.int32]) -> Any:
        columns = np.column_stack([users, items + int(question.n_users)]).ravel()
        indptr = np.arange(0, len(columns) + 1, 2)
        shape = (len(users), int(question.n_users + question.n_items))
        return sparse.csr_matrix((np.ones(len(columns)), columns, indptr), shape=shape)

    machine = myfm.MyFMRegressor(rank=10, random_seed=seed)
    machine.fit(
        one_hot(question.train_user, question.train_item),
        question.train_value,
        n_iter=300,
        n_kept_samples=280,
        group_shapes=[int(question.n_users), int(question.n_items)],
    )
    rating = machine.predict(one_hot(question.test_user, question.test_item))
    return _clip(rating, question), NO_STD, "rank 10, 300 draws"


def _myfm_full(question: Question, seed: int) -> Predicted:
    """With the day of the rating and what was rated by whom, as in its authors' example for MovieLens."""
    from scipy import sparse

    myfm: Any = import_module("myfm")

    n_users, n_items = int(question.n_users), int(question.n_items)
    rated = sparse.csr_matrix(
        (np.ones(len(question.train_user)), (question.train_user, question.train_item)),
        shape=(n_users, n_items),
    )

    def block(rows: Any) -> Any:
        count = np.maximum(np.asarray(rows.sum(axis=1)).ravel(), 1)
        return sparse.hstack([sparse.eye(rows.shape[0]), sparse.diags(1 / np.sqrt(count)) @ rows]).tocsr()

    user_block, item_block = block(rated), block(rated.T.tocsr())
    days = np.floor(np.nan_to_num(np.concatenate([question.train_time, question.test_time])) / 86_400)
    _, day = np.unique(days, return_inverse=True)
    n_days = int(day.max()) + 1

    def dates(part: npt.NDArray[np.intp]) -> Any:
        return sparse.csr_matrix(
            (np.ones(len(part)), part, np.arange(len(part) + 1)), shape=(len(part), n_days)
        )

    def relations(users: npt.NDArray[np.int32], items: npt.NDArray[np.int32]) -> list[Any]:
        return [myfm.RelationBlock(users, user_block), myfm.RelationBlock(items, item_block)]

    n_train = len(question.train_user)
    machine = myfm.MyFMRegressor(rank=10, random_seed=seed)
    machine.fit(
        dates(day[:n_train]),
        question.train_value,
        X_rel=relations(question.train_user, question.train_item),
        n_iter=512,
        n_kept_samples=500,
        group_shapes=[n_days, n_users, n_items, n_items, n_users],
    )
    rating = machine.predict(dates(day[n_train:]), X_rel=relations(question.test_user, question.test_item))
    return _clip(rating, question), NO_STD, "rank 10, 512 draws, dates and implicit terms"


def _foldin_online(question: Question, seed: int) -> Predicted:
    """Each rating of the training part is predicted before it is learned, in the order given, as the product
    learns.

    A user counts at once (folded in from the whole history), an item after `FOLD_EVENTS` more ratings, and
    everything is refitted, warm, after `REFIT_EVENTS`.
    """
    from benchmarks.harness.online import predict_then_learn

    return predict_then_learn(
        question, _scale(question), seed, refit_events=REFIT_EVENTS, fold_events=FOLD_EVENTS
    )


def _bias_online(question: Question, _: int) -> Predicted:
    """Running shrunk means of user and item around the running mean, each rating predicted before it is
    learned."""
    users, items = np.zeros((int(question.n_users), 2)), np.zeros((int(question.n_items), 2))
    predictions = np.empty(len(question.train_value))
    total, middle = 0.0, float(question.low + question.high) / 2
    rows = zip(
        question.train_user.tolist(), question.train_item.tolist(), question.train_value.tolist(), strict=True
    )
    for i, (user, item, value) in enumerate(rows):
        mean = (total + middle) / (i + 1)
        user_effect = users[user, 0] / (users[user, 1] + 15)
        item_effect = items[item, 0] / (items[item, 1] + 10)
        predictions[i] = mean + user_effect + item_effect
        total += value
        users[user] += (value - mean - item_effect, 1)
        items[item] += (value - mean - user_effect, 1)
    return _clip(predictions, question), NO_STD, ""


ENGINES: dict[str, Engine] = {
    "foldin": _foldin,
    "global mean": _global_mean,
    "item mean": _item_mean,
    "bias": _bias,
    "Surprise SVD": _surprise(lambda surprise, seed: surprise.SVD(random_state=seed)),
    "Surprise SVD++": _surprise(lambda surprise, seed: surprise.SVDpp(random_state=seed)),
    "Surprise KNNBaseline": _surprise(lambda surprise, _: surprise.KNNBaseline(verbose=False)),
    "myFM": _myfm,
    "myFM, dates and implicit": _myfm_full,
    "foldin online": _foldin_online,
    "bias online": _bias_online,
}
