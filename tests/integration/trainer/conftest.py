"""Settings of a trainer that the tests of this folder have in common."""

from pathlib import Path

import pytest

from featurestore.settings import StoreSettings
from tests.support.trainers import trainer_settings
from trainer.settings import TrainerSettings


@pytest.fixture
def settings(store_settings: StoreSettings, tmp_path: Path) -> TrainerSettings:
    return trainer_settings(store_settings, tmp_path / "archive", lease_ttl_s=30.0)
