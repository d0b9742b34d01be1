"""A first file that cannot be imported is refused with the word that helps."""

import asyncio
from pathlib import Path

import pytest

from evaluation.course.protocol import evaluate
from evaluation.course.settings import EvaluationSettings
from foldin.files.layout import find_layout
from processes.errors import CannotStartError
from processes.probes import unused_port
from processes.settings import SettingsError

HELP = {
    "Excel": (b"PK\x03\x04\x14\x00\x06", "save its sheet as CSV"),
    "binary": (b"\x01\x00user,item", "save it as CSV"),
    "no header": (b"ann,dune,4\nbob,emma,3\n", "--columns user=1,item=2,rating=3"),
    "items": (b"item_id,title,year\ndune,Dune,1965\n", "--items"),
    "names of its own": (b"who,what,rating_given\nann,dune,4\n", "--columns user=NAME"),
}


@pytest.mark.parametrize("name", HELP)
def test_a_file_that_cannot_be_told_apart_is_refused_with_what_helps(name: str, tmp_path: Path) -> None:
    content, helps = HELP[name]
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CannotStartError) as caught:
        find_layout(path, "auto", None)
    line = str(caught.value)
    assert helps in line
    assert line.isprintable()


def test_an_evaluation_of_an_api_that_does_not_answer_does_not_play(tmp_path: Path) -> None:
    told = ("--api", f"http://127.0.0.1:{unused_port()}", "--output", str(tmp_path / "out"))
    with pytest.raises(SettingsError, match="foldin up"):
        asyncio.run(evaluate(EvaluationSettings.load(told, {})))
