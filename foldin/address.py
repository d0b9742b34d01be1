"""Which service a command asks, and how one question is asked."""

import json
import os
from http import HTTPStatus
from pathlib import Path
from typing import Any

from foldin.preflight import is_locked
from foldin.settings import DEFAULT_API, FrontDoorSettings
from foldin_client import AsyncClient, FoldinError, ProblemError
from foldin_client.wire import without_user
from processes.errors import CannotStartError

# A call of 5,000 ratings is answered in about 50 ms, but it may wait behind those of others.
API_TIMEOUT_S = 30.0
# What bounds repeats is their time.
MOST_ATTEMPTS = 1_000


def find_api(url: str | None, data: Path | None, settings: FrontDoorSettings) -> str:
    """Return `url`, else the address of the stack on `data` (or on the usual folder), else that of a service
    on this machine as the settings have its port. Raises CannotStartError where no stack runs on `data`.
    """
    found = url or running_stack_url(data or settings.data)
    if found is None and data is not None:
        raise CannotStartError(
            f"no stack runs on {data}: start one with `foldin up --data {data}`, or give --url"
        )
    # The file or a variable may have another port than the usual one.
    port = settings.inherited.get("FOLDIN_PORT") or ""
    return found or (f"http://127.0.0.1:{port}" if port.isdigit() else DEFAULT_API)


def api_client(
    url: str, key: str | None, *, timeout_s: float = API_TIMEOUT_S, retry_s: float = 0.0
) -> AsyncClient:
    """Return a client that waits for a busy API for `retry_s`. Raises CannotStartError."""
    try:
        return AsyncClient(url, key, timeout_s=timeout_s, retry_s=retry_s, attempts=MOST_ATTEMPTS)
    except ValueError as exc:
        raise CannotStartError(str(exc)) from exc


def told_problem(error: ProblemError) -> str:
    """Return why a call was refused, in a few words, with what to do where a key is missing."""
    why = f"{error.status}: {error.detail}" if error.detail else " ".join(str(error).split())
    if error.status == HTTPStatus.UNAUTHORIZED:
        why += "; give a key in FOLDIN_API_KEY, or by --key-file"
    return why


def told_silence(url: str, error: FoldinError) -> str:
    """Return that no API answers at an address, and what to do."""
    advice = "start one with `foldin up`, or give --url or --data"
    return f"no API answers at {without_user(url)} ({error}): {advice}"


def stack_on(
    data: Path | None, settings: FrontDoorSettings, advice: str = ""
) -> tuple[Path, dict[str, str] | None]:
    """Return `data`, else the usual folder, and the store settings of the stack that runs there, None where
    none does. Raises CannotStartError, with this `advice` besides, where none runs on `data`.
    """
    folder = data or settings.data
    stack = running_stack(folder)
    if stack is None and data is not None:
        raise CannotStartError(f"no stack runs on {data}: start one with `foldin up --data {data}`{advice}")
    return folder, stack


def running_stack(data: Path) -> dict[str, str] | None:
    """Return the store settings of the stack that runs on a data directory, None where none does."""
    try:
        content = _stack_file(data)
        return {str(name): str(value) for name, value in content["store"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def running_stack_url(data: Path) -> str | None:
    """Return the address of the API of the stack that runs on a data directory, None where none does."""
    try:
        return str(_stack_file(data)["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stack_file(data: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((data / "stack.json").read_text("utf-8"))
    # A copy of the folder of a stack that runs names that one.
    if not is_locked(data):
        raise ValueError("no stack holds it")
    # Signal 0 is not sent: it fails where the process is gone, as after a kill.
    os.kill(int(content["pid"]), 0)
    return content
