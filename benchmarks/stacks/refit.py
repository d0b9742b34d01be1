"""From POST /train until live: a first fit of ratings with steps, then a refit after 1 % more.

Invariant: store, service and trainer have their defaults, as `foldin up` runs them, but that no fit begins
unasked; what both fits are judged by is in neither.
"""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import redis
from rich.console import Console

from benchmarks.data import synthetic
from benchmarks.data.made import SCALE, MadeSet, draw
from benchmarks.errors import BenchmarkError
from benchmarks.harness import stack
from benchmarks.harness.command import Options, benchmark
from benchmarks.harness.report import Row, Target, at_most, number, sized
from benchmarks.load.client import Client
from benchmarks.load.generator import get, post
from benchmarks.ratings import until_archived
from evaluation.offline.jobs import memory_mb
from factors import Ratings
from featurestore.errors import StreamFull
from featurestore.ratings.batches import Columns
from featurestore.settings import format_scale
from featurestore.store import Store
from foldin.sizing.model import Deployment
from processes.blocking import BlockingChild
from processes.settings import real, setting, whole

SIZES = (1_000_000, 5_000_000)  # 20 million, which take minutes, only where they are asked for
# Seconds until live of the first fit: goal and floor, at the full sizes.
COLD = {1_000_000: at_most(12, 24), 5_000_000: at_most(45, 75), 20_000_000: at_most(180, 300)}
# As many as a call of POST /predict may hold.
HELD_OUT = 10_000
MORE = 0.01  # of the ratings, before the refit: what comes in an hour or a day
# What the process has before the first rating: the interpreter, its libraries, compiled loops.
BASE_BYTES = 150e6
# Ratings in one call to the store, as an import sends them.
A_CALL = 10_000
# As long as a call may wait.
LIVE_S = 3600
# The trainer's own memory is looked at so often.
LOOK_S = 0.05
PHASES = ("archiving", "loading", "trial", "fitting", "ranking", "publishing")


@dataclass(frozen=True, slots=True)
class RefitOptions(Options):
    """Those of every benchmark, and how many ratings there are."""

    sizes: tuple[int, ...] = setting(
        SIZES, "numbers of ratings", whole(10_000, 100_000_000), many=True, shown="1000000, 5000000"
    )
    # Between those that few factors explain and those that hardly any number does.
    rank: int = setting(12, "of the world that ratings are drawn from", whole(1, 1000))
    more: float = setting(MORE, "share of the ratings that come in before the refit", real(1e-6, 1.0))

    @property
    def whole(self) -> bool:
        """See `Options`."""
        return set(COLD) <= set(self.sizes)


@dataclass(frozen=True, slots=True)
class Measured:
    """A fit: `seconds` from the call until it is live, those of its phases, `cpu_s` and memory of its
    process, the former also by phase, the `rank` that it found, and the error of the ratings held out, as
    they are answered.
    """

    seconds: float
    cpu_s: float
    phases: dict[str, float]
    phases_cpu: dict[str, float]
    peak_bytes: float
    rank: int
    rmse: float

    @property
    def detail(self) -> str:
        """The phases, for a row."""
        return ", ".join(f"{name} {number(seconds)}" for name, seconds in self.phases.items())

    def head_rows(self, name: str, head: float, head_cpu: float) -> Iterator[Row]:
        """Yield what the `head` seconds of a ranking head are beside the ratings, and those of processors,
        each with the choice of its settings, in the fit of this name; nothing without one.
        """
        for what, phases, took in (
            ("time", self.phases, head),
            ("processor time", self.phases_cpu, head_cpu),
        ):
            ratings = phases.get("trial", 0.0) + phases.get("fitting", 0.0)
            if took and ratings:
                detail = f"{number(took)} against {number(ratings)} s"
                work, other = f"{what} of the ranking head, {name}", "trial and fit of the ratings"
                yield Row(work, "x", (took / ratings,), at_most(1.0, 1.0), other, detail)


