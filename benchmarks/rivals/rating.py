"""Engines of other libraries that rate, where they are installed: Surprise, myFM.

Invariant: settings are the documented defaults, or those of the authors' own MovieLens example.
"""

# What only some peers need is imported in their functions: it may not be installed, and the memory of an
# engine is measured with all libraries that its process has loaded.

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.question import ComparedEngine, Predict, Predicted, Question, Rows

DAY_S = 86_400  # seconds
MYFM_RANK = 10  # as in its authors' example for MovieLens


def _surprise(make: Callable[[Any, int], Any]) -> Predict:
    def predict(question: Question, seed: int) -> Predicted:
        surprise: Any = import_module("surprise")
        reader = surprise.Reader(rating_scale=(question.low, question.high))
        # Rows as raw ids: the rows of a question are as good as any.
        columns = (question.train_user, question.train_item, question.train_value)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        train = surprise.Dataset(reader).construct_trainset([(*row, None) for row in rows])
        algorithm = make(surprise, seed)
        algorithm.verbose = False
        algorithm.fit(train)
        pairs = zip(question.test_user.tolist(), question.test_item.tolist(), strict=True)
        rating = np.array([algorithm.predict(user, item).est for user, item in pairs], dtype=np.float64)
        return Predicted(rating, note="defaults")

    return predict


def _myfm(question: Question, seed: int) -> Predicted:
    """Bayesian factorization machine by Gibbs sampling, of user and item alone."""
    from scipy import sparse

    myfm: Any = import_module("myfm")

    def one_hot(users: Rows, items: Rows) -> Any:
        # Two ones a line: the user's column, and the item's after those of all users.
        columns = np.column_stack([users, items + question.n_users]).ravel()
        indptr = np.arange(0, len(columns) + 1, 2)
        shape = (len(users), question.n_users + question.n_items)
        return sparse.csr_matrix((np.ones(len(columns)), columns, indptr), shape=shape)

    machine = myfm.MyFMRegressor(rank=MYFM_RANK, random_seed=seed)
    machine.fit(
        one_hot(question.train_user, question.train_item),
        question.train_value,
        n_iter=300,
        n_kept_samples=280,  # the first 20 draws are burn-in
        group_shapes=[question.n_users, question.n_items],
    )
    rating = machine.predict(one_hot(question.test_user, question.test_item))
    return Predicted(question.clip(rating), note="rank 10, 300 draws")


def _myfm_full(question: Question, seed: int) -> Predicted:
    """The same with the day of the rating and the rated sets, as in its authors' example for MovieLens."""
    from scipy import sparse

    myfm: Any = import_module("myfm")

    n_users, n_items = question.n_users, question.n_items
    rated = sparse.csr_matrix(
        (np.ones(len(question.train_user)), (question.train_user, question.train_item)),
        shape=(n_users, n_items),
    )

    def block(rows: Any) -> Any:
        count = np.maximum(np.asarray(rows.sum(axis=1)).ravel(), 1)
        return sparse.hstack([sparse.eye(rows.shape[0]), sparse.diags(1 / np.sqrt(count)) @ rows]).tocsr()

    user_block, item_block = block(rated), block(rated.T.tocsr())
    # Days of training and test together: a day that only the test has gets a column, too.
    days = np.floor(np.nan_to_num(np.concatenate([question.train_time, question.test_time])) / DAY_S)
    _, day = np.unique(days, return_inverse=True)
    n_days = int(day.max()) + 1

    def dates(part: npt.NDArray[np.intp]) -> Any:
        return sparse.csr_matrix(
            (np.ones(len(part)), part, np.arange(len(part) + 1)), shape=(len(part), n_days)
        )

    def relations(users: Rows, items: Rows) -> list[Any]:
        return [myfm.RelationBlock(users, user_block), myfm.RelationBlock(items, item_block)]

    n_train = len(question.train_user)
    machine = myfm.MyFMRegressor(rank=MYFM_RANK, random_seed=seed)
    machine.fit(
        dates(day[:n_train]),
        question.train_value,
        X_rel=relations(question.train_user, question.train_item),
        n_iter=512,
        n_kept_samples=500,
        group_shapes=[n_days, n_users, n_items, n_items, n_users],
    )
    rating = machine.predict(dates(day[n_train:]), X_rel=relations(question.test_user, question.test_item))
    return Predicted(question.clip(rating), note="rank 10, 512 draws, dates and implicit terms")


PEERS: dict[str, ComparedEngine] = {
    "surprise-svd": ComparedEngine("Surprise SVD", _surprise(lambda s, seed: s.SVD(random_state=seed))),
    "surprise-svd++": ComparedEngine("Surprise SVD++", _surprise(lambda s, seed: s.SVDpp(random_state=seed))),
    "surprise-knn": ComparedEngine(
        "Surprise KNNBaseline", _surprise(lambda s, _: s.KNNBaseline(verbose=False))
    ),
    "myfm": ComparedEngine("myFM", _myfm),
    "myfm-full": ComparedEngine("myFM, dates and implicit terms", _myfm_full),
}
