"""These tests need torch: without it they are skipped, and fail where FOLDIN_TEST_NEURAL=1 in CI."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run."""
    if find_spec("torch") is not None:
        return
    if os.environ.get("CI") == "true" and os.environ.get("FOLDIN_TEST_NEURAL") == "1":
        pytest.exit("torch is not installed, and these tests were asked for", returncode=1)
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="torch is not installed (extra `neural`)"))
