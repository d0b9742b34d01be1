"""A client of the Foldin API, that awaits (`AsyncClient`) or blocks (`Client`).

`models` has the types of what is sent and answered, `problems` an exception for each `code` of the service;
`errors` groups these by what a caller can do.
"""

import logging

from foldin_client import models, problems
from foldin_client.asynchronous.client import AsyncClient
from foldin_client.errors import (
    BusyError,
    ConflictError,
    FaultError,
    FoldinError,
    KeyRefusedError,
    MissingError,
    NoAnswerError,
    ProblemError,
    RefusedError,
    UnreadableAnswerError,
)
from foldin_client.synchronous.client import Client

# It logs each attempt: for programs that set up no logging Python would print its bare name.
logging.getLogger("stamina").addHandler(logging.NullHandler())

__all__ = [
    "AsyncClient",
    "BusyError",
    "Client",
    "ConflictError",
    "FaultError",
    "FoldinError",
    "KeyRefusedError",
    "MissingError",
    "NoAnswerError",
    "ProblemError",
    "RefusedError",
    "UnreadableAnswerError",
    "models",
    "problems",
]
