"""`foldin up` for real: it comes up, answers, is told to go, and comes back with everything it knew."""

import json
import re
import shutil
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as LostConnection

from processes import backoff
from tests.support import house
from tests.support.disks import leave_free, small_disk
from tests.support.servers import missing
from tests.support.stacks import Stack, foldin, processes, stack
from tests.support.waiting import PATIENCE_S, wait_until

# Each of these runs a whole stack: one at a time, so that they do not fight for the cores.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def known_ratings(running: Stack, user: str) -> int:
    return len(running.call("GET", f"/users/{user}/ratings")["ratings"])


def test_up_play_ctrl_c_and_up_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    config = tmp_path / "mine.toml"
    config.write_text(
        '[service]\nhosts = ["shop.example"]\n[environment]\nusers = 7\nitems = 11\nknown = 20\n'
    )
    with stack(data, "--config", str(config), FOLDIN_PLAY_STEPS="20") as running:
        running.says("Where to look next")
        assert re.search(r"step 10 of 20, mean squared error: random .* deployed", running.text)
        for address in (running.url, f"http://127.0.0.1:{running.environment_port}", f"{running.url}/docs"):
            assert address in running.text
        rating = {"user_id": "ann", "item_id": "12", "rating": 5}
        assert running.call("POST", "/ratings", rating)["accepted"] == 1
        known = json.loads((data / "stack.json").read_text())
        assert known["url"] == running.url
        # Each part has what the file says, and the other commands find the stack by it.
        assert "shop.example" in json.dumps(running.call("GET", "/settings"))
        with urllib.request.urlopen(f"http://127.0.0.1:{running.environment_port}/reset?user_id=x") as answer:
            assert json.loads(answer.read())["nb_users"] == 7
        example = json.loads(foldin("client-example", "--json", "--data", data).stdout)
        # As npm lays the client there.
        (tmp_path / "node_modules").mkdir()
        (tmp_path / "node_modules/foldin-client").symlink_to(house.ROOT / "clients/javascript")
        (tmp_path / "example.mjs").write_text(example["javascript"])
        node = shutil.which("node") or missing("node")
        # The last one takes back what they have rated.
        programs = (
            [node, "example.mjs"],
            [sys.executable, "-c", example["python"]],
            ["bash", "-ec", example["curl"]],
        )
        for command in programs:
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
            assert "generation" in done.stdout
        found = json.loads(foldin("doctor", "--json", "--data", data, "--config", config).stdout)
        assert found["worst"] == "ok", found
        assert running.interrupt() == 0
        assert processes(data) == []
        assert not (data / "stack.json").exists()
    with stack(data) as again:
        again.says("No player this time")
        assert known_ratings(again, "ann") == 1
        assert again.interrupt() == 0
    assert processes(data) == []
    for name in ("store", "trainer", "service", "environment", "player"):
        assert (data / "logs" / f"{name}.log").exists()
    assert not [path for path in data.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]


def test_where_others_can_reach_it_a_key_is_made_and_asked_for(tmp_path: Path) -> None:
    data = tmp_path / "data"
    file = data / "operator.key"
    with stack(data, "--host", "0.0.0.0", FOLDIN_PLAY_STEPS="20") as running:
        # The player has the key: it trains.
        running.says("Where to look next")
        assert re.search(r"step 10 of 20, mean squared error: random .* deployed", running.text)
        assert str(file) in running.text
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        key = file.read_text().strip()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            running.call("GET", "/generations")
        assert running.call("GET", "/generations", key=key)["live"] >= 1
        listed = foldin("keys", "list", "--data", data)
        assert re.match(r"operator +operate ", listed.stdout)
        said = running.text + "".join(path.read_text() for path in (data / "logs").iterdir())
        assert key not in said
        assert running.interrupt() == 0
    # There are keys: they are asked for on loopback too, and the first one is the same.
    with stack(data, "--no-play") as again:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            again.call("GET", "/generations")
        assert again.call("GET", "/generations", key=file.read_text().strip())["live"] >= 1
        assert file.read_text().strip() == key
        assert again.interrupt() == 0


