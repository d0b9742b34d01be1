"""The engines that are compared, by name: Foldin's fit with its settings, the trainer's engines, baselines.

Invariant: an engine sees a `Question` only; nothing here is chosen by held-out ratings or a data set's name.
`auto` is one configuration for every data set.

A name may carry options after colons: `auto:rank=16:link=gaussian:no-set-effects:no-periods`. Lists of
`auto` are in the order of the service's scores, unless `order=rating` or `order=relevance` is among them.
With `attributes` it has those of items and users, too, with `context` what was told with each rating.
"""

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.errors import NotInstalledError
from evaluation.offline.ranking.lists import rows_of, seen_by, top_by_score
from evaluation.question import (
    ComparedEngine,
    Predict,
    Predicted,
    Question,
    no_probabilities,
    no_top,
)

AUTO = "auto"
ATTRIBUTES = "auto:attributes"
# Asked without the time of the rating, as a caller does who sends none.
NO_MOMENT = "auto:no-moment"
CONTEXT = "auto:context"
# What a table of lists compares, Foldin as it is served first.
RANKING = (AUTO, "auto:order=relevance", "auto:order=rating", "popularity")
# Beside the engines below.
NO_MORE: Mapping[str, ComparedEngine] = {}
OPTIONS = (
    "rank=N, link=gaussian, link=ordinal, no-set-effects, no-periods, no-sittings, no-drift, "
    "no-moment, settled, attributes, context, order=rating, order=relevance, order=popularity"
)
# A 25th of the usual change, five times the sweeps: a fit that stops on a plateau goes on.
SETTLED: Mapping[str, float | int] = {"tolerance": 2e-5, "sweeps": 200}
REFIT_EVENTS = 5000  # the trainer's default
FOLD_EVENTS = 250  # items follow within a second: so many ratings are made in one by a busy site of this size
USER_RIDGE, ITEM_RIDGE = 15.0, 10.0  # Koren's (2010) for MovieLens-like data
PAIRS_AT_ONCE = 65_536  # distributions over 10 steps take 5 MB


def run(
    question: Question, options: Mapping[str, str], seed: int, more: Mapping[str, ComparedEngine] = NO_MORE
) -> tuple[dict[str, npt.NDArray[Any]], str]:
    """Answer a question, for `jobs.run_apart`: the arrays of a `Predicted`, and its note."""
    engine = find(options["engine"], more)
    sequential = not len(question.test_user)  # see the invariant of `question`
    predict = engine.online if sequential else engine.predict
    if predict is None:
        raise NotInstalledError(f"{options['engine']} learns from whole sets, not rating by rating")
    predicted = predict(question, seed)
    names = ("rating", "std", "probabilities", "top")
    return {name: getattr(predicted, name) for name in names}, predicted.note


def find(name: str, more: Mapping[str, ComparedEngine] = NO_MORE) -> ComparedEngine:
    """Return the engine of this name, which may be one of `more`. Raises ValueError, naming all, for one that
    does not exist.
    """
    base, *options = name.split(":")
    if base == AUTO:
        order = next((option[6:] for option in options if option.startswith("order=")), "score")
        return _foldin(name, fit_options(name), order)
    known = {**BASELINES, **TRAINED, **more}
    if base not in known or options:
        raise ValueError(f"no engine is called {name}: choose among {AUTO} ({OPTIONS}), {', '.join(known)}")
    return known[base]


def fit_options(name: str) -> dict[str, Any]:
    """Return the settings of `factors.fit` for the options in the name of an `auto` engine, but for the order
    of its lists. Raises ValueError.
    """
    found: dict[str, Any] = {}
    for option in name.split(":")[1:]:
        key, _, value = option.partition("=")
        match key, value:
            case "rank", value if value.isascii() and value.isdigit() and 1 <= int(value) <= 256:
                found["rank"] = int(value)
            case "link", "gaussian" | "ordinal":
                found["link"] = value
            # Set effects and periods are the names that users know, and that kept lines carry; the code says
            # implicit effects and session effects, as the field does.
            case "no-set-effects", "":
                found["implicit_effects"] = False
            case "no-periods", "":
                found["session_effects"] = False
            case (("no-sittings" | "no-drift"), ""):
                found[key.removeprefix("no-")] = False
            case "settled", "":
                found |= SETTLED
            case ("order", "rating" | "relevance" | "popularity") | (
                "attributes" | "context" | "no-moment",
                "",
            ):
                continue
            case _:
                raise ValueError(f"{AUTO} has no option {option}: it has {OPTIONS}")
    return found


