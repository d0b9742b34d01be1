"""Settings of the environment: the lecture's by default, all mistakes at once."""

import pytest

from environment.settings import ServerSettings
from environment.world import WorldOptions
from processes.settings import SettingsError


def test_the_defaults_are_the_lectures_and_a_flag_goes_before_a_variable() -> None:
    settings = ServerSettings.load([], {})
    assert (settings.host, settings.port, settings.seed) == ("127.0.0.1", 8081, None)
    assert settings.world == WorldOptions(100, 300, 10_000, 0, 0, 0, 0)
    environ = {"FOLDIN_ENVIRONMENT_PORT": "9000", "FOLDIN_ENVIRONMENT_SEED": ""}
    settings = ServerSettings.load(["--port", "9001", "--late-users", "0.25", "--known", "500"], environ)
    assert (settings.port, settings.seed) == (9001, None)
    assert (settings.world.n_known, settings.world.late_users) == (500, 0.25)


def test_all_mistakes_are_reported_together() -> None:
    environ = {"FOLDIN_ENVIRONMENT_SEED": "nan", "FOLDIN_ENVIRONMENT_PORT": "1.5"}
    with pytest.raises(SettingsError) as caught:
        ServerSettings.load(["--late-items", "1.5", "--users", "x", "--bogus"], environ)
    assert len(caught.value.problems) == 5
    # More known ratings than there are pairs.
    with pytest.raises(SettingsError):
        ServerSettings.load(["--known", "30000"], {})
