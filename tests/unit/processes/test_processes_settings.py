"""Declared settings: how they are read, what is reported, and the reference that is made of them."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from processes.settings import (
    HIDDEN,
    SettingsError,
    choice,
    load,
    nested,
    program,
    real,
    setting,
    url,
    whole,
)


@dataclass(frozen=True, slots=True)
class Inner:
    """Read along with its owner."""

    share: float = setting(0.5, "a share", real(0, 1), variable="FOLDIN_SHARE")
    left_out: int = setting(1, "not read here", whole(0))


@dataclass(frozen=True, slots=True)
class Outer:
    """One setting of every kind."""

    path: Path = setting(..., "a file", Path, flag="FILE")
    size: int = setting(12_000, "a size", whole(1), variable="FOLDIN_SIZE", flag="--size")
    colour: str = setting("red", "a colour", choice(("red", "blue")))
    names: tuple[str, ...] = setting(("a", "b"), "some names", many=True)
    loud: bool = setting(False, "whether it is loud", excludes="quiet")
    quiet: bool = setting(False, "whether it is quiet")
    player: str = setting("python", "a program", program)
    secret_number: int = setting(0, HIDDEN, int)
    inner: Inner = nested(Inner, without=("left_out",))
    computed: int = 7

    def problems(self) -> list[str]:
        """What is contradictory."""
        return ["blue cannot be loud"] if self.loud and self.colour == "blue" else []


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_default() -> None:
    environ = {"FOLDIN_SIZE": "5", "FOLDIN_SHARE": "0.25"}
    read = load(Outer, ["f", "--size", "6", "--names", "x,y", "z", "--loud"], environ)
    assert (read.path, read.size, read.colour, read.names) == (Path("f"), 6, "red", ("x", "y", "z"))
    assert (read.loud, read.inner.share, read.inner.left_out, read.computed) == (True, 0.25, 1, 7)
    assert load(Outer, ["f"], environ).size == 5
    assert load(Outer, ["f"], {"FOLDIN_SIZE": ""}).size == 12_000


def test_every_mistake_is_reported_with_its_source_and_what_it_must_be() -> None:
    argv = ["--names", "--size", "0", "--colour", "green", "--odd"]
    with pytest.raises(SettingsError) as caught:
        load(Outer, argv, {"FOLDIN_SHARE": "much"})
    assert set(caught.value.problems) == {
        "FILE needs a value",
        "--names needs a value",
        "unknown argument --odd",
        "--size must be a whole number from 1 to 2147483647, not '0'",
        "--colour must be red or blue, not 'green'",
        "FOLDIN_SHARE must be a number from 0 to 1, not 'much'",
    }
    assert "\n" not in str(caught.value)
    for player in ("/none/such", "no-such-program", "/"):
        with pytest.raises(SettingsError, match=f"^--player must be a program .* not '{player}'$"):
            load(Outer, ["f", "--player", player], {})
    assert load(Outer, ["f", "--player", "sh"], {}).player == "sh"
    with pytest.raises(SettingsError, match="blue cannot be loud"):
        load(Outer, ["f", "--loud", "--colour", "blue"], {})
    with pytest.raises(SettingsError, match=r"^--loud and --quiet exclude each other: leave one out$"):
        load(Outer, ["f", "--loud", "--quiet"], {})


def test_values_that_are_none() -> None:
    for text in ("", "1_0", "1.0", "--5", "\u0661", "1" * 50):
        with pytest.raises(ValueError, match="whole number from 0 to 9"):
            whole(0, 9)(text)
    assert url("http://host:1/") == "http://host:1"
    for text in ("host:1", "http://", "ftp://host"):
        with pytest.raises(ValueError, match="http"):
            url(text)
