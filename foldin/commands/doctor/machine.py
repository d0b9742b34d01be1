"""What the doctor finds on this machine: disk, limits, ports."""

import os
import resource
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from foldin.commands.doctor.findings import Finding
from foldin.preflight import ROOM_BYTES, require_free_port
from processes.errors import CannotStartError
from processes.probes import http_ok
from trainer.capacity import disk

# Connections that a worker of the service holds at most, and what it has open besides.
FILES = 8192 + 256
MB = 2**20  # as figures are shown


def available_bytes() -> int | None:
    """Return the memory that programs of this machine may still take; None where the system does not say."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def disk_room(data: Path) -> Finding:
    """Return how much room the folder of the data has, and whether it can be written."""
    # A folder that is not there yet is made where its nearest parent is.
    there = next((folder for folder in (data, *data.parents) if folder.exists()), Path("/"))
    what = str(data) if there == data else f"{data} (to be made in {there})"
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        advice = "make it this user's, or choose another folder with --data"
        return Finding("disk", "fail", f"{what} cannot be written", advice)
    try:
        usage = shutil.disk_usage(there)
    except OSError as exc:
        return Finding("disk", "fail", f"{what} cannot be looked at ({exc.strerror})", "look at the disk")
    found = f"{what}: {usage.free // MB:,} of {usage.total // MB:,} MB free"
    needed = max(ROOM_BYTES, disk("store_disk", usage.free, usage.total).needed_bytes)
    if usage.free >= 2 * needed:
        return Finding("disk", "ok", found)
    is_full = usage.free < needed
    advice = f"make room{'' if is_full else ' soon'}: below {needed // MB:,} MB ratings are refused"
    return Finding("disk", "fail" if is_full else "warn", found, advice)


def privacy(data: Path) -> Finding:
    """Return whether other users of this machine may look into the folder of the data."""
    try:
        mode = data.stat().st_mode
    except OSError:
        return Finding("privacy", "ok", f"{data} is not there yet, and is made open to this user alone")
    if not mode & 0o077:
        return Finding("privacy", "ok", f"{data} is open to this user alone")
    found = f"{data} is open to other users of this machine ({mode & 0o777:03o})"
    return Finding(
        "privacy", "warn", found, f"chmod 700 {shlex.quote(str(data))}, unless they are to read it"
    )


def open_files() -> Finding:
    """Return whether a worker may hold as many connections as it takes."""
    # The soft limit is raised by each worker itself.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= FILES:
        return Finding(
            "open files", "ok", "no limit" if hard == resource.RLIM_INFINITY else f"{hard:,} a process"
        )
    return Finding(
        "open files",
        "warn",
        f"{hard:,} a process: a worker of the service holds fewer than 8,192 connections",
        f"raise the hard limit to {FILES:,} (ulimit -Hn, LimitNOFILE=)",
    )


def ports(ours: Mapping[str, tuple[str, int, str]], *, runs: bool) -> Iterator[Finding]:
    """Yield of each port of a stack whether it is free, or held by what belongs there. `ours`: by what it is
    for, the address, the port and a path that its server answers; `runs`: the stack is there.
    """
    for what, (host, port, path) in ours.items():
        name = f"port {port}"
        try:
            require_free_port(host, port, f"the setting of the {what}'s port")
        except CannotStartError as exc:
            answers = http_ok(host, port, path)
            if answers:
                yield Finding(name, "ok", f"the {what} answers on {host}")
            elif runs:
                yield Finding(name, "fail", f"the {what} does not answer on {host}", "look at its log")
            else:
                why, _, advice = str(exc).partition(": ")
                yield Finding(name, "warn", why, advice)
        else:
            if runs:
                yield Finding(name, "fail", f"nothing listens on {host}", f"look at the log of the {what}")
            else:
                yield Finding(name, "ok", f"free for the {what}")
