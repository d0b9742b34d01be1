"""Settings: a flag before a variable before the default, all mistakes at once."""

from pathlib import Path

import pytest

from environment.settings import ServerSettings
from environment.world import WorldOptions
from evaluation.course.settings import EvaluationSettings, PlaySettings
from processes.settings import SettingsError, declarations


def test_the_defaults_are_the_lectures() -> None:
    settings = ServerSettings.load([], {})
    assert settings == ServerSettings()
    assert (settings.host, settings.port, settings.seed) == ("127.0.0.1", 8081, None)
    assert settings.world == WorldOptions(100, 300, 10_000, 0, 0, 0, 0)


def test_a_flag_goes_before_a_variable() -> None:
    environ = {
        "FOLDIN_ENVIRONMENT_PORT": "9000",
        "FOLDIN_ENVIRONMENT_HOST": "127.0.0.2",
        "FOLDIN_ENVIRONMENT_SEED": "",
    }
    argv = ["--port", "9001", "--late-users", "0.25", "--known", "500"]
    settings = ServerSettings.load(argv, environ)
    assert settings.port == 9001
    assert settings.host == "127.0.0.2"
    assert settings.world.n_known == 500
    assert settings.world.late_users == 0.25
    assert settings.seed is None


def test_all_mistakes_are_reported_together() -> None:
    environ = {"FOLDIN_ENVIRONMENT_SEED": "nan", "FOLDIN_ENVIRONMENT_PORT": "1.5"}
    with pytest.raises(SettingsError) as caught:
        ServerSettings.load(["--late-items", "1.5", "--users", "x", "--bogus"], environ)
    assert len(caught.value.problems) == 5
    message = str(caught.value)
    for part in ("--bogus", "--late-items", "--users", "FOLDIN_ENVIRONMENT_SEED", "FOLDIN_ENVIRONMENT_PORT"):
        assert part in message


@pytest.mark.parametrize(
    "argv", [["--port"], ["--port", "\u0661"], ["--port", ""], ["--known", "30000"], ["--seed", "-1"]]
)
def test_mistakes_are_refused(argv: list[str]) -> None:
    with pytest.raises(SettingsError):
        ServerSettings.load(argv, {})


def test_play_takes_players_and_addresses() -> None:
    argv = ["--players", "bias,als", "random", "--api", "http://127.0.0.1:1/", "--replace"]
    settings = PlaySettings.load([*argv, "--environment", "http://h:2"], {"FOLDIN_PLAY_STEPS": "7"})
    assert settings.players == ("bias", "als", "random")
    assert (settings.api, settings.environment, settings.steps) == ("http://127.0.0.1:1", "http://h:2", 7)
    assert settings.replace
    assert not PlaySettings.load([], {}).replace
    for wrong in (["--players", "nobody"], ["--api", "127.0.0.1:8080"], ["--steps", "0"]):
        with pytest.raises(SettingsError):
            PlaySettings.load(wrong, {})
    with pytest.raises(SettingsError):
        PlaySettings.load([], {"FOLDIN_PLAY_STEPS": "maybe"})


def test_evaluation_plays_whom_it_can() -> None:
    alone = EvaluationSettings.load([], {})
    assert alone.lineup() == ("random", "constant", "bias", "neighbours", "als")
    assert (alone.steps, alone.runs, alone.known) == (1_000, 3, (10_000,))
    assert alone.lineup({"ordinal"})[-1] == "ordinal"
    with_api = EvaluationSettings.load(["--api", "http://127.0.0.1:8080"], {})
    assert with_api.lineup()[-2:] == ("deployed-frozen", "deployed")


def test_evaluation_draws_worlds_with_enough_history() -> None:
    settings = EvaluationSettings.load(["--known", "200", "3000", "--noise", "0.5", "--output", "x"], {})
    assert settings.known == (200, 3000)
    assert settings.server.world == WorldOptions(n_known=3000, noise=0.5)
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 0)
    assert settings.output == Path("x")


@pytest.mark.parametrize(
    "argv",
    [
        ["--environment", "http://127.0.0.1:8081", "--drift", "1"],
        ["--players", "deployed"],
        ["--known", "30000"],
        ["--known", "29500"],
        ["--known", ","],
    ],
)
def test_contradictions_of_an_evaluation_are_refused(argv: list[str]) -> None:
    with pytest.raises(SettingsError):
        EvaluationSettings.load(argv, {})


@pytest.mark.parametrize("settings", [ServerSettings, PlaySettings, EvaluationSettings])
def test_help_names_each_flag_and_variable(
    settings: type[ServerSettings | PlaySettings | EvaluationSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        settings.load(["--help"], {})
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for _, declared in declarations(settings):
        for name in filter(None, (declared.flag, declared.variable)):
            assert name in shown
