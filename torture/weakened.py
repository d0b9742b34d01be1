"""Stacks with one protection taken out: the auditor must find what then goes wrong.

Invariant: only the processes of the stack are weakened, by a module that Python loads at their start.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from processes import module_name

# By name: what the processes of the stack run at their start.
CODE = {
    # A record counts as current whatever it has seen.
    "no-counter-rule": """
from featurestore.users import counter_rule
strict = counter_rule.apply
def apply(live, user_ids, replies):
    found = strict(live, user_ids, replies)
    return found._replace(behind=[], behind_ids=[])
counter_rule.apply = apply
""",
    # A new generation is served with the item rows of the one before.
    "old-item-rows": """
from featurestore.generations import loader
fresh, tables = loader.as_fitted, {}
def stale(meta, table, *others, **named):
    same = tables.setdefault((meta.summary.epoch, table.shape[1]), table)
    return fresh(meta, same if len(same) >= meta.item_rows else table, *others, **named)
loader.as_fitted = stale
""",
    # One leader stands still where it declares a generation whole, until its successor has published a newer
    # one; then what it was about to write arrives, and is not refused. A freeze drawn at random meets such
    # a step once in an hour.
    "no-fence": """
import asyncio, os, pathlib, time
from featurestore.errors import StoreError
from featurestore.generations.writer import GenerationWriter
from featurestore.leases import Lease
from redis import Redis
strict, frozen = GenerationWriter._put_summary, pathlib.Path(__file__).with_name("frozen")
def look(writer):
    with Redis.from_url(os.environ["FOLDIN_REDIS_URL"]) as store:
        return map(int, store.hmget(writer._keys.live, "epoch", "generation", "fence"))
async def arrive(writer):
    while True:
        try:
            await strict(writer)
            await writer.flip(automatic=False)
            return
        except StoreError:  # its sockets are as old as the freeze
            await asyncio.sleep(0.1)
async def late(writer):
    if writer._summary.state != "ready" or writer.number < 3 or frozen.exists():
        return await strict(writer)
    frozen.touch()
    lease, (epoch, generation, fence) = writer._lease, look(writer)
    while epoch <= writer._epoch and (generation <= writer.number or fence <= lease.fence):
        time.sleep(0.1)
        epoch, generation, fence = look(writer)
    if epoch > writer._epoch:  # flips to another history are refused without a fence, too
        frozen.unlink()
        return await strict(writer)
    writer._lease = Lease(writer._keys, writer._client, lease.token, lease.ttl_ms, fence)
    # The end of its term does not take back what it has sent.
    await asyncio.shield(asyncio.create_task(arrive(writer)))
GenerationWriter._put_summary = late
""",
    # An event that is delivered again is not known, and is archived again.
    "archived-twice": """
from trainer.consume import consumer
strict = consumer.new_events
consumer.new_events = lambda events, item_ids, positions: strict(events, item_ids, {})
""",
    # A worker answers by the catalogue as it has it.
    "old-catalogue": """
from service.catalogue.view import CatalogueView
CatalogueView.has = lambda view, version: True
""",
    # The receipt of an erasure does not wait for the store's files, which are not written anew.
    "no-rewrite": """
from trainer.erasure.file_rewrites import FileRewrites
async def at_once(rewrites):
    pass
FileRewrites.rewritten = at_once
""",
}
NO_SYNC = "no-sync"
WEAKNESSES = (NO_SYNC, *CODE)


def weakened(weakness: str | None, store_config: Path, folder: Path) -> Mapping[str, str]:
    """Take a protection out; return what the environment of the Python processes needs for that."""
    if weakness == NO_SYNC:
        text = store_config.read_text("utf-8")
        store_config.write_text(text.replace("appendfsync always", "appendfsync no"), "utf-8")
    if weakness not in CODE:
        return {}
    beside = folder / "weakened"
    beside.mkdir()
    code = re.sub(
        "(?<=from )(featurestore|service|trainer)", lambda room: module_name(room[0]), CODE[weakness]
    )
    (beside / "sitecustomize.py").write_text(code, "utf-8")
    return {"PYTHONPATH": str(beside)}
