"""Settings: a flag before a variable before the default, all mistakes at once."""

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
