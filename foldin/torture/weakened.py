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