def attributes_of(name: str, question: Question) -> Any:
    """Return the attributes of a question's items and users, if an `auto` engine of this name has them."""
    return question.attributes() if "attributes" in name.split(":")[1:] else {}


def has_context(name: str) -> bool:
    """Whether an `auto` engine of this name reads the contexts of ratings."""
    return "context" in name.split(":")[1:]


def _foldin(name: str, options: dict[str, Any], order: str) -> ComparedEngine:
    def predict(question: Question, seed: int) -> Predicted:
        """Fit, and predict as the service does."""
        # Imported where it is used, here and below: the memory of an engine counts the libraries it loads.
        from evaluation.offline.ranking.head_lists import top_by_relevance, top_by_served_score
        from factors import FitSettings, fit

        if order == "relevance":
            return top_by_relevance(question, seed)
        if "no-moment" in name.split(":")[1:]:
            question = replace(question, test_time=np.full_like(question.test_time, np.nan))
        fitted = fit(
            question.ratings(context=has_context(name)),
            question.n_users,
            question.n_items,
            settings=FitSettings(question.scale(), **options),
            rng=np.random.default_rng(seed),
            attributes=attributes_of(name, question),
            context_kinds=question.context_kinds(),
        )
        sweeps = fitted.metrics.get("sweeps", float("nan"))
        note = f"rank {fitted.model.rank}, {fitted.model.link}, {sweeps:.0f} sweeps"
        if order == "rating" or not question.top:
            return answer_of(fitted, question, note)
        answered = answer_of(fitted, replace(question, top=0), note)
        ranked = top_by_served_score(question, fitted, seed, before_head=order == "popularity")
        return replace(answered, top=ranked.top, note=f"{note}; {ranked.note}")

    def online(question: Question, seed: int) -> Predicted:
        """Learn as the product does: a user at once (folded in from the whole history), an item after
        `FOLD_EVENTS` more ratings, and all is refitted, warm, after `REFIT_EVENTS`.
        """
        from evaluation.offline.online import predict_then_learn
        from factors import FitSettings

        rating, std, note = predict_then_learn(
            question,
            FitSettings(question.scale(), **options),
            seed,
            context=has_context(name),
            refit_events=REFIT_EVENTS,
            fold_events=FOLD_EVENTS,
        )
        return Predicted(rating, std, note=note)

    return ComparedEngine(name.replace(AUTO, "Foldin", 1).replace(":", ", "), predict, online)


def answer_of(fitted: Any, question: Question, note: str) -> Predicted:
    """Return the answers of a fit, as the service gives them."""
    from factors import Ranker, Scorer, scale_levels

    scorer = Scorer(fitted.posterior, fitted.items)
    # Of a model without contexts they move nothing.
    context = question.test_context if len(question.categorical) else None
    pairs = question.test_user, question.test_item, question.test_time
    scores = scorer.score(fitted.users, *pairs, context)
    probabilities = no_probabilities()
    if scale_levels(question.scale()) > 1:
        starts = range(0, len(question.test_user), PAIRS_AT_ONCE)
        parts = [slice(start, start + PAIRS_AT_ONCE) for start in starts]
        user, item, time = pairs
        told = [None if context is None else context[part] for part in parts]
        found = [
            scorer.distribution(fitted.users, user[part], item[part], time[part], given)
            for part, given in zip(parts, told, strict=True)
        ]
        probabilities = np.concatenate(found).astype(np.float32)
    top = no_top()
    if question.top:
        # What was rated is left out, as in a list that the service recommends.
        users = question.ranked_users()
        ranked = Ranker(fitted.posterior, fitted.items).top(
            fitted.users[users], question.top, seen_by(question, users)
        )
        top = rows_of([one.item_rows for one in ranked], question.top)
    return Predicted(scores.rating, scores.std, probabilities, top, note)


