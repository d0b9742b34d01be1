"""The network of the neural engine, trained through the fold-in: its last layer is Bayesian, solved exactly.

Invariant: what is trained is what is published. A user in the loss is the closed-form posterior from a part
of the user's ratings, and the loss is how well that predicts the rest.

Each item has an embedding. A small residual network makes of the embedding and of inputs about the item
(count, mean and deviation of its ratings) the features `q`, the bias `b` and the implicit effect `beta`. A
user's weights on `[q, 1]` are Gaussian with learned prior `N(m + sum beta / sqrt(count), P^-1)`, as in a
fold-in. So the last layer is Bayesian linear regression (Snoek et al., 2015), trained by holding ratings out,
as in meta learning (Harrison et al., 2018).
"""

import math
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from factors import Float64s, Int64s
from factors.engine_api import Compressed, ItemPoints, initial_std

# The optional library without its types, so that checks are the same with it and without.
torch: Any = import_module("torch")
Tensor = Any

# Ratings of one user that one step reads: the normal matrices of a batch are padded to its longest user.
_LONGEST = 256


class _Network:
    """The parameters, and what follows from them for items and for the prior of users."""

    def __init__(self, begin: ItemPoints, inputs: Tensor, generator: Any) -> None:
        dim = begin.vectors.shape[1]
        self._dim = dim
        self.embedding = torch.nn.Parameter(torch.tensor(begin.vectors, dtype=torch.float32))
        self.effects = torch.nn.Parameter(torch.tensor(begin.implicit_effects, dtype=torch.float32))
        self.inputs = inputs
        # Without more prior than a fit starts with the network learns the ratings by heart.
        self.prior_std = 0.35 * torch.tensor(initial_std(dim - 1), dtype=torch.float32)
        width, hidden = 2 * dim + inputs.shape[1], 64
        self.first = torch.nn.Parameter(torch.randn(width, hidden, generator=generator) / math.sqrt(width))
        self.shift = torch.nn.Parameter(torch.zeros(hidden))
        # Zeros: the network starts as the points that it begins from.
        self.last = torch.nn.Parameter(torch.zeros(hidden, 2 * dim))
        self.mean = torch.nn.Parameter(torch.tensor(begin.user_mean, dtype=torch.float32))
        factor = np.linalg.cholesky(np.linalg.inv(begin.user_covariance))
        self.factor = torch.nn.Parameter(torch.tensor(factor, dtype=torch.float32))
        self.log_noise = torch.nn.Parameter(torch.tensor(math.log(begin.noise), dtype=torch.float32))

    @property
    def parameters(self) -> list[Any]:
        """All that is trained."""
        return [
            *(self.embedding, self.effects, self.first, self.shift, self.last),
            *(self.mean, self.factor, self.log_noise),
        ]

    def items(self, generator: Any = None) -> tuple[Tensor, Tensor]:
        """Return features and bias, and implicit effects, of all items; with dropout where there is a
        `generator`.
        """
        hidden = torch.cat([self.embedding, self.effects, self.inputs], dim=1) @ self.first + self.shift
        hidden = torch.nn.functional.silu(hidden)
        if generator is not None:
            dropout = 0.2
            kept = torch.rand(hidden.shape, generator=generator) >= dropout
            hidden = hidden * kept / (1.0 - dropout)
        change = hidden @ self.last
        return self.embedding + change[:, : self._dim], self.effects + change[:, self._dim :]

    def precision(self) -> Tensor:
        """Return the prior precision (d, d) of users."""
        factor = torch.tril(self.factor)
        # Positive definite, however small the factor becomes.
        return factor @ factor.T + 1e-4 * torch.eye(self._dim)

    def noise(self) -> Tensor:
        """Return the variance of a rating round its score."""
        return torch.exp(self.log_noise)


