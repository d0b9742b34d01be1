"""`python -m foldin.checkstore FILE [needed]`: can the store that the environment names be used, does it hold
ratings, and is a key of the API needed? Then FILE holds one that may operate: `needed` says so beforehand,
else it is where the store has keys, or had some before it was emptied: FILE or a mark beside it is there.

Prints `ratings` or `empty`, and `key` for a key in FILE, and ends with code 0, or one line on what to do
and ends with code 2. A process of its own, so that the supervisor of a stack never loads what it needs for
a moment of its life.
"""

import asyncio
import os
import sys
from pathlib import Path

from featurestore.errors import StoreError, StoreRefused
from featurestore.settings import StoreSettings
from featurestore.store import Store
from foldin.keys import ASKED_FOR, ensure_key
from processes.errors import CannotStartError
from processes.settings import load


async def _check(settings: StoreSettings, key_file: Path, *, needed: bool) -> list[str]:
    store = await Store.open(settings, hot=False)
    # Items, not generations: ratings that no fit has learned yet are ratings.
    try:
        live = await store.generations.live()
        found = ["ratings" if await store.redis.exists(store.keys.order(live.epoch)) else "empty"]
        if needed or await store.access.load():
            await ensure_key(store, "operator", "operate", key_file)
            found.append("key")
        return found
    finally:
        await store.close()


def main() -> int:
    """Open the store as every part of the stack will; return the exit code."""
    try:
        settings = load(StoreSettings, (), os.environ)
        key_file = Path(sys.argv[1])
        had_key = key_file.exists() or key_file.with_name(ASKED_FOR).exists()
        found = asyncio.run(_check(settings, key_file, needed=had_key or "needed" in sys.argv[2:]))
        sys.stdout.write("".join(f"{word}\n" for word in found))
    except (StoreRefused, CannotStartError) as exc:
        sys.stdout.write(" ".join(str(exc).split()) + "\n")
        return 2
    except StoreError as exc:
        words = (
            f"the store does not answer ({' '.join(str(exc).split())}): start it, or unset FOLDIN_REDIS_URL"
        )
        sys.stdout.write(f"{words} to use an embedded one\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
