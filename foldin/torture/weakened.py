"""Stacks with one protection taken out: the auditor must find what then goes wrong.

Invariant: only the processes of the stack are weakened, by a module that Python loads at their start.
"""

from collections.abc import Mapping
from pathlib import Path

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
    # one, and is refused nothing then: a freeze drawn at random meets such a step once in an hour.
    "no-fence": """
import os, pathlib, time
from featurestore.generations.writer import GenerationWriter
from redis import Redis
strict, frozen = GenerationWriter._put_summary, pathlib.Path(__file__).with_name("frozen")
def look(writer):
    with Redis.from_url(os.environ["FOLDIN_REDIS_URL"]) as store:
        return map(int, store.hmget(writer._keys.live, "epoch", "generation", "fence"))
async def late(writer):
    if writer._summary.state == "ready" and writer.number > 1 and not frozen.exists():
        frozen.touch()
        epoch, generation, fence = look(writer)
        while epoch <= writer._epoch and (generation <= writer.number or fence <= writer._lease.fence):
            time.sleep(0.1)
            epoch, generation, fence = look(writer)
        if epoch > writer._epoch:  # flips to another history are refused without a fence, too
            frozen.unlink()
        else:
            writer._lease.fence = fence
    await strict(writer)
GenerationWriter._put_summary = late
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
    (beside / "sitecustomize.py").write_text(CODE[weakness], "utf-8")
    return {"PYTHONPATH": str(beside)}
