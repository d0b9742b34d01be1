"""A small data set for the tests of the evaluation."""

import numpy as np

from evaluation.offline.data import DataSet
from factors import Ratings, Scale


def made(n: int = 300, *, times: bool = True, seed: int = 1) -> DataSet:
    """Random ratings of 30 users and 20 items, no pair twice."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(600)[:n]
    time = rng.uniform(1e9, 2e9, n) if times else np.full(n, np.nan)
    ratings = Ratings(
        (pairs // 20).astype(np.int32),
        (pairs % 20).astype(np.int32),
        rng.integers(1, 6, n).astype(float),
        time,
    )
    return DataSet("made", ratings, 30, 20, Scale(1, 5, 1))
