"""Clients that rate, change their minds, forget, ask, train and put documents, each by a seed.

Invariant: a user or a document of a session has that one writer, which makes one call at a time. So after
each answer it is known what the next one may say. Users called `shared-` have many writers; the archive tells
their order.
"""

import asyncio
import itertools
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from torture.calls import TRAIN_S, Caller
from torture.checks import DELETED, TICK, Checks, Reply, context_of
from torture.histories import LATE_S, Answered

# So many calls at once, by so few users, that most of them meet what another one has just written.
SESSIONS = 10
USERS = 8  # of each session
SHARED = 4  # users that every session rates for
# Sessions rate the first items. The last ones have the ratings of each new history alone: their rows stay
# those of the fit.
RATED, ITEMS = 40, 50
# Of those the first are deleted with their ratings, again and again.
DELETED_ITEMS = 4
# By then, before anything else, so many ratings went with them.
FIRST_DELETED = 20
SEEDERS = 150  # fitted in less than a second
# From 20,000 on a process of its own writes their records.
MANY = 20_000
# What can be learned, so that the gate lets refits pass, and a little more each time: so every rating is told
# from every other one. An hour gives over a million, most of them of large histories.
LEVELS, TICKS = 7, 400_000_000
# A call that was refused is not made again at once: it would only be refused again.
PAUSE_S = 0.1
# Of users who are forgotten; the others come back.
RETIRING = 0.5
# So that a machine of two cores has room for fits.
THINKING_S = 0.03
# Ids of users of sessions: one that is forgotten for good is found in any file, and is no other bytes there.
RETIRED = re.compile(rb"s\d+-\d+-[0-9a-f]{24}")
# What PATCH changes.
_PATCHED = ("/users", "/items")
_OPERATIONS = {"refit", "history", "large history"}
# Of an operator, by itself.
_WORK = ("refit", "refit", "go back", "history", "delete item")
# Of each session.
ITEMS_PUT, SCENARIOS = 4, 2


@dataclass(slots=True)
class Shared:
    """What all clients share. `open`: cleared while they are to be still; `busy`: sessions amid calls;
    `promotions`: how often the primary of the store was about to be replaced.
    """

    caller: Caller
    checks: Checks
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    busy: int = 0
    # Answers of new users, to be explained.
    answers: list[Answered] = field(default_factory=list)
    # Users who were forgotten with no call left that may bring them back, and whom only reads name since.
    retired: set[str] = field(default_factory=set)
    # Faults that want a call of this kind now.
    wanted: set[str] = field(default_factory=set)
    promotions: int = 0
    # Generations that were asked to go live again, and until when, by the loop's clock, they may.
    activating: dict[int, float] = field(default_factory=dict)

    def value(self, taste: int, item: int) -> float:
        """Return a rating that was never given before."""
        return 1.0 + 0.5 * ((taste + item) % LEVELS) + (next(self.numbers) % TICKS) * TICK

    def history(self, rng: random.Random, more_users: int) -> dict[str, object]:
        """Return a new history, as POST /train takes it, that replaces all. `more_users` rate once."""
        pairs = [(user, item) for user in range(SEEDERS) for item in range(ITEMS) if rng.random() < 0.5]
        pairs += [(SEEDERS + user, user % ITEMS) for user in range(more_users)]
        return {
            "nb_users": SEEDERS + more_users,
            "nb_items": ITEMS,
            "user_history": [user for user, _ in pairs],
            "item_history": [item for _, item in pairs],
            "rating_history": [self.value(user, item) for user, item in pairs],
            "replace": True,
        }


