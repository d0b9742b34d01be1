"""Migrations for tests, in this process."""

from featurestore.migration.migration import Migrated, Migration, Step, Telling, no_step
from featurestore.migration.opening import leaving
from featurestore.settings import StoreSettings


async def migrated(source: StoreSettings, target: StoreSettings, *, step: Step = no_step) -> Migrated | None:
    """Move the namespace of `source` to `target`."""
    telling = Telling(lambda _line: None, lambda _done, _total: None)
    async with leaving(source) as store:
        return await Migration(store, target, telling, step=step).run()
