"""Clients that rate, change their minds, forget, ask and train, each by a seed, and check what they are told.

Invariant: a user of a session has that one writer, which makes one call at a time. So after each answer it is
known what the next one may say. Users called `shared-` have many writers; the archive tells their order.
"""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import quote

from torture.calls import TRAIN_S, Caller, Reply
from torture.histories import LATE_S, Answered, Histories, Value
from torture.report import Report

# So many calls at once, by so few users, that most of them meet what another one has just written.
SESSIONS = 10
USERS = 8  # of each session
SHARED = 4  # users that every session rates for
# Sessions rate the first items. The last ones have the ratings of each new history alone: their rows stay
# those of the fit.
RATED, ITEMS = 40, 50
SEEDERS = 150  # fitted in less than a second
# From 20,000 on a process of its own writes their records.
MANY = 20_000
# What can be learned, so that the gate lets refits pass, and a little more each time: so every rating is told
# from every other one. An hour gives over a million, most of them of large histories.
LEVELS, TICK, TICKS = 7, 1e-9, 400_000_000
# A call that was refused is not made again at once: it would only be refused again.
PAUSE_S = 0.1
# So that a machine of two cores has room for fits.
THINKING_S = 0.03
_OPERATIONS = {"refit", "history", "large history"}
READ, ORDER, UNSEEN = "reads have all writes", "order of events", "no seen item is recommended"
TOLD = "a rating has what was told with it"


@dataclass(slots=True)
class Shared:
    """What all clients share. `open`: cleared while they are to be still; `busy`: sessions amid calls;
    `promotions`: how often the primary of the store was about to be replaced.
    """

    caller: Caller
    histories: Histories
    report: Report
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    busy: int = 0
    # Answers of new users, to be explained; receipts of erasures with their users.
    answers: list[Answered] = field(default_factory=list)
    receipts: dict[str, str] = field(default_factory=dict)
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
        self._users = [f"s{number}-{user}" for user in range(USERS)]
        self._newcomers = (f"new{number}-{count}" for count in itertools.count())

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
        by_user: dict[str, dict[str, Value]] = {}
        for user, item, value in rows:
            by_user.setdefault(user, {})[item] = value
            self._shared.histories.sent[user].add(value)
        body = [
            {"user_id": user, "item_id": item, "rating": value, "context": context_of(value)}
            for user, item, value in rows
        ]
        reply = await self._call("rate", "POST", "/ratings", body)
        for user, ratings in by_user.items():
            if reply.ok or _may_have_happened(reply):
                self._shared.histories.rated(user, ratings, reply.began, reply.ended, known=reply.ok)
        return reply

    async def _rate_together(self) -> Reply:
        item, user = self._rng.randrange(RATED), f"shared-{self._rng.randrange(SHARED)}"
        return await self._send([(user, str(item), self._shared.value(0, item))])

    async def _take_back(self) -> Reply:
        user, item = self._rng.choice(self._users), str(self._rng.randrange(RATED))
        reply = await self._call("take back", "DELETE", f"/ratings/{user}/{item}")
        histories = self._shared.histories
        if reply.status == 404:
            self._shared.report.checked(READ)
            if item in histories.surely_rated(user, reply.began):
                self._shared.report.violated(READ, f"user {user} has no rating of item {item} to take back")
        elif reply.ok or _may_have_happened(reply):
            histories.rated(user, {item: None}, reply.began, reply.ended, known=reply.ok)
        return reply

    async def _forget(self) -> Reply:
        self._shared.wanted.discard("forget")
        user = self._rng.choice(self._users)
        self._shared.histories.forgetting(user)
        reply = await self._call("forget", "DELETE", f"/users/{user}")
        if reply.ok or _may_have_happened(reply):
            self._shared.histories.forgot(user, reply.began, reply.ended, known=reply.ok)
        if reply.ok:
            self._shared.receipts[reply.body["receipt"]] = user
            await self._read(user)
        return reply

    async def _read(self, user: str | None = None) -> Reply:
        return await read_user(self._shared, user or self._rng.choice(self._users), self._rng.randrange(64))

    async def _predict(self) -> Reply:
        user, item = self._rng.choice(self._users), self._rng.randrange(ITEMS)
        return await self._call("predict", "GET", f"/predict?user_id={user}&item_id={item}")

    async def _recommend(self) -> Reply:
        user, shared = self._rng.choice(self._users), self._shared
        reply = await self._call("recommend", "GET", f"/recommend/{user}?n=10")
        if reply.ok and not reply.degraded:
            shared.report.checked(UNSEEN)
            seen = shared.histories.surely_rated(user, reply.began)
            if again := seen & {each["item_id"] for each in reply.body["items"]}:
                shared.report.violated(UNSEEN, f"user {user} is recommended {sorted(again)}, already rated")
        return reply

    async def _explained(self) -> Reply:
        """Be a new user: rate once or twice, and ask at once. What comes is explained later."""
        shared, user = self._shared, next(self._newcomers)
        rated: list[tuple[int, float, float]] = []
        for turn in range(self._rng.randint(1, 2)):
            item, time = self._rng.randrange(RATED), 1.7e9 + turn
            value = shared.value(0, item)
            body = {"user_id": user, "item_id": str(item), "rating": value, "timestamp": time}
            reply = await self._call("rate", "POST", "/ratings", body)
            if not reply.ok:
                return reply
            rated = [each for each in rated if each[0] != item] + [(item, value, time)]
        worlds = list(shared.histories.worlds)
        asked = self._rng.randrange(RATED, ITEMS)
        reply = await self._call("predict", "GET", f"/predict?user_id={user}&item_id={asked}")
        # A history that begins meanwhile may not have the ratings.
        if reply.ok and not reply.degraded and len(worlds) == 1 and worlds[0] is shared.histories.worlds[-1]:
            found = reply.body["rating"], reply.body["generation"]
            shared.answers.append(Answered(tuple(rated), asked, *found, reply.ended))
        return reply


