"""Places of archives: a folder, and a bucket of a real server."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.support.object_store import CREDENTIALS, ObjectServer, object_server
from trainer.archive.storage.address import ObjectAddress
from trainer.archive.storage.files import Location, located

Place: TypeAlias = Callable[[], Location]
"""The same place, each time as a process finds it that has just begun."""


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """An object store for all tests of a worker."""
    with object_server(tmp_path_factory.mktemp("objects")) as server:
        yield server


@pytest.fixture
def address(objects: ObjectServer) -> ObjectAddress:
    """A place in it that no other test uses."""
    return objects.address()


@pytest.fixture(params=["folder", "objects"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An archive of each kind."""
    if request.param == "folder":
        return lambda: tmp_path / "archive"
    address: ObjectAddress = request.getfixturevalue("address")
    return lambda: located(address, CREDENTIALS)