def train(
    by_user: Compressed,
    inputs: Float64s,
    begin: ItemPoints,
    *,
    warm: bool,
    rng: np.random.Generator,
    report: Callable[[dict[str, float]], None],
) -> tuple[ItemPoints, float]:
    """Train on the ratings by user, from `begin`; return the points and the mean loss of the last epoch, in
    nats a rating.

    `inputs` (n_items, c): what the network reads of each item. `warm`: `begin` is from an earlier fit, so a
    third of the epochs is enough.
    """
    with torch.random.fork_rng():
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        network = _Network(begin, torch.tensor(inputs, dtype=torch.float32), generator)
        batches = _batches(by_user, rng)
        # So many looks at ratings in all bound the time of a fit.
        epochs = int(np.clip(20_000_000 // max(len(by_user.value), 1), 2, 40))
        epochs = max(2, epochs // 3) if warm else epochs
        rate, last_rate = 1e-2, 5e-4
        optimizer = torch.optim.Adam(network.parameters, lr=rate)
        steps = max(1, epochs * len(batches))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=rate, total_steps=steps + 1, final_div_factor=rate / last_rate
        )
        item = torch.tensor(by_user.other, dtype=torch.int64)
        target = torch.tensor((by_user.value - begin.mean) / begin.unit, dtype=torch.float32)
        loss = math.nan
        for epoch in range(epochs):
            total, count = 0.0, 0
            for batch in rng.permutation(len(batches)):
                rows = _padded(by_user, batches[batch], rng)
                found, size = _loss(network, item, target, rows, generator=generator, rng=rng)
                if size == 0:
                    continue
                optimizer.zero_grad()
                (found / size).backward()
                # A first batch of unlucky users must not throw the embeddings away.
                torch.nn.utils.clip_grad_norm_(network.parameters, 10.0)
                optimizer.step()
                schedule.step()
                total, count = total + float(found.detach()), count + size
            loss = total / max(count, 1)
            report({"sweep": float(epoch + 1), "loss": loss})
            if not math.isfinite(loss):
                break
        return _points(network, begin), loss


def _points(network: _Network, begin: ItemPoints) -> ItemPoints:
    with torch.no_grad():
        vectors, effects = network.items()
        return replace(
            begin,
            vectors=vectors.double().numpy(),
            implicit_effects=effects.double().numpy(),
            user_mean=network.mean.double().numpy(),
            user_covariance=torch.linalg.inv(network.precision().double()).numpy(),
            noise=float(network.noise()),
        )


def _batches(by_user: Compressed, rng: np.random.Generator) -> list[Int64s]:
    """Return batches of users with two ratings or more, users of similar counts together."""
    counts = np.minimum(by_user.counts, _LONGEST)
    rated = np.flatnonzero(counts >= 2)
    rated = rated[np.lexsort((rng.random(len(rated)), counts[rated]))]
    # 20 steps an epoch, within bounds: few steps learn little, long ones fill memory.
    step = int(np.clip(counts.sum() / 20, 512, 8192))
    batches, start = [], 0
    while start < len(rated):
        # Ascending, so that the last of a batch is its longest.
        size = 1
        while start + size < len(rated) and (size + 1) * counts[rated[start + size]] <= step:
            size += 1
        batches.append(rated[start : start + size])
        start += size
    return batches


def _padded(by_user: Compressed, rows: Int64s, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return entries (b, l) of these users in random order, at most `_LONGEST` each, and which of them are
    real (1) or padding (0).
    """
    counts = by_user.counts[rows]
    length = int(min(counts.max(), _LONGEST))
    entries = np.zeros((len(rows), length), dtype=np.int64)
    real = np.zeros((len(rows), length), dtype=np.float32)
    for at, (row, count) in enumerate(zip(rows.tolist(), counts.tolist(), strict=True)):
        taken = rng.permutation(count)[:length]
        entries[at, : len(taken)] = by_user.indptr[row] + taken
        real[at, : len(taken)] = 1.0
    return torch.tensor(entries), torch.tensor(real)


def _loss(
    network: _Network,
    item: Tensor,
    target: Tensor,
    rows: tuple[Tensor, Tensor],
    *,
    generator: Any,
    rng: np.random.Generator,
) -> tuple[Tensor, int]:
    """Return the sum of the negative log-likelihoods of the ratings held out, with the part of these users in
    the prior of the embeddings, and how many ratings were held out.
    """
    entries, real = rows
    items, effects = network.items(generator)
    count = real.sum(dim=1, keepdim=True)
    # This part of a user's ratings makes the posterior; the loss is of the others.
    share = torch.tensor(rng.uniform(0.6, 0.95, (len(real), 1)), dtype=torch.float32)
    # The order is random, so the first ones are a random part; at least one rating is held out.
    n_shown = torch.minimum(torch.floor(share * count), count - 1.0)
    position = torch.arange(real.shape[1])[None, :]
    shown = real * (position < n_shown)
    held_out = real - shown
    columns = item[entries]
    features = items[columns]
    bias = features[..., -1]
    features = torch.cat([features[..., :-1], torch.ones_like(bias)[..., None]], dim=-1)
    aim = target[entries] - bias
    noise = network.noise()
    precision = network.precision()
    weighted = features * shown[..., None]
    matrix = precision + weighted.transpose(1, 2) @ features / noise
    sets = (effects[columns] * shown[..., None]).sum(dim=1) / torch.sqrt(n_shown.clamp(min=1.0))
    prior = network.mean + sets
    linear = prior @ precision + (weighted * aim[..., None]).sum(dim=1) / noise
    factor = torch.linalg.cholesky(matrix)
    mean = torch.cholesky_solve(linear[..., None], factor)
    score = (features @ mean)[..., 0]
    half = torch.linalg.solve_triangular(factor, features.transpose(1, 2), upper=False)
    variance = noise + (half * half).sum(dim=1)
    loss = 0.5 * ((aim - score) ** 2 / variance + torch.log(variance))
    size = int(held_out.sum())
    total = (loss * held_out).sum()
    # The prior of the embeddings counts once for each time that all ratings have been held out.
    penalty = ((network.embedding / network.prior_std) ** 2).sum()
    # Implicit effects have 20 times the prior precision of the embeddings.
    penalty = penalty + 20.0 * ((network.effects / network.prior_std) ** 2).sum()
    return total + 0.5 * penalty * size / max(len(target), 1), size
