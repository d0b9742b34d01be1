"""Small parts of the store: slots, settings, records, types, arms, the lock of rows, files, log lines."""

import asyncio
import json
import logging
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from factors import Scale
from featurestore import codecs
from featurestore.catalogue.item import AttributeType, type_of
from featurestore.catalogue.schema import shown, typed
from featurestore.cluster.servers import ClusterKeys
from featurestore.cluster.slots import even_tags, slot_of
from featurestore.codecs import RecordCorrupt
from featurestore.errors import StoreRefused
from featurestore.experiments import Arm, Definition, Experiment
from featurestore.generations.item_table_file import TableCache
from featurestore.generations.live import RowLock
from featurestore.ratings.files import FileState, Step, next_step
from featurestore.settings import StoreSettings, format_scale, parse_scale, redacted
from featurestore.telemetry.log_lines import JsonLines, TextLines
from tests.support.waiting import PATIENCE_S
from trainer import log


def test_slot_is_that_of_the_specification() -> None:
    # Its own example, and one of `CLUSTER KEYSLOT` of a server.
    assert slot_of(b"123456789") == 0x31C3
    assert slot_of(b"{user1000}.following") == slot_of(b"user1000") == 3443


def test_some_tags_that_stored_keys_have() -> None:
    assert even_tags(4) == (b"48576", b"1296", b"2821", b"16248")
    keys = ClusterKeys("ns", 4)
    assert keys.epochs(1) == b"ns:{1296}:epochs"
    together = [keys.config, keys.items(1), keys.order(1), keys.deltas(1, 2)]
    assert {slot_of(key) for key in together} == {slot_of(keys.live)}
    assert len({*together, keys.items(2), keys.order(2), keys.deltas(1, 3), keys.deltas(2, 2)}) == 8


SCALES = {"1:5": Scale(1, 5), "0.5:5:0.5": Scale(0.5, 5, 0.5), "-10:10": Scale(-10, 10)}
SCALES |= {"0:1:0.1": Scale(0, 1, 0.1), "0:1e-6": Scale(0, 1e-6), "1e8:100000101": Scale(1e8, 1e8 + 101)}


@pytest.mark.parametrize("text", SCALES)
def test_scales_are_read_and_written(text: str) -> None:
    assert parse_scale(text) == SCALES[text]
    assert parse_scale(format_scale(SCALES[text])) == SCALES[text]


def test_a_password_is_not_shown() -> None:
    url = "redis://user:hunter2@store:6379/0"
    assert redacted(url) == "redis://user:***@store:6379/0"
    assert redacted("redis://store:6379") == "redis://store:6379"
    assert "hunter2" not in repr(StoreSettings(url=url))


def test_each_byte_of_a_record_is_told() -> None:
    records = codecs.pack_records(np.array([3, 4, 5]), np.arange(12, dtype=np.float32).reshape(3, 4))
    size = len(records[0])
    assert codecs.damaged_records(b"".join(records), size) == []
    assert codecs.damaged_records(b"", size) == []
    for place in range(3 * size):
        damaged = bytearray(b"".join(records))
        damaged[place] ^= 1 << place % 8
        which = place // size
        assert codecs.damaged_records(memoryview(damaged), size) == [which]
        one = bytes(damaged[which * size : (which + 1) * size])
        assert codecs.read_record(one, size) is None
        with pytest.raises(RecordCorrupt):
            codecs.unpack_records([one], 4)
        # As it is marked where attributes of its user are others.
        assert codecs.read_record(bytes(8) + one, size) is None
    # Zeros are no record.
    assert codecs.damaged_records(bytes(2 * size), size) == [0, 1]


TYPED: dict[AttributeType, list[object]] = {
    "boolean": [True],
    "number": [3, 2.5],
    "text": ["red", "20240101", "2024-13-01"],
    "list": [[], ["a", "b"]],
    "time": ["2024-01-31", "2024-01-31T10:00:00+02:00", "2024-01-31 10:00Z"],
}


@pytest.mark.parametrize("expected", TYPED)
def test_a_type_is_inferred_and_survives_being_shown(expected: AttributeType) -> None:
    for value in TYPED[expected]:
        found = typed("it", value, None)
        assert type_of(found) == expected
        assert typed("it", shown(found), None) == found


FIXED = [0, -1, 0, -1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1]
USERS = [b"user-%d" % k for k in range(20_000)]


def split(name: str, *shares: float) -> Experiment:
    arms = tuple(Arm(f"arm-{k}", share, f"s{k}") for k, share in enumerate(shares))
    return Experiment(name, Definition(arms, 1e9))


def arms_of(experiment: Experiment) -> np.ndarray:
    return np.array([experiment.arm_of(experiment.mark_of(user_id)) for user_id in USERS])


