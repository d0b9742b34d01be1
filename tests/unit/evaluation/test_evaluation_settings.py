"""Settings of plays and evaluations: what they take, which contradictions they refuse."""

from pathlib import Path

import pytest

from environment.world import WorldOptions
from evaluation.course.settings import EvaluationSettings, PlaySettings
from processes.settings import SettingsError


def test_play_takes_players_and_addresses() -> None:
    argv = ["--players", "bias,als", "random", "--api", "http://127.0.0.1:1/", "--replace"]
    settings = PlaySettings.load([*argv, "--environment", "http://h:2"], {"FOLDIN_PLAY_STEPS": "7"})
    assert settings.players == ("bias", "als", "random")
    assert (settings.api, settings.environment, settings.steps) == ("http://127.0.0.1:1", "http://h:2", 7)
    assert settings.replace
    assert not PlaySettings.load([], {}).replace
    for wrong in (["--players", "unknown"], ["--api", "127.0.0.1:8080"], ["--steps", "0"]):
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


def test_contradictions_of_an_evaluation_are_refused() -> None:
    for argv in ("--environment http://h:1 --drift 1", "--players deployed", "--known 29500", "--known ,"):
        with pytest.raises(SettingsError):
            EvaluationSettings.load(argv.split(), {})
