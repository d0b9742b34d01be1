"""The memory of fits, each in a process of its own as the trainer runs it, is what docs/sizing.md says."""

import re
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import pytest

from processes.messages import helper
from tests.support.event_tables import event_table, free
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import spans_of
from trainer.archive.item_list import write_items
from trainer.fit_job.job import Answer, Began, FitRequest, Progress
from trainer.fit_job.result_files import read_result, take_name

pytestmark = pytest.mark.slow


# From so many on also the trial, which leaves some out, runs compiled loops.
N_RATINGS = 500_000
# A side of up to 1,000 rows has factors of its own, as many bytes as pairs of its rows.
USERS, ITEMS = 4_000, 1_200
FORMULA = re.compile(r"fit <= (\d+) N \+ (\d+) w \(U \+ I\) \+ (\d+) MB")


def formula() -> tuple[int, int, int]:
    """Bytes a rating, bytes a number of a row, and bytes of all else, as the document has them."""
    text = (Path(__file__).parents[3] / "docs" / "sizing.md").read_text("utf-8")
    (found,) = FORMULA.findall(text)
    rating, number, megabytes = map(int, found)
    return rating, number, megabytes * 1_000_000


def archive_of(n: int, folder: Path) -> EpochArchive:
    """Ratings in half steps, with factors to be found, no pair twice."""
    rng = np.random.default_rng(n)
    user, item = np.divmod(rng.choice(USERS * ITEMS, n, replace=False, shuffle=True), ITEMS)
    tastes, traits = rng.normal(size=(USERS, 3)), rng.normal(size=(ITEMS, 3))
    score = 3.0 + 0.5 * np.einsum("nk,nk->n", tastes[user], traits[item]) + rng.normal(0, 0.5, n)
    value, at = np.clip(np.rint(2 * score) / 2, 0.5, 5.0), np.arange(1, n + 1)
    archive = EpochArchive(folder, 1, guard=free)
    for part in np.array_split(np.arange(n), 4):
        users = [f"u{row}" for row in user[part]]
        columns = (users, at[part], item[part], value[part])
        table = event_table(*columns, stream_ms=at[part], time=1e9 + at[part])
        archive.append(table, spans_of(table))
    return archive


def status_of(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text("ascii")


async def peak_and_width(n: int, folder: Path) -> tuple[int, int]:
    """The most memory of a fit of so many ratings, until its ranking head, and the width of its user rows."""
    snapshot, files = archive_of(n, folder / "archive").open_snapshot()
    items = write_items(folder, [b"i%d" % row for row in range(ITEMS)])
    descriptors = tuple(file.fileno() for file in files)
    request = FitRequest(
        paths=tuple(map(str, snapshot.paths)),
        items=str(items),
        output=str(folder / "fit"),
        engine="variational",
        low=0.5,
        high=5.0,
        step=0.5,
        threads=2,
        seed=1,
        descriptors=descriptors,
    )
    decode = msgspec.msgpack.Decoder(Answer).decode
    async with helper("trainer.fit_job.job", descriptors) as running:
        answer = decode(await running.ask(msgspec.msgpack.encode(request)))
        while answer != Began("ranking"):
            assert isinstance(answer, Began | Progress), answer
            answer = decode(await running.receive())
        status = status_of(running.pid)
    for file in files:
        file.close()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    assert take_name(folder / "fit")
    return int(peak) * 1024, read_result(folder / "fit").users.shape[1]


@pytest.mark.timeout(900)
@pytest.mark.skipif(find_spec("numba") is None, reason="the formula is that of compiled loops (extra `fast`)")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the most memory")
async def test_a_fit_takes_no_more_memory_than_the_manual_says(tmp_path: Path) -> None:
    of_rating, of_number, rest = formula()
    peak, width = await peak_and_width(N_RATINGS, tmp_path)
    said = of_rating * N_RATINGS + of_number * width * (USERS + ITEMS) + rest
    # And not far less, so that it says something.
    assert 0.7 <= peak / said <= 1.0, (peak, said)