def _trained(name: str, label: str) -> ComparedEngine:
    def predict(question: Question, seed: int) -> Predicted:
        """Fit with an engine of the trainer, and predict as the service does."""
        from factors import FitSettings
        from trainer.engines import ENGINES, make_engine
        from trainer.engines.base import FitTask

        if name not in ENGINES:
            raise NotInstalledError(f"this version has no engine called {name}")
        if name == "neural" and find_spec("torch") is None:
            raise NotInstalledError("needs torch: pip install foldin[neural]")
        rng = np.random.default_rng(seed)
        task = FitTask(question.ratings(), question.n_users, question.n_items, rng)
        fitted = make_engine(name, FitSettings(question.scale())).fit(task)
        predicted = answer_of(fitted, question, f"rank {fitted.model.rank}")
        # The score of implicit feedback is no rating: its error would say nothing.
        if fitted.model.feedback == "implicit":
            return Predicted(top=predicted.top, note=predicted.note)
        return predicted

    return ComparedEngine(label, predict)


def _baseline(label: str, *, user_ridge: float, item_ridge: float) -> ComparedEngine:
    """Make the bias baseline with these ridges; an infinite one leaves that side's effects out."""

    def predict(question: Question, _: int) -> Predicted:
        from factors import fit_biases

        sizes = question.n_users, question.n_items
        found = fit_biases(question.ratings(), *sizes, user_ridge=user_ridge, item_ridge=item_ridge)
        # The standard deviation is that of what the effects leave of the training ratings.
        residual = question.train_value - found.predict(question.train_user, question.train_item)
        rating = question.clip(found.predict(question.test_user, question.test_item))
        top = top_by_score(question, lambda users: found.mean + found.user[users, None] + found.item[None, :])
        return Predicted(rating, np.full(len(rating), max(float(residual.std()), 1e-9)), top=top)

    return ComparedEngine(label, predict, _running(users=user_ridge < np.inf, items=item_ridge < np.inf))


def _popularity(question: Question, _: int) -> Predicted:
    count = np.bincount(question.train_item, minlength=question.n_items).astype(np.float64)
    top = top_by_score(question, lambda users: np.repeat(count[None], len(users), axis=0))
    return Predicted(top=top)


def _running(*, users: bool, items: bool) -> Predict:
    """Make running shrunk means of user and item around the running mean: each rating is predicted before it
    is learned.
    """

    def predict(question: Question, _: int) -> Predicted:
        user_sums, item_sums = np.zeros((question.n_users, 2)), np.zeros((question.n_items, 2))
        rating, std = np.empty(len(question.train_value)), np.empty(len(question.train_value))
        # Begins as if one rating in the middle of the scale were known, with a quarter of its width as std.
        total, middle = 0.0, (question.low + question.high) / 2
        squares = ((question.high - question.low) / 4) ** 2
        columns = (question.train_user, question.train_item, question.train_value)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for i, (user, item, value) in enumerate(rows):
            mean = (total + middle) / (i + 1)
            user_effect = user_sums[user, 0] / (user_sums[user, 1] + USER_RIDGE) if users else 0.0
            item_effect = item_sums[item, 0] / (item_sums[item, 1] + ITEM_RIDGE) if items else 0.0
            rating[i] = min(max(mean + user_effect + item_effect, question.low), question.high)
            std[i] = (squares / (i + 1)) ** 0.5
            total += value
            squares += (value - rating[i]) ** 2
            # Each effect learns what the mean and the other effect leave of this rating.
            user_sums[user] += (value - mean - item_effect, 1)
            item_sums[item] += (value - mean - user_effect, 1)
        return Predicted(rating, std)

    return predict


BASELINES: dict[str, ComparedEngine] = {
    "global-mean": _baseline("global mean", user_ridge=np.inf, item_ridge=np.inf),
    "user-mean": _baseline("user mean", user_ridge=0.0, item_ridge=np.inf),
    "item-mean": _baseline("item mean", user_ridge=np.inf, item_ridge=0.0),
    "bias": _baseline("bias", user_ridge=USER_RIDGE, item_ridge=ITEM_RIDGE),
    "popularity": ComparedEngine("popularity", _popularity),
}
TRAINED: dict[str, ComparedEngine] = {
    "implicit": _trained("implicit", "Foldin, implicit engine"),
    "neural": _trained("neural", "Foldin, neural engine"),
}
