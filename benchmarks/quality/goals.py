"""What the accuracy benchmark should reach, and whether it did.

Invariant: a row is judged only where all of its parts were run, and by the figures that the tables show.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.harness.report import Row, at_most
from benchmarks.quality.cold_start import ColdCurve
from benchmarks.quality.new_items import NewItems
from benchmarks.quality.over_http import ENGINE as DEPLOYED
from benchmarks.quality.shills import Shift
from evaluation.offline.engines import ATTRIBUTES, AUTO
from evaluation.report import deciles
from evaluation.results.course import Summary
from evaluation.results.lines import Line

# The folds u1 to u5 that come with MovieLens 100K.
ALL_FOLDS = 5
SVDPP = "surprise-svd++"
# What knows the world that the ratings of a made set were drawn from, or one side of it.
TRUTH, KNOWS_ITEMS, KNOWS_USERS = "truth", "truth of items", "truth of users"
GAUSSIAN = f"{AUTO}:link=gaussian"
PUBLISHED = (
    ("ml-100k u1", "GHRS (with demographics)", 0.887, "Darban and Valipour, 2022"),
    ("ml-100k u1", "GLocal-K", 0.8889, "Han et al., 2021"),
    ("ml-100k u1", "myFM (dates and implicit terms; Gibbs)", 0.8898, "Ohtsuki, 2020, run by hand for 300 s"),
    ("ml-100k in time order", "river", 0.9479, "river's documentation"),
    ("environment, 10,000 known, MSE", "the course's students", 0.114, "the lecture"),
)


@dataclass(slots=True)
class Found:
    """Everything that was measured, by section."""

    lines: dict[str, list[Line]] = field(default_factory=dict)
    cold: list[ColdCurve] = field(default_factory=list)
    shifts: list[Shift] = field(default_factory=list)
    played: list[Summary] = field(default_factory=list)
    new_items: list[NewItems] = field(default_factory=list)

    def sections(self) -> list[str]:
        """Return the sections of which there is anything, in the order of their tables."""
        others = {
            "environment": self.played,
            **self.lines,
            "cold": self.cold,
            "new-items": self.new_items,
            "shills": self.shifts,
        }
        return [section for section, found in others.items() if found]

    def all_lines(self) -> list[Line]:
        """Return the lines of all sections."""
        return [line for lines in self.lines.values() for line in lines]

    def compared(self) -> list[Line]:
        """Return the lines of the sections that compare engines as they are."""
        return [line for section, lines in self.lines.items() if section != "ablation" for line in lines]

    def of(self, data: str, engine: str, split: str = "") -> list[Line]:
        """Return the lines with figures of one engine on one data set, of all its splits or of one."""
        return [
            line
            for line in self.compared()
            if (line.data, line.engine) == (data, engine) and split in ("", line.split) and not line.skipped
        ]


def rmse(lines: Sequence[Line]) -> tuple[float, ...]:
    """Return one figure a split."""
    return tuple(line.rmse for line in lines)


def goals(found: Found) -> Iterator[Row]:
    """Yield the rows that have a goal, as far as their parts were run."""
    yield from _environment(found)
    yield from _movielens(found)
    yield from _others(found)
    yield from _made(found)
    yield from _intervals(found)
    yield from _cold(found)
    yield from _new_items(found)


def _environment(found: Found) -> Iterator[Row]:
    for one in found.played:
        if (one.player, one.known) == ("deployed", max(o.known for o in found.played)):
            # What can be known at all there: 0.039, by a long Gibbs run that is told the world's own prior.
            detail = " ".join(f"{mse:.4f}" for mse in one.run_mse)
            work = f"environment, {one.known:,} known, through the API"
            yield Row(work, "MSE", (one.mse,), at_most(0.040, 0.046), detail=detail)
    for known in sorted({one.known for one in found.played})[:-1]:
        errors = {one.player: one.mse for one in found.played if one.known == known}
        own = errors.pop("deployed", None)
        # The same deployment without learning while it plays: no rival.
        errors.pop("deployed-frozen", None)
        if own is not None and errors:
            best = min(errors, key=errors.__getitem__)
            detail = f"{own:.4f} against {errors[best]:.4f} of {best}"
            work = f"environment, {known:,} known: API / best other player"
            yield Row(work, "x", (own / errors[best],), at_most(1.0, 1.0), detail=detail)


def _movielens(found: Found) -> Iterator[Row]:
    for engine, name in ((AUTO, "Foldin"), (DEPLOYED, "through the API")):
        first = found.of("ml-100k", engine, "u1")
        if first:
            # The best published: 0.887 by GHRS, with demographics, and 0.8889 by GLocal-K.
            yield Row(f"ml-100k u1, {name}", "RMSE", rmse(first), at_most(0.882, 0.887))
    without, described = (rmse(found.of("ml-100k", engine, "u1")) for engine in (AUTO, ATTRIBUTES))
    if without and described:
        # myFM has 0.8833 with side information, and 0.8808 with ordered probit besides.
        detail = f"{without[0]:.4f} without"
        target = at_most(0.872, without[0])
        yield Row("ml-100k u1, Foldin with attributes", "RMSE", described, target, detail=detail)
    folds = [line for line in found.of("ml-100k", AUTO) if line.split.startswith("u")]
    # Folds differ by up to 0.013: the mean of some of them is another figure.
    if len(folds) == ALL_FOLDS:
        mean, detail = float(np.mean(rmse(folds))), " ".join(f"{line.rmse:.4f}" for line in folds)
        yield Row("ml-100k, mean of u1 to u5", "RMSE", (mean,), at_most(0.868, 0.871), detail=detail)
    if folds:
        seconds = tuple(line.seconds for line in folds)
        # Bayesian factorization machines (myFM) take 300 s for the same error.
        yield Row("ml-100k: fit and predict, one core", "s", seconds, at_most(10, 30))
    online = found.of("ml-100k", AUTO, "in time order")
    if online:
        # The best published, river's, is 0.9479.
        work = "ml-100k in time order, each before it is learned"
        yield Row(work, "RMSE", rmse(online), at_most(0.910, 0.9133))


def _others(found: Found) -> Iterator[Row]:
    for data in dict.fromkeys(line.data for line in found.all_lines()):
        own, other = rmse(found.of(data, AUTO)), rmse(found.of(data, SVDPP))
        # ml-100k is judged by published figures, above; elsewhere a peer is the measure.
        if data == "ml-100k" or not own or len(own) != len(other):
            continue
        detail = f"{np.mean(own):.4f} against {np.mean(other):.4f}"
        ratio = (float(np.mean(own) / np.mean(other)),)
        yield Row(f"{data}: Foldin / SVD++", "x", ratio, at_most(0.97, 1.0), detail=detail)


def _made(found: Found) -> Iterator[Row]:
    for data in dict.fromkeys(line.data for line in found.all_lines()):
        own, gaussian, truth, *sides = (
            rmse(found.of(data, engine)) for engine in (AUTO, GAUSSIAN, TRUTH, KNOWS_ITEMS, KNOWS_USERS)
        )
        if own and truth and all(sides):
            # No one has the truth's own error: a user has made a hundred ratings. What is not known of users
            # and of items adds up, each as far as it matters to who knows the other side: what is known at
            # best of both is about that, no bound.
            least = float(np.sqrt(sides[0][0] ** 2 + sides[1][0] ** 2 - truth[0] ** 2))
            detail = (
                f"{own[0]:.4f} against {least:.4f}; users learned by who knows all items {sides[0][0]:.4f}, "
            )
            detail += f"items by who knows all users {sides[1][0]:.4f}, the truth itself {truth[0]:.4f}"
            work, target = f"{data}: Foldin / what can be known", at_most(1.02, 1.04)
            yield Row(work, "x", (own[0] / least,), target, detail=detail)
        if own and truth and gaussian:
            detail = f"{own[0]:.4f} against {gaussian[0]:.4f}; the truth itself {truth[0]:.4f}"
            work = f"{data}: Foldin / with the Gaussian link"
            yield Row(work, "x", (own[0] / gaussian[0],), at_most(0.99, 1.0), detail=detail)


def _intervals(found: Found) -> Iterator[Row]:
    for data in dict.fromkeys(line.data for line in found.all_lines()):
        for part in ("u", "random", "in time order"):
            lines = [line for line in found.of(data, AUTO) if line.split.startswith(part)]
            name = f"{data} {part}" if part == "in time order" else data
            for field_name, by in (("deciles", "decile"), ("std_deciles", "tenth by deviation")):
                shares = deciles(lines, field_name)
                if shares:
                    detail = " ".join(f"{share:.3f}" for share in shares)
                    truth = [line for line in found.of(data, TRUTH) if line.split.startswith(part)]
                    known = _worst(deciles(truth, field_name))
                    # Of ratings in steps not even those who know the world have such intervals.
                    target = at_most(max(0.02, known), max(0.04, known))
                    detail += f"; the truth itself {known:.3f}" if known else ""
                    work = f"{name}: 90 % intervals, worst {by} off by"
                    yield Row(work, "", (_worst(shares),), target, detail=detail)


def _worst(shares: Sequence[float]) -> float:
    """Return by how much the worst of these is off; 0 of none."""
    return max((abs(share - 0.90) for share in shares), default=0.0)


def _cold(found: Found) -> Iterator[Row]:
    for curve in found.cold:
        if curve.engine != AUTO:
            continue
        others = [one for one in found.cold if one.side == curve.side and one.engine in ("item-mean", "bias")]
        if others:
            best = np.min([one.rmse for one in others], axis=0)
            ratios = np.array(curve.rmse) / best
            at = int(np.argmax(ratios))
            detail = f"worst with {curve.counts[at]} known: {curve.rmse[at]:.4f} against {best[at]:.4f}"
            work = f"{curve.data}, new {curve.side}s: Foldin / best of item mean and bias"
            yield Row(work, "x", (float(ratios.max()),), at_most(1.0, 1.0), detail=detail)


def _new_items(found: Found) -> Iterator[Row]:
    lines = {line.engine: line for line in found.new_items}
    if AUTO in lines and ATTRIBUTES in lines:
        plain, described = lines[AUTO], lines[ATTRIBUTES]
        for name, own, other in (
            ("RMSE with attributes / without", described.rmse, plain.rmse),
            ("NDCG@10 without / with attributes", plain.ndcg_10, described.ndcg_10),
        ):
            detail = f"{own:.4f} against {other:.4f}"
            work = f"{plain.data}, items without ratings: {name}"
            yield Row(work, "x", (own / other,), at_most(1.0, 1.0), detail=detail)
