"""Makes blocking code of code with `await`: the same text without it, and with the names that block."""

import re

# Whole words.
NAMES = {
    "AsyncIterator": "Iterator",
    "AsyncClient": "Client",
    "AsyncOperations": "Operations",
    "AsyncTransport": "Transport",
    "AsyncRows": "Rows",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "aclose": "close",
    "aread": "read",
    "aiter_lines": "iter_lines",
    "aiter_raw": "iter_raw",
    "aiter_bytes": "iter_bytes",
    "asynchronous": "synchronous",
    "asyncio": "time",
    "aeach": "each",
    "running_loop": "no_loop",
}
_NAME = re.compile(rf"\b({'|'.join(NAMES)})\b")
_WORD = re.compile(r"\b(?:async|await) ")


def blocking(text: str) -> str:
    """Return the blocking form of a module."""
    return _NAME.sub(lambda match: NAMES[match[0]], _WORD.sub("", text))