def is_share(users: np.ndarray, share: float) -> bool:
    return bool(abs(np.mean(users) - share) < 5 * np.sqrt(share * (1 - share) / len(USERS)) + 1e-9)


def test_arms_have_their_shares_and_experiments_split_users_apart_from_each_other() -> None:
    for shares in ((0.5, 0.5), (0.1, 0.7, 0.2), (0.05, 0.05)):
        arms = arms_of(split("one", *shares))
        for arm, share in [*enumerate(shares), (-1, 1.0 - sum(shares))]:
            assert is_share(arms == arm, share)
    one, other = arms_of(split("one", 0.5, 0.5)), arms_of(split("other", 0.5, 0.5))
    assert is_share((one == 1) & (other == 1), 0.25)


def test_one_user_has_one_arm_for_ever() -> None:
    experiment = split("one", 0.3, 0.4)
    assert [experiment.arm_of(experiment.mark_of(b"%d" % k)) for k in range(16)] == FIXED


async def test_readers_and_a_writer_take_turns() -> None:
    lock, rows, began, go_on = RowLock(), [0], threading.Event(), threading.Event()

    def read() -> tuple[int, int]:
        with lock.reading():
            first = rows[0]
            began.set()
            assert go_on.wait(PATIENCE_S)
            return first, rows[0]

    async def write() -> None:
        async with lock.writing():
            rows[0] = 1

    reading = asyncio.create_task(asyncio.to_thread(read))
    await asyncio.to_thread(began.wait, PATIENCE_S)
    writing = asyncio.create_task(write())
    await asyncio.sleep(0)
    assert rows == [0]
    go_on.set()
    await writing
    assert (await reading, rows) == ((0, 0), [1])


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own"
    TableCache(own, "foldin")
    assert own.stat().st_mode & 0o777 == 0o700
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(StoreRefused, match="another user may write there"):
        TableCache(open_to_all, "foldin")
    link = tmp_path / "link"
    link.symlink_to(open_to_all)
    with pytest.raises(StoreRefused, match="another user"):
        TableCache(link, "foldin")


QUIET = FileState("run", 3, 0, busy=False, rewritten=True, saved=True, appends=True, dumps=False)
BOTH = replace(QUIET, saves=2, dumps=True)
DUMPS = replace(BOTH, appends=False)


@pytest.mark.parametrize(
    ("before", "now", "step"),
    [
        (QUIET, QUIET, "rewrite"),
        (QUIET, replace(QUIET, rewrites=4, busy=True), "wait"),
        (QUIET, replace(QUIET, rewrites=4), "done"),
        (QUIET, replace(QUIET, rewrites=4, rewritten=False), "rewrite"),
        (BOTH, replace(BOTH, rewrites=4), "save"),
        (BOTH, replace(BOTH, rewrites=4, saves=3), "done"),
        (BOTH, replace(BOTH, rewrites=4, saves=3, saved=False), "save"),
        # A dump that was begun since, by the store itself.
        (QUIET, replace(BOTH, rewrites=4), "done"),
        (DUMPS, DUMPS, "save"),
        (DUMPS, replace(DUMPS, saves=3), "done"),
        (replace(DUMPS, dumps=False), replace(DUMPS, dumps=False), "done"),
    ],
)
def test_next_step(before: FileState, now: FileState, step: Step) -> None:
    assert next_step([before], [now]) == step


def test_a_line_has_its_event_its_fields_and_its_error(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log.event("fit_published", generation=7, rmse=0.25, why=None, text="two\nlines")
        service, error = logging.getLogger("foldin.service"), ValueError("a\nb")
        service.error("it is %s", object, exc_info=error, extra={"request_id": "r"})
        logging.getLogger("foldin.store").warning("store connection lost", extra={"why": "reset\nby peer"})
        logging.getLogger("foldin").info("request_id=%s", "r", extra={"request_id": "r"})
    lines = [JsonLines().format(record) for record in caplog.records]
    assert not any("\n" in line for line in lines)
    event, failed, *_ = map(json.loads, lines)
    assert event["event"] == "fit_published"
    assert event["fields"] == {"generation": 7, "rmse": 0.25, "text": "two\nlines"}
    assert event["message"] == 'fit_published generation=7 rmse=0.25 text="two\\nlines"'
    assert (event["level"], event["logger"]) == ("INFO", "trainer")
    assert event["time"].endswith("Z")
    assert failed["request_id"] == "r"
    assert failed["error"].endswith("ValueError: a\nb")
    assert "trace_id" not in failed
    texts = [TextLines().format(record) for record in caplog.records]
    assert texts[0].endswith('INFO trainer fit_published generation=7 rmse=0.25 text="two\\nlines"')
    assert texts[2].endswith('WARNING foldin.store store connection lost why="reset\\nby peer"')
    assert texts[3].endswith("INFO foldin request_id=r")
