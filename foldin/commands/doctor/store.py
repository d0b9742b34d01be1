"""What the doctor finds in the store: pure functions of what it says of itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurestore.errors import StoreError, StoreRefused
from featurestore.namespace import LAYOUT, SETTINGS, check_server
from featurestore.settings import StoreSettings, format_scale, parse_scale
from foldin.commands.doctor.findings import Finding
from trainer.archive.identity import SHOWN, read_identity
from trainer.capacity import memory
from trainer.consume.matching import WHAT_TO_DO
from trainer.errors import ArchiveFailedError, ArchiveRefusedError

# Ratings get the time of the machine that takes them: a second hardly moves one past another, a minute does.
CLOCK_WARNS_S, CLOCK_FAILS_S = 1.0, 60.0
# Of the limit of the memory: what is left is a while's growth, in which someone can act.
FULL_SHARE = 0.8
MB = 2**20  # as figures are shown

Info = Mapping[str, Any]


def version(info: Info, address: str, *, in_cluster: bool = False) -> Finding:
    """Return what server the store is, and whether it may be used. `in_cluster`: the address is one."""
    name = "Valkey" if info.get("valkey_version") else "Redis"
    found = f"{name} {info.get('valkey_version') or info.get('redis_version')} at {address}"
    try:
        check_server(info, in_cluster=in_cluster)
    except StoreRefused as exc:
        # `the store is ..., too old: use ...`
        why, _, advice = str(exc).partition(": ")
        return Finding("store", "fail", f"{found}: {why}", advice or "use another server")
    except StoreError as exc:
        return Finding("store", "fail", str(exc), "look at what answers at FOLDIN_REDIS_URL")
    return Finding("store", "ok", found)


def persistence(info: Info, sync: str | None, durability: str) -> Finding:
    """Return what an acknowledged rating survives. `sync`: the store's `appendfsync`, None where it is not
    told; `durability`: `FOLDIN_DURABILITY`.
    """
    is_safe = sync == "always" or (sync == "everysec" and durability in {"fsync", "replicated"})
    told = f"append-only file, appendfsync {sync or 'untold'}, FOLDIN_DURABILITY={durability}"
    # The first that holds.
    cases = (
        (
            not info.get("aof_enabled"),
            *("fail", "no append-only file: ratings go with the process"),
            "start the store with --appendonly yes",
        ),
        (
            info.get("aof_last_write_status") != "ok",
            *("fail", "the last write of the append-only file failed"),
            "look at the store's disk and log",
        ),
        (
            info.get("aof_last_bgrewrite_status") not in {None, "ok"},
            *("warn", "the last rewrite of the append-only file failed, so it grows"),
            "make room on the store's disk, and memory for its copy",
        ),
        (
            not is_safe,
            *("warn", f"{told}: the end of the machine may cost the latest ratings"),
            "set appendfsync always, or FOLDIN_DURABILITY=fsync",
        ),
    )
    for holds, status, found, advice in cases:
        if holds:
            return Finding("persistence", "fail" if status == "fail" else "warn", found, advice)
    return Finding("persistence", "ok", told)


def memory_room(info: Info, available_bytes: int | None) -> Finding:
    """Return how much memory is left. `available_bytes`: of this machine, None where the store is on
    another.
    """
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    used -= int(info.get("mem_not_counted_for_evict", 0))
    space = memory(used, limit)
    if space is None:
        return _unlimited(used, available_bytes)
    policy = str(info.get("maxmemory_policy", ""))
    found = f"{used // MB:,} of {limit // MB:,} MB ({used / limit:.0%}), maxmemory-policy {policy}"
    if policy != "noeviction":
        advice = "set maxmemory-policy noeviction: ratings must not be thrown away"
        return Finding("memory", "warn", found, advice)
    if space.free_bytes < space.needed_bytes:
        return Finding("memory", "fail", f"{found}: ratings are refused", "raise maxmemory, or remove data")
    if used > FULL_SHARE * limit:
        return Finding("memory", "warn", found, "raise maxmemory before ratings are refused at 95 %")
    return Finding("memory", "ok", found)


def _unlimited(used: int, available_bytes: int | None) -> Finding:
    if available_bytes is None:
        found = f"{used // MB:,} MB, no limit: past what its machine has the store is killed"
        advice = "set maxmemory below that, with room for a rewrite of its file (docs/sizing.md)"
        return Finding("memory", "warn", found, advice)
    found = f"{used // MB:,} MB, no limit; this machine has {available_bytes // MB:,} MB left"
    if available_bytes < used:
        # A rewrite of its file copies what is written meanwhile: in the worst case all.
        return Finding("memory", "warn", found, "give it more memory: a rewrite of its file may take as much")
    return Finding("memory", "ok", found)


def clock(name: str, ahead_s: float, sure_s: float) -> Finding:
    """Return how far another clock is ahead of this one. `sure_s`: by so much this may be wrong."""
    apart_s = max(abs(ahead_s) - sure_s, 0.0)
    word = "ahead of" if ahead_s > 0 else "behind"
    found = f"{apart_s:,.1f} s {word} this one" if apart_s else f"as this one, within {sure_s:.3f} s"
    advice = "let NTP set both clocks (timedatectl set-ntp true)"
    if apart_s > CLOCK_FAILS_S:
        return Finding(name, "fail", found, advice)
    return Finding(name, "warn", found, advice) if apart_s > CLOCK_WARNS_S else Finding(name, "ok", found)


def namespace(config: Mapping[bytes, bytes], settings: StoreSettings) -> Finding:
    """Return whether the namespace is as the settings have it. `config`: its hash, empty where it is new."""
    name, called = "namespace", settings.namespace
    if not config:
        return Finding(name, "ok", f"{called} is new: the first service or trainer creates it")
    if config.get(b"layout") != LAYOUT:
        layout = config.get(b"layout", b"?").decode("utf-8", "replace")
        return Finding(
            name,
            "fail",
            f"{called} has layout {layout}, this version reads {LAYOUT.decode()}",
            "use the version of foldin that wrote it, or another FOLDIN_NAMESPACE",
        )
    wanted = {b"partitions": str(settings.partitions)}
    # Until the first rating the scale is that of who says it first.
    is_open = b"scale_open" in config
    if settings.scale is not None and not is_open:
        wanted[b"scale"] = format_scale(parse_scale(settings.scale))
    for field, value in wanted.items():
        if (held := config.get(field, b"").decode("utf-8", "replace")) != value:
            return Finding(
                name,
                "fail",
                f"{called} was created with {SETTINGS[field]}={held}, and the setting is {value}",
                f"set {SETTINGS[field]}={held}, or another FOLDIN_NAMESPACE",
            )
    scale = "not decided yet" if is_open else config.get(b"scale", b"?").decode("utf-8", "replace")
    return Finding(name, "ok", f"{called}, {settings.partitions} partitions, scale {scale}")


def archive(folder: Path, identity: str) -> Finding:
    """Return whether the archive in a folder is the store's. `identity`: of the store, empty where it has
    none.
    """
    name = "archive"
    try:
        has_ratings = any(folder.glob("epoch-*/*.parquet"))
        whose = read_identity(folder)
    except (OSError, ArchiveFailedError, ArchiveRefusedError) as exc:
        why = getattr(exc, "why", None) or getattr(exc, "strerror", None) or exc
        return Finding(
            name, "fail", f"{folder} cannot be read: {why}", "make it this user's, or use a newer foldin"
        )
    if not has_ratings:
        return Finding(name, "ok", f"none in {folder}, which the trainer makes")
    if whose is None:
        return Finding(name, "warn", f"{folder} does not say whose it is", WHAT_TO_DO)
    if whose != identity:
        now = identity[:SHOWN] or "empty"
        return Finding(
            name,
            "fail",
            f"{folder} was made for another store ({whose[:SHOWN]}, this one is {now})",
            WHAT_TO_DO,
        )
    return Finding(name, "ok", f"{folder} is this store's ({whose[:SHOWN]})")
