"""`foldin size` says what the manual says, in figures."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import start
from benchmarks.harness.report import SIZED
from benchmarks.stacks import refit
from factors import Layout
from featurestore.settings import CLUSTER_PARTITIONS
from foldin.sizing.measured import POINTS
from foldin.sizing.model import Deployment

DOCS = Path(__file__).parents[3] / "docs"
SHOP = Deployment(users=200_000, items=30_000, ratings=10e6)


def formula_of(name: str) -> str:
    text = (DOCS / "sizing.md").read_text("utf-8")
    (found,) = re.findall(rf"^    {name} <= (.*(?:\n +\+ .*)*)", text, re.MULTILINE)
    text = re.sub(r"(?<=\d),(?=\d)|, (or|for) .*", "", found)
    text = re.sub(r"\s+", " ", text.replace(" x ", " * ")).replace(" MB", " * 1e6").replace("^", "**")
    # 26 R, 3 (12 + ...), 86 E P: what stands side by side is multiplied.
    return re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", text)


def test_store_and_fit_take_what_the_formulas_of_the_manual_say() -> None:
    names = {"R": SHOP.ratings / SHOP.users, "E": 100_000, "P": 16, "r": 64, "neighbours": 100}
    names |= {"user_width": SHOP.user_width, "item_width": SHOP.item_width}
    names |= {"N": SHOP.ratings, "w": Layout(16, 0).width, "U": SHOP.users, "I": SHOP.items}
    assert SHOP.store_bytes(16) == pytest.approx(eval(formula_of("store"), {}, names))
    assert SHOP.fit_bytes == pytest.approx(eval(formula_of("fit"), {}, names))
    few = replace(SHOP, items=9_000).head_fit_bytes
    assert few == pytest.approx(eval(formula_of("head"), {}, names | {"I": 9_000}))
    assert SHOP.trainer_bytes == pytest.approx(eval(formula_of("trainer"), {}, names))
    assert SHOP.worker_bytes == pytest.approx(eval(formula_of("service"), {}, names | {"k": 16}))
    more = replace(SHOP, sessions=16).fit_bytes - SHOP.fit_bytes
    assert more == pytest.approx(72 * SHOP.ratings + 32 * 48 * (SHOP.users + SHOP.items))


# Fits of 1.5 million ratings take three minutes of a machine that does nothing else.
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_is_said_is_within_15_per_cent_of_what_is_taken() -> None:
    sizes = (100_000, 400_000, 1_000_000)
    rows = [
        *refit.measure(refit.RefitOptions(sizes=sizes), Console(quiet=True)),
        *start.sizes(start.SIZES, 0),
    ]
    off = {row.work: row.median for row in rows if SIZED in row.work}
    assert len(off) == 4 * len(sizes) + len(start.SIZES)
    assert all(value < 1.15 for value in off.values()), off


def test_a_store_that_fits_one_server_is_one_and_a_larger_one_a_cluster() -> None:
    assert SHOP.primaries == 1
    large = Deployment(users=10e6, items=1e6, ratings=1e9)
    assert (large.primaries, replace(large, server_bytes=40e9).primaries) == (3, 3)
    # Servers hold whole partitions: of 256 on 61 to 63 servers, and of 2,048 on 1,001, some hold far more.
    for server_bytes in (32e9, 6e9, 1e9, 3e8, 2e8):
        many = replace(large, server_bytes=server_bytes)
        figures = {each.name: each.value for each in many.figures() if each.part == "store"}
        assert many.primaries <= many.partitions
        assert figures["maxmemory of each"] <= server_bytes
    small = replace(large, server_bytes=8e9)
    assert (large.partitions, small.primaries, small.partitions) == (CLUSTER_PARTITIONS, 10, 256)


def test_seconds_of_a_fit_are_the_rows_of_the_measurement() -> None:
    rows = re.findall(
        r"`refit` \| ([\d,]+) ratings: (POST /train until live|again after [\d,]+ more) \| ([\d.]+) s",
        (DOCS / "performance.md").read_text(encoding="utf-8"),
    )
    found = {(each, how.startswith("again")): float(seconds) for each, how, seconds in rows}
    # A row says what was made, a hundredth of which came later.
    said = {
        (f"{round(point.ratings * 1.01, -4):,.0f}", again): point.again_s if again else point.cold_s
        for point in POINTS
        for again in (False, True)
    }
    assert found == said