def context_of(value: float) -> dict[str, float] | None:
    """Return what is told with a rating of this value: with one in three a number, which it decides."""
    ticks = round(value / TICK)
    # Exact as a float32.
    return {"mark": ticks % 4096} if ticks % 3 == 0 else None


async def read_user(shared: Shared, user: str, replica: int) -> Reply:
    """Read all ratings of a user, and hold them against what may be."""
    path = f"/users/{quote(user)}/ratings?n=1000"
    reply = await shared.caller.call("read", "GET", path, replica=replica)
    if (reply.ok and not reply.degraded) or reply.status == 404:
        shared.report.checked(READ)
        rows = reply.body["ratings"] if reply.ok else []
        found = {row["item_id"]: row["rating"] for row in rows}
        for wrong in shared.histories.found(user, found, reply.began):
            shared.report.violated(READ, f"replica {replica % 2}: {wrong}")
        shared.report.checked(TOLD, len(rows))
        for row in rows:
            # Of a new history no rating has any.
            if row["rating"] in shared.histories.sent[user] and row.get("context") != context_of(
                row["rating"]
            ):
                shared.report.violated(TOLD, f"replica {replica % 2}, user {user}: {row}")
    return reply


class Operator:
    """Trains, begins histories, and goes back to generations."""

    def __init__(self, shared: Shared, seed: int) -> None:
        self._shared = shared
        self._rng = random.Random(f"{seed}-operator")  # noqa: S311 - to be repeated, not secret
        self.histories = shared.histories

    async def run(self) -> None:
        """Operate until cancelled."""
        shared, rng = self._shared, self._rng
        while True:
            await shared.open.wait()
            asked = shared.wanted & _OPERATIONS
            work = min(asked) if asked else rng.choice(("refit", "refit", "go back", "history"))
            if work.endswith("history") and len(shared.histories.worlds) > 1:
                # What became of the one before is to be known first.
                await asyncio.sleep(0.2)
                continue
            shared.wanted.discard(work)
            if work.endswith("history"):
                await self.begin_history(MANY if work == "large history" else 0)
            elif work == "go back":
                await self._go_back()
            else:
                await self.refit()
            for _ in range(rng.randint(10, 40)):
                if shared.wanted & _OPERATIONS:
                    break
                await asyncio.sleep(0.2)

    async def refit(self) -> Reply:
        """Fit again on all that is known."""
        return await self._call("refit", "POST", "/train", timeout_s=TRAIN_S)

    async def begin_history(self, more_users: int = 0) -> Reply:
        """Replace all. Whether that was done, the store tells."""
        self.histories.begin()
        body = self._shared.history(self._rng, more_users)
        reply = await self._call("new history", "POST", "/train", body, timeout_s=TRAIN_S)
        self.histories.begun(reply.ended, refused=400 <= reply.status < 500)
        return reply

    async def _go_back(self) -> None:
        reply = await self._call("list generations", "GET", "/generations")
        if reply.ok:
            whole = [each["generation"] for each in reply.body["generations"] if each["state"] == "ready"]
            for number in [min(whole, default=0), max(whole, default=0)]:
                if number:
                    self._shared.activating[number] = float("inf")
                    reply = await self._call("activate", "POST", f"/generations/{number}/activate")
                    late_s = LATE_S if _may_have_happened(reply) else 0.0
                    self._shared.activating[number] = reply.ended + late_s
                    await asyncio.sleep(0.5)

    async def _call(self, kind: str, method: str, path: str, body: object = None, **more: float) -> Reply:
        return await self._shared.caller.call(
            kind, method, path, body, replica=self._rng.randrange(2), **more
        )


def _may_have_happened(reply: Reply) -> bool:
    # Refused before anything was done: for its form, or because it is too much at a time.
    return reply.status == 0 or reply.status >= 500 or reply.status == 429
