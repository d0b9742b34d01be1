"""`foldin migrate`: from which store to which, and what a person sees of it."""

import asyncio
from dataclasses import asdict, replace

from featurestore.errors import StoreError, StoreRefused
from featurestore.migration.migration import Migrated, Migration, Telling, give_up
from featurestore.migration.stages import MigrationRefused, MigrationStopped
from featurestore.migration.target import leaving
from featurestore.settings import StoreSettings, redacted
from foldin.errors import StoppedError
from foldin.progress import Shown
from foldin.recovering import find_place
from foldin.settings import FrontDoorSettings, MigrateOptions
from processes.errors import CannotStartError
from trainer.settings import TrainerSettings

# Digests on one line of a terminal.
_IN_A_LINE = 4


def run_migrate(options: MigrateOptions, settings: FrontDoorSettings) -> int:
    """Move a namespace to another store, or give up a move that was cut off; return the exit code."""
    source, target = stores_of(options, settings)
    with Shown("Migrating", hidden=options.abort) as shown:
        return asyncio.run(_run(source, target, options, settings, shown))


def stores_of(
    options: MigrateOptions, settings: FrontDoorSettings
) -> tuple[StoreSettings, StoreSettings | None]:
    """Return the store to move from, and the one to move to; None where `--abort` names none. Raises
    CannotStartError.
    """
    if options.source is not None:
        settings = replace(settings, redis_url=options.source)
    inherited = {**settings.inherited, "FOLDIN_REDIS_URL": settings.redis_url or ""}
    if options.source is None:
        source = find_place(options.data, settings).store
    else:
        source = TrainerSettings.load((), inherited).store
    if options.to is None:
        return source, None
    found = TrainerSettings.load((), {**inherited, "FOLDIN_REDIS_URL": options.to}).store
    # How many the source has says nothing of the target.
    return source, replace(found, partitions=options.partitions or 0, namespace=source.namespace)


async def _run(
    source: StoreSettings,
    target: StoreSettings | None,
    options: MigrateOptions,
    settings: FrontDoorSettings,
    shown: Shown,
) -> int:
    try:
        async with leaving(source) as store:
            if options.abort or target is None:
                found = await give_up(store, target)
                shown.say(
                    f"{redacted(source.url)} takes ratings as before."
                    if found
                    else "There is nothing to give up."
                )
                settings.emit({"source": redacted(source.url), "aborted": found})
                return 0
            migration = Migration(store, target, Telling(shown.say, shown.done))
            between = {"source": redacted(source.url), "target": redacted(target.url)}
            if options.dry_run:
                await migration.look()
                shown.say(f"It can be done: {between['target']} has nothing of {source.namespace!r} yet.")
                settings.emit({**between, "dry_run": True})
                return 0
            made = await migration.run()
            for line in _lines(made, migration.target):
                shown.say(line)
            settings.emit({**between, "dry_run": False, **(_document(made) if made else {})})
            return 0
    except MigrationRefused as exc:
        raise CannotStartError(str(exc)) from exc
    except MigrationStopped as exc:
        raise StoppedError(f"{exc}; run it again, or with --abort to leave all as it is") from exc
    except StoreRefused as exc:
        raise CannotStartError(" ".join(str(exc).split())) from exc
    except StoreError as exc:
        raise StoppedError(f"{exc}: run this again, or with --abort to leave all as it is") from exc


def _document(made: Migrated) -> dict[str, object]:
    digests = [
        {"partition": partition, "users": users, "digest": f"{digest:016x}"}
        for partition, (users, digest) in enumerate(made.digests)
    ]
    return {**asdict(made), "digests": digests}


def _lines(made: Migrated | None, target: StoreSettings) -> list[str]:
    """Return what came of a migration, and what a person does next."""
    shown, lines = redacted(target.url), list[str]()
    if made is not None:
        cells = [
            f"{partition:4d} {users:>9,} {digest:016x}"
            for partition, (users, digest) in enumerate(made.digests)
        ]
        starts = range(0, len(cells), _IN_A_LINE)
        lines.append("Both stores have the same, by partition (its users, and a digest over them):")
        lines += ["  ".join(cells[start : start + _IN_A_LINE]) for start in starts]
        lines.append(f"{made.users:,} users and {made.events:,} events; {made.again:,} users copied again.")
        lines.append(f"Ratings were refused for {made.refused_s:.1f} s.")
    wanted = f"FOLDIN_REDIS_URL={shown}"
    if target.partitions != replace(target, partitions=0).partitions:
        wanted += f" FOLDIN_PARTITIONS={target.partitions}"
    return [
        *lines,
        f"{shown} is the store from here on: start every service and trainer again with {wanted}",
        "Until then they refuse ratings. The store that was left keeps what it has, and is never deleted.",
    ]