def measure(options: RefitOptions, console: Console) -> list[Row]:
    """Measure each size on a stack of its own."""
    rows: list[Row] = []
    for full in options.sizes:
        n = options.size(full, 2_000)
        made = draw(n + min(HELD_OUT, n // 20), options.rank, seed=options.seed)
        console.print(f"{len(made.data.ratings.value):,} ratings made", style="dim")
        found = _rows(made, COLD.get(full), options.more, console)
        rows += [replace(row, work=f"{n:,} ratings: {row.work}") for row in found]
    return rows


def _rows(made: MadeSet, target: Target | None, share: float, console: Console) -> Iterator[Row]:
    data, ratings = made.data, made.data.ratings
    # Ratings come in the order of their times; those held out are of any.
    order = np.random.default_rng(0).permutation(len(ratings.value))
    held_out = min(HELD_OUT, len(ratings.value) // 20)
    n = len(ratings.value) - held_out
    first = round(n / (1 + share))
    train = np.sort(order[:n])
    test, before, more = (data.part(rows) for rows in (order[n:], train[:first], train[first:]))
    scale, settings = format_scale(SCALE), {**stack.NO_REFITS, "FOLDIN_LOG_LEVEL": "INFO"}
    with (
        stack.store(fsync="always") as url,
        stack.trainer(url, scale=scale, settings=settings) as trainer,
        stack.service(url, scale=scale) as port,
    ):
        own_bytes = [memory_mb("RssAnon", trainer.pid) * 1e6]

        def look() -> None:
            own_bytes.append(memory_mb("RssAnon", trainer.pid) * 1e6)

        with (
            stack.looking(look, LOOK_S, "memory of the trainer"),
            redis.Redis.from_url(url) as server,
        ):
            empty = _used(server)
            asyncio.run(load(url, before))
            until_archived(port)
            console.print(f"{first:,} ratings archived", style="dim")
            began = time.perf_counter()
            cold = _fit(port, trainer, test)
            head = _head(trainer)
            listed_s = time.perf_counter() - began
            asyncio.run(load(url, more))
            warm = _fit(port, trainer, test)
            until_archived(port)
            kept = len(_generations(port))
            stored = _used(server) - empty - _head_bytes(server)
        mapped_mb, most_mb = (memory_mb(name, trainer.pid) for name in ("RssFile", "VmHWM"))
    expected = made.expected(test.user_row.astype(np.int64), test.item_row.astype(np.int64))
    known = float(np.sqrt(np.mean((expected - test.value) ** 2)))
    yield Row("POST /train until live", "s", (cold.seconds,), target, "", cold.detail)
    yield Row("until lists are by a ranking head", "s", (listed_s,), None, "", f"head {number(head[0])}")
    yield Row(f"again after {n - first:,} more", "s", (warm.seconds,), None, "", warm.detail)
    # A refit has the head before it is live, the first fit after: the same work on both sides.
    both = "first fit and head"
    for work, its, first_s, later_s in (
        ("a refit", warm.seconds, cold.seconds, head[0]),
        ("processor time of the refit's process", warm.cpu_s, cold.cpu_s, head[1]),
    ):
        # Of few ratings the first fit has its head as well.
        head_s = 0.0 if "ranking" in cold.phases else later_s
        detail = f"{number(its)} against {number(first_s)} and {number(head_s)} s"
        yield Row(work, "x", (its / (first_s + head_s),), at_most(0.2, 0.33), both, detail)
    yield Row(
        "RMSE of ratings held out, after the refit",
        "x",
        (warm.rmse / cold.rmse,),
        at_most(1.002, 1.005),
        "after the first fit",
        f"{number(warm.rmse)} against {number(cold.rmse)}; the world itself {number(known)}",
    )
    heads = (head[:2], (warm.phases.get("ranking", 0.0), warm.phases_cpu.get("ranking", 0.0)))
    for name, fitted, its_head in zip(("first fit", "refit"), (cold, warm), heads, strict=True):
        yield from fitted.head_rows(name, *its_head)
        per_rating = max(0.0, fitted.peak_bytes - BASE_BYTES) / n
        yield Row(
            f"memory of the {name} beyond {BASE_BYTES / 1e6:.0f} MB, a rating",
            "bytes",
            (per_rating,),
            at_most(110, 140),
            "",
            f"{number(fitted.peak_bytes / 1e6)} MB",
        )
    size = Deployment(made.data.n_users, made.data.n_items, n, rank=cold.rank)
    yield sized("first fit", size.fit_bytes, cold.peak_bytes)
    if "ranking" not in cold.phases:
        yield sized("fit of a ranking head", max(size.fit_bytes, size.head_fit_bytes), head[2])
    yield sized("trainer", size.trainer_bytes, max(own_bytes))
    # How many neighbours an item has in a head, held-out events choose: 0 to all that `foldin size` says.
    yield sized("store, but for ranking heads", size.kept_bytes(kept, 0), stored)
    yield Row("files mapped by the trainer, in memory", "MB", (mapped_mb,), None, "")
    yield Row("most memory of the trainer", "MB", (most_mb,), None, "", "with files that it maps")


def _used(server: "redis.Redis") -> float:
    return float(server.info("memory")["used_memory"])


def _head_bytes(server: "redis.Redis") -> float:
    keys = server.scan_iter(match="*:generation:*:index:*", count=A_CALL)
    return float(sum(server.memory_usage(key, samples=0) or 0 for key in keys))


async def load(url: str, ratings: Ratings, scale: str | None = None) -> None:
    """Write ratings into the store, as an import does, past the limits of the HTTP API. `scale`: of the
    store, None for that of made sets.
    """
    store = await Store.open(
        replace(synthetic.store_settings(url), scale=scale or format_scale(SCALE)), hot=False
    )
    try:
        for start in range(0, len(ratings.value), A_CALL):
            part = slice(start, start + A_CALL)
            rows = zip(ratings.user_row[part].tolist(), ratings.item_row[part].tolist(), strict=True)
            users, items = zip(*((b"user-%d" % user, b"item-%d" % item) for user, item in rows), strict=True)
            columns = Columns(users, items, ratings.value[part], ratings.time[part])
            while True:
                try:
                    await store.ratings.append_columns(columns)
                    break
                except StreamFull:
                    # The trainer archives meanwhile.
                    await asyncio.sleep(0.5)
    finally:
        await store.close()


def _fit(port: int, trainer: BlockingChild, test: Ratings) -> Measured:
    with Client(port, timeout_s=LIVE_S + 60.0) as client:
        began = time.perf_counter()
        answer = json.loads(client.ask(post(f"/train?wait={LIVE_S}", b"")))
        seconds = time.perf_counter() - began
        if "generation" not in answer:
            raise BenchmarkError(f"the fit was not live after {LIVE_S} s: {answer}")
        rmse = _rmse(client, test)
    rank = next(int(each["rank"]) for each in _generations(port) if each["live"])
    told = _last(trainer.text, "fit_published")
    ended = _last(trainer.text, "fit_ended")
    phases, used = (
        {name: float(line[key]) for name in PHASES if (key := f"{before}{name}_s") in line}
        for line, before in ((told, ""), (ended, "cpu_"))
    )
    return Measured(
        seconds, float(ended["cpu_s"]), phases, used, float(ended.get("peak_bytes", 0)), rank, rmse
    )


def _generations(port: int) -> list[dict[str, Any]]:
    with Client(port) as client:
        kept: list[dict[str, Any]] = json.loads(client.ask(get("/generations")))["generations"]
        return kept


def _head(trainer: BlockingChild) -> tuple[float, float, float]:
    """Return the seconds of the first ranking head, which a fit that begins by itself may bring, those of
    processors, and the bytes of its process.
    """
    for _ in range(LIVE_S * 5):
        for told in _lines(trainer.text, "fit_published"):
            if "ranking_s" in told:
                used = next(line for line in _lines(trainer.text, "fit_ended") if "cpu_ranking_s" in line)
                return float(told["ranking_s"]), float(used["cpu_ranking_s"]), float(used["peak_bytes"])
        time.sleep(0.2)
    raise BenchmarkError(f"no ranking head was live after {LIVE_S} s")


def _rmse(client: Client, test: Ratings) -> float:
    pairs = [
        (f"user-{user}", f"item-{item}")
        for user, item in zip(test.user_row.tolist(), test.item_row.tolist(), strict=True)
    ]
    answer = json.loads(client.ask(post("/predict", json.dumps({"pairs": pairs}).encode())))
    told = np.array([each["rating"] for each in answer["predictions"]])
    return float(np.sqrt(np.mean((told - test.value) ** 2)))


def _last(log: str, event: str) -> dict[str, str]:
    """Return the fields of the last line of a log about `event`."""
    if not (lines := _lines(log, event)):
        raise BenchmarkError(f"the trainer's log has no line {event}: {log[-500:]}")
    return lines[-1]


def _lines(log: str, event: str) -> list[dict[str, str]]:
    return [dict(re.findall(r"(\w+)=(\S+)", line)) for line in log.splitlines() if f" {event} " in line]


main = benchmark("refit", __doc__, measure, RefitOptions)
