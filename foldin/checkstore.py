"""`python -m foldin.checkstore`: can the store that the environment names be used, and does it hold ratings?

Prints `ratings` or `empty` and ends with code 0, or one line on what to do and ends with code 2. A process of
its own, so that the supervisor of a stack never loads what it needs for a moment of its life.
"""

import asyncio
import os
import sys

from featurestore.errors import StoreError, StoreRefused
from featurestore.settings import StoreSettings
from featurestore.store import Store
from processes.settings import SettingsError, load


async def _holds_ratings(settings: StoreSettings) -> bool:
    store = await Store.open(settings, hot=False)
    # Items, not generations: ratings that no fit has learned yet are ratings.
    try:
        live = await store.generations.live()
        return bool(await store.redis.exists(store.keys.order(live.epoch)))
    finally:
        await store.close()


def main() -> int:
    """Open the store as every part of the stack will; return the exit code."""
    try:
        settings = load(StoreSettings, (), os.environ)
        sys.stdout.write("ratings\n" if asyncio.run(_holds_ratings(settings)) else "empty\n")
    except (StoreRefused, SettingsError) as exc:
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
