"""What all stages of a term work with. Invariant: they have the same store, lease and archive."""

from dataclasses import dataclass

from featurestore.leases import Lease
from featurestore.store import Store
from trainer.archive.root import ArchiveRoot
from trainer.archive.segments import Step
from trainer.settings import TrainerSettings
from trainer.threads import Threads


@dataclass(frozen=True, slots=True)
class Tools:
    """Of one term; `step` is called with the name of each step before it is done."""

    settings: TrainerSettings
    store: Store
    lease: Lease
    root: ArchiveRoot
    threads: Threads
    step: Step


class Stage:
    """A part of a term, with its tools."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._settings = tools.settings
        self._store = tools.store
        self._lease = tools.lease
        self._root = tools.root
        self._threads = tools.threads
        self._step = tools.step
