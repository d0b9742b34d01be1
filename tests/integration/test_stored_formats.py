"""What is stored says its format; what has one that this version does not know is refused in one line that
names it, and stays as it is (docs/upgrades.md).
"""

import gzip
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from redis.asyncio import Redis

from featurestore.catalogue.dump import Dump, DumpUnreadable, dump_from_bytes
from featurestore.errors import GenerationBroken, StoreRefused
from featurestore.generations.manifest import decode_summary
from featurestore.ratings.context_schema import ContextSchema, schema_from_bytes, schema_to_bytes
from featurestore.ratings.event_types import DEFAULT_TYPES, types_from_bytes, types_to_bytes
from featurestore.settings import StoreSettings
from featurestore.store import Store
from tests.support.event_tables import free
from tests.support.servers import StoreServer
from tests.support.serving import Service
from tests.support.trainers import refused, trainer_settings
from trainer.archive.erasures import Erasures, ledger_files, parse_ledger
from trainer.archive.item_list import read_items, write_items
from trainer.archive.json_files import read_json, write_json
from trainer.archive.segments import METADATA_KEY
from trainer.errors import ArchiveRefusedError

FORMAT = re.compile(r"(?!_NO)_?([A-Z]+_)?(FORMAT|LAYOUT)")
SUMMARY = (
    b'{"generation":1,"epoch":1,"state":"ready","created":1,"rank":1,"link":"gaussian","engine":"e",'
    b'"n_users":1,"n_items":1,"n_ratings":1,"metrics":{},"format":1}'
)


Read = Callable[[bytes], object]


def stored(folder: Path) -> dict[str, tuple[bytes, Read, type[Exception]]]:
    def in_file(read: Callable[[Path], object], path: Path) -> tuple[bytes, Read]:
        def from_file(data: bytes) -> object:
            path.write_bytes(data)
            try:
                return read(path)
            finally:
                assert path.read_bytes() == data

        return path.read_bytes(), from_file

    items = write_items(folder, [b"a"])
    write_json(folder / "file.json", {"a": 1})
    Erasures(folder, guard=free).add([(b"ann", 1)])
    (ledger,) = map(Path, ledger_files(folder))
    dump = msgspec.json.encode(Dump({}, [], [], []))
    of_ledger = in_file(lambda path: parse_ledger(path, path.read_bytes()), ledger)
    return {
        "summary": (SUMMARY, lambda data: decode_summary(data, b"key"), GenerationBroken),
        "event types": (types_to_bytes(DEFAULT_TYPES), types_from_bytes, ValueError),
        "context fields": (schema_to_bytes(ContextSchema(())), schema_from_bytes, ValueError),
        "catalogue": (dump, lambda data: dump_from_bytes(gzip.compress(data)), DumpUnreadable),
        "small file": (*in_file(read_json, folder / "file.json"), ArchiveRefusedError),
        "items": (*in_file(read_items, items), ArchiveRefusedError),
        "ledger": (*of_ledger, ArchiveRefusedError),
    }


def of_another_format(name: str, data: bytes) -> bytes:
    if name == "ledger":
        return data[:8] + b"\2" + data[9:]
    if name == "items":
        table, out = pq.read_table(BytesIO(data)), BytesIO()
        pq.write_table(table.replace_schema_metadata({METADATA_KEY: b'{"format": 2, "rows": 1}'}), out)
        return out.getvalue()
    return re.sub(rb'("format": ?"?(foldin-catalogue-)?)1', rb"\g<1>2", data)


def test_another_format_is_refused_in_one_line_and_stays(tmp_path: Path) -> None:
    for name, (data, read, error) in stored(tmp_path).items():
        read(data)
        with pytest.raises(error) as caught:
            read(of_another_format(name, data))
        line = str(caught.value)
        assert re.search(r"format \S*2'?, this version reads \S*1'?: use the version that wrote it", line), (
            name
        )
        assert "\n" not in line


async def test_a_namespace_of_another_layout_is_refused_untouched(own_server: StoreServer) -> None:
    settings = StoreSettings(url=own_server.url, namespace="formats", partitions=2, timeout_s=30.0)
    await (await Store.open(settings)).close()
    redis: Any = Redis.from_url(own_server.url)
    await redis.hset("formats:config", "layout", 1)
    before = {key: await redis.dump(key) for key in await redis.keys("*")}
    says = "has layout 1, this version reads 2: use the version that wrote it"
    with pytest.raises(StoreRefused, match=says):
        await Store.open(settings)
    assert says in await refused(trainer_settings(settings, own_server.folder / "archive"))
    service = Service(settings, own_server.folder)
    assert service.process.wait(30.0) == 2
    assert says in service.log.read_text()
    assert {key: await redis.dump(key) for key in await redis.keys("*")} == before
    await redis.aclose()


async def test_a_namespace_that_an_earlier_version_has_moved_is_refused(own_server: StoreServer) -> None:
    settings = StoreSettings(url=own_server.url, namespace="moved", partitions=2, timeout_s=30.0)
    await (await Store.open(settings)).close()
    async with Redis.from_url(own_server.url) as redis:
        await redis.hset("moved:live", "migration", "gone 0a redis://new")
    with pytest.raises(StoreRefused, match="gone 0a redis://new"):
        await Store.open(settings)
