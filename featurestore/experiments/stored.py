"""Begins and ends experiments. Invariant: an experiment that began is never changed."""

from typing import Any

import msgspec

from featurestore.client import Client
from featurestore.confirmation import Confirmation
from featurestore.errors import StoreError, StoreRefused
from featurestore.experiments.definition import (
    Arm,
    Definition,
    Experiment,
    Experiments,
    read_experiments,
    require_readable,
)
from featurestore.keys import Keys

# A worker reads all of them ten times a second, and each is about its own scenario.
MOST_EXPERIMENTS = 32


class ExperimentExists(StoreError):  # noqa: N818 -- the name says what happened, as those of `errors` do
    """Another experiment has this name, or is about the same calls: `name`. End that one first."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the experiment {name!r} runs")
        self.name = name


class StoredExperiments:
    """Reads and changes experiments. Every method may raise `StoreUnavailable`, and may then be repeated."""

    def __init__(self, keys: Keys, client: Client, confirmation: Confirmation) -> None:
        self._keys = keys
        self._client = client
        self._confirmation = confirmation

    async def all(self) -> Experiments:
        """Return the experiments that run."""
        fields: Any = await self._client.hgetall(self._keys.experiments)
        return read_experiments(fields)

    async def definitions(self) -> dict[str, Definition]:
        """Return what defines each experiment that runs, by name. Raises `StoreDamaged`."""
        found = await self.all()
        for name in found.damaged:
            require_readable(found, name, self._keys.experiments)
        return {each.name: each.definition for each in found.running}

    async def begin(self, name: str, definition: Definition) -> Experiment:
        """Begin an experiment, and return it; one that runs already with the same arms is returned as it is.

        Raises `ExperimentExists`, `StoreRefused` where there are too many.
        """
        found = Experiment(name, definition)
        text = msgspec.json.encode(definition)
        since = self._confirmation.begin()
        args = [name.encode(), text, b"%d" % MOST_EXPERIMENTS]
        (reply,) = await self._client.call("begin_experiment", ([self._keys.experiments], args))
        if reply[0] == b"FULL":
            raise StoreRefused(f"there may be {MOST_EXPERIMENTS} experiments")
        if reply[0] == b"BUSY":
            raise ExperimentExists(reply[1].decode())
        if reply[0] == b"EXISTS":
            stands = read_experiments({name.encode(): reply[1]}).named(name)
            if stands is None or not _alike(stands.definition, definition):
                raise ExperimentExists(name)
            found = stands
        await self._confirmation.wait(since)
        return found

    async def end(self, name: str, arms: int, default: str | None = None) -> bool:
        """End an experiment of so many `arms` with what came of it. `default`: the scenario of calls that ask
        for none from then on, in the same step. False: there is none of this name.
        """
        of_arms = [self._keys.experiment_users(name, arm) for arm in range(max(arms, 1))]
        names = [self._keys.experiments, self._keys.experiment_sums(name), *of_arms]
        since = self._confirmation.begin()
        (reply,) = await self._client.call(
            "end_experiment", (names, [name.encode(), (default or "").encode()])
        )
        if reply[0] == b"GONE":
            return False
        await self._confirmation.wait(since)
        return True


def _alike(one: Definition, other: Definition) -> bool:
    """Whether two definitions differ in nothing but when they began."""
    return (one.arms, one.scenario) == (other.arms, other.scenario)


def arm_named(experiment: Experiment, name: str) -> Arm | None:
    """Return an arm, None where there is none of this name."""
    return next((arm for arm in experiment.arms if arm.name == name), None)
