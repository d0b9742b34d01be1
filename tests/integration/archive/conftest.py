"""Places of archives in a bucket of a real server."""

from collections.abc import Iterator

import pytest

from tests.support.object_store import ObjectServer, object_server
from trainer.archive.storage.address import ObjectAddress


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with object_server(tmp_path_factory.mktemp("objects")) as server:
        yield server


@pytest.fixture
def address(objects: ObjectServer) -> ObjectAddress:
    return objects.address()