class Session:
    """One client with users of its own."""

    def __init__(self, shared: Shared, number: int, seed: int) -> None:
        self._shared = shared
        self._rng = random.Random(f"{seed}-session-{number}")  # noqa: S311 - to be repeated, not secret
        self._number = number
        self._users = [self._new_user(user) for user in range(USERS)]
        self._newcomers = (f"new{number}-{count}" for count in itertools.count())

    def _new_user(self, place: int) -> str:
        return f"s{self._number}-{place}-{self._rng.getrandbits(96):024x}"

    async def run(self) -> None:
        """Call until cancelled."""
        shared, rng = self._shared, self._rng
        kinds: list[tuple[Callable[[], Awaitable[Reply]], int]] = [
            (self._rate, 40),
            (self._read, 20),
            (self._predict, 10),
            (self._recommend, 8),
            (self._explained, 8),
            (self._take_back, 6),
            (self._rate_together, 6),
            (self._forget, 2),
            (self._edit, 16),
        ]
        calls, weights = zip(*kinds, strict=True)
        while True:
            await shared.open.wait()
            (call,) = rng.choices(calls, weights)
            if "forget" in shared.wanted:
                call = self._forget
            shared.busy += 1
            try:
                reply = await call()
            finally:
                shared.busy -= 1
            await asyncio.sleep(THINKING_S if reply.ok else PAUSE_S)

    async def _call(self, kind: str, method: str, path: str, body: object = None) -> Reply:
        return await self._shared.caller.call(kind, method, path, body, replica=self._rng.randrange(64))

    async def _edit(self) -> Reply:
        """Put, change, delete or read a document."""
        rng, path = self._rng, self._rng.choice(self._documents())
        method = rng.choice(("PUT", "PUT", "PATCH", "DELETE", "GET"))
        number = next(self._shared.numbers)
        if method == "PATCH" and not path.startswith(_PATCHED):
            method = "GET"
        body: dict[str, Any] | None = None
        if method == "PUT":
            body = document(path, number)
        elif method == "PATCH":
            # The title stays; of attributes the only one goes.
            body = {"hidden": number % 2 == 1} if path.startswith("/items") else {"mark": None}
        reply = await self._call(f"{method} document", method, path, body)
        if reply.ok and rng.random() < 0.5:
            await self._call("GET document", "GET", path)
        if reply.ok and rng.random() < 0.2:
            await self._call("latest", "GET", "/latest?n=1000")
        return reply

    def _documents(self) -> list[str]:
        mine = f"c{self._number}"
        users = [f"/users/{quote(user)}/attributes" for user in self._users]
        items = [f"/items/{mine}-{place}" for place in range(ITEMS_PUT)]
        scenarios = [f"/scenarios/{mine}-{place}" for place in range(SCENARIOS)]
        return [*users, *items, *scenarios, f"/experiments/{mine}"]

    async def _rate(self) -> Reply:
        rng, shared = self._rng, self._shared
        # One rating and many take different ways through the service and the store.
        rows = {}
        for _ in range(rng.choice((1, 1, 3, 30))):
            place, item = rng.randrange(USERS), rng.randrange(RATED)
            rows[self._users[place], str(item)] = shared.value(place, item)
        reply = await self._send([(user, item, value) for (user, item), value in rows.items()])
        user = next(iter(rows))[0]
        if reply.ok and rng.random() < 0.5:
            await self._read(user)
        return reply

    async def _send(self, rows: list[tuple[str, str, float]]) -> Reply:
        body = [
            {"user_id": user, "item_id": item, "rating": value, "context": context_of(value)}
            for user, item, value in rows
        ]
        return await self._call("rate", "POST", "/ratings", body)

    async def _rate_together(self) -> Reply:
        item, user = self._rng.randrange(RATED), f"shared-{self._rng.randrange(SHARED)}"
        return await self._send([(user, str(item), self._shared.value(0, item))])

    async def _take_back(self) -> Reply:
        user, item = self._rng.choice(self._users), str(self._rng.randrange(RATED))
        return await self._call("take back", "DELETE", f"/ratings/{user}/{item}")

    async def _forget(self) -> Reply:
        self._shared.wanted.discard("forget")
        place = self._rng.randrange(USERS)
        user = self._users[place]
        reply = await self._call("forget", "DELETE", f"/users/{user}")
        if reply.ok:
            await self._read(user)
            if reply.began > self._shared.checks.late.get(user, 0.0) and self._rng.random() < RETIRING:
                self._shared.retired.add(user)
                self._users[place] = self._new_user(place)
        return reply

    async def _read(self, user: str | None = None) -> Reply:
        return await read_user(self._shared, user or self._rng.choice(self._users), self._rng.randrange(64))

    async def _predict(self) -> Reply:
        user, item = self._rng.choice(self._users), self._rng.randrange(ITEMS)
        return await self._call("predict", "GET", f"/predict?user_id={user}&item_id={item}")

    async def _recommend(self) -> Reply:
        return await self._call("recommend", "GET", f"/recommend/{self._rng.choice(self._users)}?n=10")

    async def _explained(self) -> Reply:
        """Be a new user: rate once or twice, and ask at once. What comes is explained later."""
        shared, user = self._shared, next(self._newcomers)
        rated: list[tuple[int, float, float]] = []
        for turn in range(self._rng.randint(1, 2)):
            item, time = self._rng.randrange(DELETED_ITEMS, RATED), 1.7e9 + turn
            value = shared.value(0, item)
            body = {"user_id": user, "item_id": str(item), "rating": value, "timestamp": time}
            reply = await self._call("rate", "POST", "/ratings", body)
            if not reply.ok:
                return reply
            rated = [each for each in rated if each[0] != item] + [(item, value, time)]
        histories = shared.checks.histories
        worlds = list(histories.worlds)
        asked = self._rng.randrange(RATED, ITEMS)
        reply = await self._call("predict", "GET", f"/predict?user_id={user}&item_id={asked}")
        # A history that begins meanwhile may not have the ratings.
        if reply.ok and not reply.degraded and len(worlds) == 1 and worlds[0] is histories.worlds[-1]:
            found = reply.body["rating"], reply.body["generation"]
            shared.answers.append(Answered(tuple(rated), asked, *found, reply.ended))
        return reply


