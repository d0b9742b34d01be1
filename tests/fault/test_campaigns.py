"""Short campaigns on a whole stack: kills lose nothing, and refits make no answer stale or mixed.

`foldin bench durability` and `foldin bench consistency` run the same for longer. `test_failover.py` has the
campaign of promotions.
"""

from pathlib import Path

import pytest

from benchmarks.campaigns import consistency, durability

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(240)]


async def test_nothing_acknowledged_is_lost_when_trainer_store_and_service_are_killed(tmp_path: Path) -> None:
    report = await durability.campaign(
        seconds=20, seed=7, every_s=3.0, victims=durability.VICTIMS, data=tmp_path / "data"
    )
    assert report.acknowledged > 0
    assert all(report.kills[victim] for victim in durability.VICTIMS), report.lines()
    assert report.wrong == 0, report.lines()


async def test_no_answer_is_stale_or_mixes_generations_while_refits_follow_each_other(tmp_path: Path) -> None:
    report = await consistency.campaign(users=100, rounds=3, refits=2, seed=7, data=tmp_path / "data")
    assert report.answers >= 600
    assert len(report.generations) >= 3
    assert report.wrong == 0, report.lines()
