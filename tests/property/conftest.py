"""Hypothesis draws the same in every run of the gate; search wider: `--hypothesis-profile wide`."""

import pytest
from hypothesis import settings

settings.register_profile("gate", derandomize=True, deadline=None, max_examples=30)
settings.register_profile("wide", deadline=None, max_examples=1_000)


def pytest_configure(config: pytest.Config) -> None:
    """Load the profile of the gate where the command names none."""
    if not config.getoption("--hypothesis-profile", default=None):
        settings.load_profile("gate")
