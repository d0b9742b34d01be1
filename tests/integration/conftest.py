"""What several tests of a trainer and its archive begin with."""

from pathlib import Path

import pytest

from featurestore.settings import StoreSettings
from tests.support.servers import StoreServer
from tests.support.trainers import trainer_settings
from trainer.settings import TrainerSettings


@pytest.fixture
def settings(own_server: StoreServer, tmp_path: Path) -> TrainerSettings:
    """Settings of a trainer on a store and an archive of this test alone."""
    at = StoreSettings(url=own_server.url, namespace="t", partitions=4, timeout_s=2.0)
    return trainer_settings(at, tmp_path / "archive", lease_ttl_s=2.0)
