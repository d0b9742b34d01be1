"""`python -m foldin.checkstore`:

can the store that the environment names be used? Code 0, or 2 with one line on why not. A process of its own,
so that the supervisor of a stack never loads what it needs for a minute of its life.
"""

import asyncio
import os
import sys

from featurestore.errors import StoreError, StoreRefused
from featurestore.settings import EnvironmentReader, SettingsInvalid, StoreSettings
from featurestore.store import Store


async def _check(settings: StoreSettings) -> None:
    store = await Store.open(settings, hot=False)
    await store.close()


def main() -> int:
    """Open the store as every part of the stack will. Returns the exit code."""
    try:
        reader = EnvironmentReader(os.environ)
        settings = StoreSettings.from_environment(reader)
        reader.finish()
        asyncio.run(_check(settings))
    except (StoreRefused, SettingsInvalid) as exc:
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
