"""The network of the neural engine, trained through the fold-in: its last layer is Bayesian, solved exactly.

Invariant: what is trained is what is published. A user of the loss is the closed-form posterior given a part
of his ratings, and the loss is how well that foretells the rest.

Each item has an embedding; a small residual network makes of it and of what is known of the item (count, mean
and spread of its ratings) the features `q`, the bias `b` and the set effect `beta`. A user's weights on `[q,
1]` are Gaussian with learned prior `N(m + sum beta / sqrt(count), P^-1)`, as in
`factors.inference.half_step`; the last layer is thus Bayesian linear regression (Snoek et al., 2015), trained
by leaving ratings out as in meta learning (Harrison et al., 2018).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from factors import Float64s, Int64s
from factors.inference.histories import Compressed

# The optional library without its types, so that checks are the same with it and without.
torch: Any = import_module("torch")
Tensor = Any

# Ratings of one user that one step looks at; a step's users together have about a part of all, within bounds.
_LONGEST = 256
_STEPS_AN_EPOCH, _LEAST_STEP, _MOST_STEP = 20, 512, 8192
# A fit looks at so many ratings in all, and at each at most so often.
_VISITS, _MOST_EPOCHS, _LEAST_EPOCHS = 20_000_000, 40, 2
# Part of a user's ratings that the posterior is given; the loss is of the others.
_GIVEN_LEAST, _GIVEN_MOST = 0.6, 0.95
_RATE, _LAST_RATE = 1e-2, 5e-4
_HIDDEN = 64
_DROPOUT = 0.2
# Prior deviation of embeddings, in units of what a fit starts with: without more prior the network learns the
# ratings by heart.
_SPREAD = 0.35
# Prior precision of set effects, in units of that of the embeddings.
_RIDGE = 20.0
_CLIP = 10.0


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training gives, for ratings less `offset`: `items` (n_items, d), features and bias; `effects`
    (n_items, d); the users' prior `mean` (d,) and `covariance` (d, d); the variance of the `noise`; the mean
    `loss` of the last epoch, nats a rating.
    """

    items: Float64s
    effects: Float64s
    mean: Float64s
    covariance: Float64s
    noise: float
    loss: float


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a training begins: rows (n_items, d) of `items` and `effects`, the prior deviation `spread` (d,)
    of both, and the users' prior.
    """

    items: Float64s
    effects: Float64s
    spread: Float64s
    mean: Float64s
    covariance: Float64s
    noise: float


class _Network:
    """The parameters, and what they say of items and of users' priors."""

    def __init__(self, begin: Beginning, known: Tensor, generator: Any) -> None:
        dim = begin.items.shape[1]
        self._dim = dim
        self.embedding = torch.nn.Parameter(torch.tensor(begin.items, dtype=torch.float32))
        self.effects = torch.nn.Parameter(torch.tensor(begin.effects, dtype=torch.float32))
        self.known = known
        self.spread = _SPREAD * torch.tensor(begin.spread, dtype=torch.float32)
        width = 2 * dim + known.shape[1]
        self.first = torch.nn.Parameter(torch.randn(width, _HIDDEN, generator=generator) / math.sqrt(width))
        self.shift = torch.nn.Parameter(torch.zeros(_HIDDEN))
        # The network starts as what it begins from.
        self.last = torch.nn.Parameter(torch.zeros(_HIDDEN, 2 * dim))
        self.mean = torch.nn.Parameter(torch.tensor(begin.mean, dtype=torch.float32))
        factor = np.linalg.cholesky(np.linalg.inv(begin.covariance))
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
        """Features and bias, and effects, of all items; with dropout where a `generator` is given."""
        hidden = torch.cat([self.embedding, self.effects, self.known], dim=1) @ self.first + self.shift
        hidden = torch.nn.functional.silu(hidden)
        if generator is not None:
            kept = torch.rand(hidden.shape, generator=generator) >= _DROPOUT
            hidden = hidden * kept / (1.0 - _DROPOUT)
        change = hidden @ self.last
        return self.embedding + change[:, : self._dim], self.effects + change[:, self._dim :]

    def precision(self) -> Tensor:
        """Prior precision (d, d) of users."""
        factor = torch.tril(self.factor)
        return factor @ factor.T + 1e-4 * torch.eye(self._dim)

    def noise(self) -> Tensor:
        """Variance of a rating round its score."""
        return torch.exp(self.log_noise)


