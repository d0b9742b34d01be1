"""`foldin up` with a `foldin.toml`: each part has what it says; the examples run as they are printed."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from processes.blocking import BlockingChild, plain_environment, python_command
from processes.probes import unused_port
from tests.support.servers import missing
from tests.support.waiting import wait_until

# A whole stack.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
ENVIRON = plain_environment(os.environ, {"PYTHONPATH": str(Path(__file__).parents[3])})


def foldin(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = python_command("foldin", *map(str, arguments))
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=ENVIRON, check=False)


def ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


def test_a_wrong_file_keeps_every_role_from_starting(tmp_path: Path) -> None:
    (tmp_path / "foldin.toml").write_text("[service]\nprot = 1\n")
    for words in (("service",), ("trainer",), ("environment",), ("foldin", "up")):
        done = subprocess.run(
            python_command(*words), capture_output=True, text=True, cwd=tmp_path, env=ENVIRON, check=False
        )
        assert done.returncode == 2, words
        assert done.stderr.endswith("[service] prot is no setting: did you mean [service] port?\n")
        assert done.stderr.count("\n") == 1


def test_every_part_has_what_the_file_says(tmp_path: Path) -> None:
    port, environment_port, trainer_port = unused_port(), unused_port(), unused_port()
    config = tmp_path / "mine.toml"
    config.write_text(
        f"""
[service]
port = {port}
hosts = ["shop.example"]
[trainer]
address = "127.0.0.1:{trainer_port}"
[environment]
port = {environment_port}
users = 7
items = 11
known = 20
[store]
namespace = "shop"
[up]
data = "{tmp_path}/there"
no_play = true
"""
    )
    # From another folder: the path of the file is handed to the parts whole.
    up = BlockingChild(
        python_command("foldin", "up", "--json", "--config", str(config)),
        tmp_path / "up.log",
        environment=ENVIRON,
    )
    try:
        wait_until(lambda: '"event": "ready"' in up.text or up.code is not None, "the stack")
        assert up.code is None, up.text
        told = next(json.loads(line) for line in up.text.splitlines() if line.startswith("{"))
        url = f"http://127.0.0.1:{port}"
        assert (told["api"], told["data"]) == (url, str(tmp_path / "there"))
        assert ask(f"http://127.0.0.1:{trainer_port}/livez")
        settings = json.dumps(ask(f"{url}/settings"))
        assert "shop.example" in settings
        assert '"shop"' in settings
        assert ask(f"http://127.0.0.1:{environment_port}/reset?user_id=x")["nb_users"] == 7
        # The other commands find the stack by the same file.
        found = json.loads(foldin(tmp_path, "doctor", "--json", "--config", config).stdout)
        assert found["worst"] == "ok", found
        check_examples(tmp_path, config, url)
    finally:
        up.end(grace_s=40.0)


def check_examples(folder: Path, config: Path, url: str) -> None:
    """Run what `client-example` prints, as it stands."""
    texts = json.loads(foldin(folder, "client-example", "--json", "--config", config).stdout)
    assert all(url in text and len(text.splitlines()) == 5 for text in texts.values())
    programs = {
        "curl": ["sh", "-e"],
        "python": [sys.executable],
        "javascript": ["node", "--input-type=module"],
    }
    for language, command in programs.items():
        if shutil.which(command[0]) is None or shutil.which("curl") is None:
            missing(command[0])
        done = subprocess.run(
            command, input=texts[language], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done
        assert "accepted" in done.stdout
        assert "recommendation_id" in done.stdout
        assert "code" not in done.stdout, "none is a problem"
