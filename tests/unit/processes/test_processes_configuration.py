"""`foldin.toml`: what it may have, what wins over it, and what is said of mistakes in it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from environment.settings import ServerSettings
from evaluation.course.settings import PlaySettings
from featurestore.settings import StoreSettings
from foldin.settings import CommonOptions, ImportOptions, StackOptions
from processes import settings
from processes.configuration import SECRETS, VARIABLES, configured
from processes.settings import SettingsError, choice, declarations, load, program, real, setting, whole
from service.settings import ServiceSettings, read_settings
from trainer.settings import TrainerSettings

# What reads variables that the file may set, and what stands for itself in a command line.
ROLES: tuple[type[Any], ...] = (
    *(StoreSettings, ServiceSettings, TrainerSettings, ServerSettings),
    *(StackOptions, ImportOptions, PlaySettings),
)


def test_the_file_may_have_every_variable_of_every_role() -> None:
    # Those of AWS are read by a library, too, which knows no file.
    ours = {each.variable for cls in ROLES for _, each in declarations(cls) if each.variable}
    variables = {each for each in ours if each.startswith("FOLDIN_")}
    named = [variable for keys in VARIABLES.values() for variable in keys.values()]
    assert len(named) == len(set(named)), "each stands in one place"
    secrets = {f"FOLDIN_{key.upper()}" for key in SECRETS}
    assert set(named) == variables - secrets
    # Which file it is cannot stand in it.
    assert {each.variable for _, each in declarations(CommonOptions)} == {"FOLDIN_CONFIG", None}


def write(folder: Path, text: str, name: str = "foldin.toml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(tmp_path: Path) -> None:
    write(tmp_path, "[service]\nport = 9000\nworkers = 2\n")

    def port(argv: list[str], environ: dict[str, str]) -> int:
        return read_settings(*configured(argv, environ, tmp_path))[0].port

    assert port(["--port", "9002"], {"FOLDIN_PORT": "9001"}) == 9002
    assert port([], {"FOLDIN_PORT": "9001"}) == 9001
    assert port([], {}) == 9000
    # An empty variable is none: compose files pass on what is not set as empty.
    assert port([], {"FOLDIN_PORT": ""}) == 9000
    (tmp_path / "foldin.toml").unlink()
    assert port([], {}) == 8080


def test_the_example_of_the_manual_is_taken_by_each_role(tmp_path: Path) -> None:
    manual = Path(__file__).parents[3] / "docs/settings.md"
    (example,) = re.findall(r"```toml\n(.*?)```", manual.read_text("utf-8"), re.DOTALL)
    write(tmp_path, example)
    read = {each: load(each, *configured([], {}, tmp_path)) for each in ROLES if each is not ImportOptions}
    assert (read[ServiceSettings].port, read[TrainerSettings].rules.seconds) == (8000, 120)
    assert read[StoreSettings].url == "redis://foldin@store.example:6379"
    assert read[StackOptions].data == Path("/srv/foldin")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[service]\nprot = 1\n", r"\[service\] prot is no setting: did you mean \[service\] port\?"),
        ("[trainer]\nport = 1\n", r"\[trainer\] port is no setting: did you mean \[service\] port\?"),
        ("[service]\nlog_levle = 1\n", r"\[service\] log_levle is no setting: did you mean log_level\?"),
        ("[servce]\nport = 1\n", r"\[servce\] is no section: did you mean \[service\]\?"),
        ("[xyzzy]\n", r"\[xyzzy\] is no section: there are \[store\], "),
        ("[service.port]\nx = 1\n", r"\[service\] port must be a text, a number, or true or false$"),
        ("[service]\nhosts = [[1]]\n", r"\[service\] hosts must be a text"),
        ('[store]\nnamespace = "a\\u0000b"\n', r"\[store\] namespace must not have a zero byte"),
        ('[client]\napi_key = "x"\n', r"\[client\] api_key is a secret: .* name that by api_key_file"),
        ('[store]\nredis_password = "x"\n', r"is a secret: .* name that by redis_password_file"),
        ('[store]\nredis_url = "redis://me:word@host"\n', r"redis_url must not have a password"),
        ("[service\n", "is no TOML"),
        ("a = " + "[" * 5000, "is no TOML"),
    ],
)
def test_mistakes_are_named_with_what_was_meant(text: str, words: str, tmp_path: Path) -> None:
    write(tmp_path, text)
    with pytest.raises(SettingsError, match=words) as caught:
        configured([], {}, tmp_path)
    assert str(tmp_path / "foldin.toml") in str(caught.value)
    assert "word@" not in str(caught.value), "the password is not shown"


@dataclass(frozen=True, slots=True)
class Inner:
    share: float = setting(0.5, "a share", real(0, 1), variable="FOLDIN_SHARE")
    left_out: int = setting(1, "not read here", whole(0))


@dataclass(frozen=True, slots=True)
class Outer:
    path: Path = setting(..., "a file", Path, flag="FILE")
    size: int = setting(12_000, "a size", whole(1), variable="FOLDIN_SIZE", flag="--size")
    colour: str = setting("red", "a colour", choice(("red", "blue")))
    names: tuple[str, ...] = setting(("a", "b"), "some names", many=True)
    loud: bool = setting(False, "whether it is loud", excludes="quiet")
    quiet: bool = setting(False, "whether it is quiet")
    player: str = setting("python", "a program", program)
    secret_number: int = setting(0, settings.HIDDEN, int)
    inner: Inner = settings.nested(Inner, without=("left_out",))

    def problems(self) -> list[str]:
        return ["blue cannot be loud"] if self.loud and self.colour == "blue" else []


def test_every_mistake_is_reported_with_its_source_and_what_it_must_be() -> None:
    argv = ["--names", "--size", "0", "--colour", "green", "--odd", "--nam"]
    with pytest.raises(SettingsError) as caught:
        load(Outer, argv, {"FOLDIN_SHARE": "much"})
    assert set(caught.value.problems) == {
        "FILE needs a value",
        "--names needs a value",
        "unknown argument --odd",
        "unknown argument --nam: is --names meant?",
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
