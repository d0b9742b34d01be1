"""Engines that rank, as others know them: item-based neighbours, ALS for implicit feedback, EDLAE.

Invariant: each is tuned by `tuning.tuned` alone, over values round those of its authors. Every rating counts
as a choice, whatever its value.
"""

# What only some peers need is imported in their functions: the memory of an engine is measured with all
# libraries that its process has loaded.

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.rivals.tuning import Rank, Setting, tuned
from evaluation.errors import NotInstalledError
from evaluation.offline.ranking.lists import top_by_score
from evaluation.question import Array, ComparedEngine, Predicted, Question, Rows

# Of neighbours, as Dacrema et al. (2019) try them; half as many and twice as many are the next.
KNN_NEIGHBOURS, KNN_SHRINK = (12, 25, 50, 100, 200, 400, 800), (0, 3, 6, 12, 25, 50, 100, 200, 400)
ALS_FACTORS = (16, 32, 64, 128)  # the library's default is 64
# Far above the library's default of 0.01, which is for counts.
ALS_RIDGES = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256)
ALS_ALPHAS = (0.5, 1, 2, 4, 8, 16, 32)  # its default is 1, Hu, Koren and Volinsky have 40
ITEMS_AT_ONCE = 1_000  # their similarities to 10,000 others take 40 MB
IALS_RANK = 128  # the smallest of the authors' for MovieLens 20M
# The authors find 0.1 for MovieLens 20M, where pairs are fewer for each choice.
IALS_ALPHAS = (0.012, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
IALS_RIDGES = (0.00075, 0.0015, 0.003, 0.006, 0.012, 0.025, 0.05, 0.1)  # they find 0.003
EDLAE_RIDGES = (2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)  # of events of an item
EDLAE_DROPOUTS = (0.05, 0.1, 0.2, 0.33, 0.5, 0.66, 0.8)  # 0.33 to 0.5 is best in the paper
EDLAE_MOST = 20_000  # a dense matrix of so many rows takes 3.2 GB


def chosen_by(question: Question) -> Any:
    """Return who has rated what, float32 ones (n_users, n_items) as a CSR matrix of `scipy`."""
    from scipy import sparse

    pairs = (question.train_user, question.train_item)
    ones = np.ones(len(question.train_user), dtype=np.float32)
    return sparse.csr_matrix((ones, pairs), shape=(question.n_users, question.n_items))


def neighbours(question: Question, setting: Setting, _: int) -> Rows:
    """Rank by the similarity of an item to those in the history: cosine, shrunk, of so many neighbours."""
    from scipy import sparse

    n_neighbours, shrink = min(int(setting[0]), question.n_items), setting[1]
    chosen = chosen_by(question)
    of_items = chosen.T.tocsr()
    length = np.sqrt(np.bincount(question.train_item, minlength=question.n_items)).astype(np.float32)
    similar = []
    for start in range(0, question.n_items, ITEMS_AT_ONCE):
        block = slice(start, start + ITEMS_AT_ONCE)
        cosine = (of_items[block] @ chosen).toarray()
        # Of an item without ratings all is 0, so what it is divided by does not matter.
        cosine /= np.maximum(length[block, None] * length + shrink, 1.0)
        own = np.arange(len(cosine))
        cosine[own, start + own] = 0.0
        nearest = np.partition(cosine, -n_neighbours, axis=1)[:, -n_neighbours, None]
        similar.append(sparse.csr_matrix(np.where(cosine >= nearest, cosine, 0.0)))
    table = sparse.vstack(similar).T.tocsr()
    return top_by_score(question, lambda users: (chosen[users] @ table).toarray())


def implicit_als(question: Question, setting: Setting, seed: int) -> Rows:
    """Rank by the ALS of the library `implicit`."""
    factors, ridge, alpha = setting
    from threadpoolctl import threadpool_limits

    als: Any = import_module("implicit.cpu.als")
    chosen, users = chosen_by(question), question.ranked_users()
    # The library parallelizes by itself; BLAS threads beneath it would fight for the core.
    with threadpool_limits(limits=1, user_api="blas"):
        model = als.AlternatingLeastSquares(
            factors=int(factors), regularization=ridge, alpha=alpha, num_threads=1, random_state=seed
        )
        model.fit(chosen, show_progress=False)
        top, scores = model.recommend(users, chosen[users], N=question.top)
    # What was rated stands at the end of a list that would be too short without it, with the lowest score.
    return np.where(scores > np.finfo(np.float32).min, top, -1).astype(np.int32)


def ials(question: Question, setting: Setting, seed: int) -> Rows:
    """Rank by `ials.fit`."""
    from benchmarks.rivals.ials import fit

    alpha, ridge = setting
    users, items = fit(chosen_by(question), IALS_RANK, alpha, ridge, np.random.default_rng(seed))
    return top_by_score(question, lambda rows: users[rows] @ items.T)


def edlae(question: Question, setting: Setting, _: int) -> Rows:
    """Rank by the autoencoder of Steck, *Autoencoders that don't overfit towards the identity* (2020):
    `X B` with `B = I - C / diag(C)`, `C = (X'X + ridge + p / (1 - p) diag(X'X))^-1`.

    Raises `NotInstalledError` where the dense matrix is too large.
    """
    if min(question.n_users, question.n_items) > EDLAE_MOST:
        raise NotInstalledError(f"dense: for up to {EDLAE_MOST:,} users or items")
    ridge, dropout = setting
    known = chosen_by(question)
    counts = np.bincount(question.train_item, minlength=question.n_items)
    penalty = np.asarray(ridge + dropout / (1 - dropout) * counts, dtype=np.float64)
    shifted, diagonal = shifted_inverse(known.toarray().astype(np.float64), penalty)
    return top_by_score(question, lambda users: known[users].toarray() - shifted[users] / diagonal)


def ease(question: Question, setting: Setting, seed: int) -> Rows:
    """Rank by the autoencoder of Steck, *Embarrassingly shallow autoencoders* (2019): without dropout."""
    return edlae(question, (*setting, 0.0), seed)


def shifted_inverse(known: Array, penalty: Array) -> tuple[Array, Array]:
    """Return `X C` and the diagonal of `C = (X'X + diag(penalty))^-1` for `known`, X (n_users, n_items)."""
    if known.shape[1] <= known.shape[0]:
        inverse = np.asarray(np.linalg.inv(known.T @ known + np.diag(penalty)), np.float64)
        return known @ inverse, np.diag(inverse)
    # With fewer users than items (Woodbury): C = D - D X' (I + X D X')^-1 X D, D = diag(1 / penalty).
    scaled = known / penalty
    kernel = np.eye(len(known)) + scaled @ known.T
    shifted = np.asarray(np.linalg.solve(kernel, scaled), dtype=np.float64)
    return shifted, 1.0 / penalty - np.einsum("ui,ui->i", scaled, shifted)


def _tuned(title: str, rank: Rank, axes: Mapping[str, Sequence[float]], note: str = "") -> ComparedEngine:
    def predict(question: Question, seed: int) -> Predicted:
        """Choose a setting and rank with it."""
        if not question.top:
            return Predicted()
        top, setting, tried = tuned(question, rank, list(axes.values()), seed)
        chosen = ", ".join(f"{name} {value:g}" for name, value in zip(axes, setting, strict=True))
        return Predicted(top=top, note=f"{note}{chosen}, of {tried} tried")

    return ComparedEngine(title, predict)


RANKING_PEERS: dict[str, ComparedEngine] = {
    "item-knn": _tuned("item-kNN, tuned", neighbours, {"neighbours": KNN_NEIGHBOURS, "shrink": KNN_SHRINK}),
    "implicit-als": _tuned(
        "implicit's ALS, tuned",
        implicit_als,
        {"factors": ALS_FACTORS, "ridge": ALS_RIDGES, "alpha": ALS_ALPHAS},
    ),
    "ials": _tuned("iALS, tuned", ials, {"alpha": IALS_ALPHAS, "ridge": IALS_RIDGES}, f"rank {IALS_RANK}, "),
    "ease": _tuned("EASE, tuned", ease, {"ridge": EDLAE_RIDGES}),
    "edlae": _tuned("EDLAE, tuned", edlae, {"ridge": EDLAE_RIDGES, "dropout": EDLAE_DROPOUTS}),
}