def train(
    users: Compressed,
    known: Float64s,
    value: Float64s,
    begin: Beginning,
    *,
    warm: bool,
    rng: np.random.Generator,
    report: Callable[[dict[str, float]], None],
) -> Trained:
    """Train on `users` with the ratings `value` (n,) less their mean.

    `known` (n_items, c): what is known of each item. `warm`: it begins from an earlier fit.
    """
    with torch.random.fork_rng():
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        network = _Network(begin, torch.tensor(known, dtype=torch.float32), generator)
        batches = _batches(users, rng)
        n = len(users.value)
        epochs = int(np.clip(_VISITS // max(n, 1), _LEAST_EPOCHS, _MOST_EPOCHS))
        epochs = max(_LEAST_EPOCHS, epochs // 3) if warm else epochs
        optimizer = torch.optim.Adam(network.parameters, lr=_RATE)
        steps = max(1, epochs * len(batches))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=_RATE, total_steps=steps + 1, final_div_factor=_RATE / _LAST_RATE
        )
        item = torch.tensor(users.other)
        target = torch.tensor(value, dtype=torch.float32)
        loss = math.nan
        for epoch in range(epochs):
            total, count = 0.0, 0
            for batch in rng.permutation(len(batches)):
                rows = _padded(users, batches[batch], rng)
                found, size = _loss(network, item, target, rows, generator=generator, rng=rng)
                if size == 0:
                    continue
                optimizer.zero_grad()
                (found / size).backward()
                torch.nn.utils.clip_grad_norm_(network.parameters, _CLIP)
                optimizer.step()
                schedule.step()
                total, count = total + float(found.detach()), count + size
            loss = total / max(count, 1)
            report({"sweep": float(epoch + 1), "loss": loss})
            if not math.isfinite(loss):
                break
        return _trained(network, loss)


def _trained(network: _Network, loss: float) -> Trained:
    with torch.no_grad():
        items, effects = network.items()
        return Trained(
            items.double().numpy(),
            effects.double().numpy(),
            network.mean.double().numpy(),
            torch.linalg.inv(network.precision().double()).numpy(),
            float(network.noise()),
            loss,
        )


def _batches(users: Compressed, rng: np.random.Generator) -> list[Int64s]:
    """Users with two ratings or more, those of similar counts together."""
    counts = np.minimum(users.counts, _LONGEST)
    rated = np.flatnonzero(counts >= 2)
    rated = rated[np.lexsort((rng.random(len(rated)), counts[rated]))]
    step = int(np.clip(counts.sum() / _STEPS_AN_EPOCH, _LEAST_STEP, _MOST_STEP))
    batches, start = [], 0
    while start < len(rated):
        # Ascending, so that the last of a batch is its longest.
        size = 1
        while start + size < len(rated) and (size + 1) * counts[rated[start + size]] <= step:
            size += 1
        batches.append(rated[start : start + size])
        start += size
    return batches


def _padded(users: Compressed, rows: Int64s, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Entries (b, l) of these users in random order, at most `_LONGEST` each, and which are none (0)."""
    counts = users.counts[rows]
    length = int(min(counts.max(), _LONGEST))
    entries = np.zeros((len(rows), length), dtype=np.int64)
    real = np.zeros((len(rows), length), dtype=np.float32)
    for at, (row, count) in enumerate(zip(rows.tolist(), counts.tolist(), strict=True)):
        taken = rng.permutation(count)[:length]
        entries[at, : len(taken)] = users.indptr[row] + taken
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
    """Sum of negative log-likelihoods of the ratings left out, with these users' part of the embeddings'
    prior, and how many there are.
    """
    entries, real = rows
    items, effects = network.items(generator)
    count = real.sum(dim=1, keepdim=True)
    share = torch.tensor(rng.uniform(_GIVEN_LEAST, _GIVEN_MOST, (len(real), 1)), dtype=torch.float32)
    # The order is random: the first are given, one at least is left out.
    given = torch.minimum(torch.floor(share * count), count - 1.0)
    place = torch.arange(real.shape[1])[None, :]
    known = real * (place < given)
    asked = real - known
    columns = item[entries]
    features = items[columns]
    bias = features[..., -1]
    features = torch.cat([features[..., :-1], torch.ones_like(bias)[..., None]], dim=-1)
    aim = target[entries] - bias
    noise = network.noise()
    precision = network.precision()
    weighted = features * known[..., None]
    matrix = precision + weighted.transpose(1, 2) @ features / noise
    sets = (effects[columns] * known[..., None]).sum(dim=1) / torch.sqrt(given.clamp(min=1.0))
    prior = network.mean + sets
    linear = prior @ precision + (weighted * aim[..., None]).sum(dim=1) / noise
    factor = torch.linalg.cholesky(matrix)
    mean = torch.cholesky_solve(linear[..., None], factor)
    score = (features @ mean)[..., 0]
    half = torch.linalg.solve_triangular(factor, features.transpose(1, 2), upper=False)
    variance = noise + (half * half).sum(dim=1)
    loss = 0.5 * ((aim - score) ** 2 / variance + torch.log(variance))
    size = int(asked.sum())
    total = (loss * asked).sum()
    # The prior of the embeddings counts once for each time that all ratings have been asked for.
    penalty = ((network.embedding / network.spread) ** 2).sum()
    penalty = penalty + _RIDGE * ((network.effects / network.spread) ** 2).sum()
    return total + 0.5 * penalty * size / max(len(target), 1), size