async def read_user(shared: Shared, user: str, replica: int) -> Reply:
    """Read all ratings of a user."""
    path = f"/users/{quote(user)}/ratings?n=1000"
    return await shared.caller.call("read", "GET", path, replica=replica)


async def follow_deletion(shared: Shared) -> None:
    """Ask whether the ratings of the item that was deleted last are gone."""
    deletion = shared.checks.histories.deletion
    if deletion is not None and deletion.receipt is not None:
        await shared.caller.call("receipt", "GET", f"/receipts/{deletion.receipt}")


def document(path: str, number: int) -> dict[str, Any]:
    """Return a document as PUT takes it, by its path and a number that none had before."""
    _, kind, name, *_ = path.split("/")
    if kind == "items":
        return {"title": f"title {number}", "hidden": number % 2 == 1}
    if kind == "users":
        return {"mark": number}
    if kind == "scenarios":
        return {"n": 1 + number % 1000}
    arms = [(f"{number}-{arm}", f"{name}-{arm}") for arm in range(SCENARIOS)]
    told = [{"name": arm, "share": 0.5, "scenario": scenario} for arm, scenario in arms]
    return {"scenario": f"{name}-0", "arms": told}


class Operator:
    """Trains, begins histories, goes back to generations, and deletes items with their ratings."""

    def __init__(self, shared: Shared, seed: int) -> None:
        self._shared = shared
        self._rng = random.Random(f"{seed}-operator")  # noqa: S311 - to be repeated, not secret

    async def run(self) -> None:
        """Operate until cancelled."""
        shared, rng = self._shared, self._rng
        while shared.checks.report.checks[DELETED] < FIRST_DELETED:
            await shared.open.wait()
            await self._delete_item()
            await follow_deletion(shared)
            await asyncio.sleep(0.2)
        while True:
            await shared.open.wait()
            asked = shared.wanted & _OPERATIONS
            work = min(asked) if asked else rng.choice(_WORK)
            if work.endswith("history") and len(shared.checks.histories.worlds) > 1:
                # What became of the one before is to be known first.
                await asyncio.sleep(0.2)
                continue
            shared.wanted.discard(work)
            if work.endswith("history"):
                await self.begin_history(MANY if work == "large history" else 0)
            elif work == "go back":
                await self._go_back()
            elif work == "delete item":
                await self._delete_item()
            else:
                await self.refit()
            for _ in range(rng.randint(10, 40)):
                if shared.wanted & _OPERATIONS:
                    break
                await follow_deletion(shared)
                await asyncio.sleep(0.2)

    async def refit(self) -> Reply:
        """Fit again on all that is known."""
        return await self._call("refit", "POST", "/train", timeout_s=TRAIN_S)

    async def begin_history(self, more_users: int = 0) -> Reply:
        """Replace all. Whether that was done, the store tells."""
        body = self._shared.history(self._rng, more_users)
        return await self._call("new history", "POST", "/train", body, timeout_s=TRAIN_S)

    async def _delete_item(self) -> None:
        """Delete an item with its ratings, unless it is not known what became of the last one."""
        histories = self._shared.checks.histories
        if len(histories.worlds) > 1 or histories.deletion is not None:
            return
        path = f"/items/{self._rng.randrange(DELETED_ITEMS)}"
        await self._call("PUT document", "PUT", path, {"title": f"title {next(self._shared.numbers)}"})
        await self._call("delete item", "DELETE", f"{path}?ratings=delete")

    async def _go_back(self) -> None:
        reply = await self._call("list generations", "GET", "/generations")
        if reply.ok:
            whole = [each["generation"] for each in reply.body["generations"] if each["state"] == "ready"]
            for number in [min(whole, default=0), max(whole, default=0)]:
                if number:
                    self._shared.activating[number] = float("inf")
                    reply = await self._call("activate", "POST", f"/generations/{number}/activate")
                    late_s = LATE_S if reply.open else 0.0
                    self._shared.activating[number] = reply.ended + late_s
                    await asyncio.sleep(0.5)

    async def _call(self, kind: str, method: str, path: str, body: object = None, **more: float) -> Reply:
        return await self._shared.caller.call(
            kind, method, path, body, replica=self._rng.randrange(2), **more
        )