def status_of(running: Stack, method: str, path: str, body: object = None) -> int:
    try:
        running.call(method, path, body)
    except urllib.error.HTTPError as exc:
        return exc.code
    except OSError:
        return 0
    return 200


def overfill(store: Redis) -> None:
    for n in range(100):
        store.set(f"other:{n}", b"x" * 2**16)


def test_a_full_disk_ends_the_store_and_not_the_stack(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 192) as disk, stack(disk / "data", "--no-play") as running:
        parts = {name: running.part(name) for name in ("service", "trainer")}
        rated = [{"user_id": "ann", "item_id": f"i{n}", "rating": 4} for n in range(20)]
        assert running.call("POST", "/ratings", rated)["accepted"] == 20
        # Far from full: the trainer says so, and nothing else changes.
        leave_free(disk, 40)
        wait_until(lambda: status_of(running, "POST", "/ratings", rated[:1]) == 507, "ratings refused")
        assert status_of(running, "GET", "/predict?user_id=ann&item_id=i1") == 200
        leave_free(disk, 1)
        store = Redis(unix_socket_path=str(running.data / "store/store.sock"))
        with pytest.raises(LostConnection):
            overfill(store)
        running.says(r"store ended \(code 1\): the disk under .* is full; make room")
        for _ in range(3 * backoff.MAX_FAILURES):
            # From a copy, as far as the worker has one.
            assert running.call("GET", "/predict?user_id=ann&item_id=i1")["degraded"] is True
            assert status_of(running, "POST", "/ratings", rated[:1]) in {503, 507}
            assert status_of(running, "GET", "/livez") == 200
        (disk / "filler").unlink()
        wait_until(lambda: status_of(running, "POST", "/ratings", rated[:1]) == 200, "ratings again")
        assert "store is back" in running.text
        assert running.text.count("store ended") == 1
        assert {name: running.part(name) for name in parts} == parts
        # A read waits until the worker has heard again which history is live: a ratings call need not.
        reads = "/users/ann/ratings"
        wait_until(lambda: status_of(running, "GET", reads) == 200, "reads again")
        assert known_ratings(running, "ann") == 20
        store.close()
        assert running.interrupt() == 0


def test_a_store_that_was_emptied_is_said_and_everything_else_goes_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    rating = {"user_id": "ann", "item_id": "12", "rating": 5}
    segments = "archive/foldin/epoch-000001/*.parquet"
    trash = "archive/foldin/trash/epoch-000001.*/*.parquet"
    with stack(data, "--no-play") as running:
        running.call("POST", "/ratings", rating)
        wait_until(lambda: any(data.glob(segments)), "the rating archived")
        assert running.interrupt() == 0
    archived = {path: path.read_bytes() for path in data.glob(segments)}
    shutil.rmtree(data / "store")
    without = Stack(data)
    try:
        without.says("Everything but the trainer runs")
        without.says(r"the archive is left as it is: .*another store.*`foldin restore`.*--adopt")
        without.says("trainer has stopped; the rest goes on without it")
        assert without.call("POST", "/ratings", rating)["accepted"] == 1
        assert known_ratings(without, "ann") == 1
        assert without.part("trainer") == 0
        # Of a store that knows nothing the prior.
        assert without.call("GET", "/predict?user_id=bob&item_id=12")["basis"] == "prior"
        assert without.interrupt() == 0
    finally:
        without.process.end(grace_s=PATIENCE_S)
    assert {path: path.read_bytes() for path in data.glob(segments)} == archived
    with stack(data, "--no-play", "--adopt") as running:
        assert known_ratings(running, "ann") == 1
        # The old segments lie there until the trainer leads: first that they are gone, then that there are
        # new ones.
        wait_until(lambda: any(data.glob(trash)), "the old archive in the trash")
        wait_until(lambda: any(data.glob(segments)), "the archive made anew")
        assert running.interrupt() == 0
    (kept,) = data.glob(trash)
    assert kept.read_bytes() in archived.values()
