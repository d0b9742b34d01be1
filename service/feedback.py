"""Records what lists have shown, and counts what came of it, beside the answers.

Invariant: no answer waits for it, and what waits is bounded: what is beyond the bound, or cannot be stored,
is left out and counted.
"""

import asyncio
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from factors import Float64s
from featurestore.codecs import Feedback
from featurestore.errors import StoreDamaged, StoreUnavailable
from featurestore.experiments import Figure, Showings
from featurestore.generations.follower import Follower
from featurestore.keys import partition_of
from featurestore.ratings.batches import Columns
from featurestore.ratings.event_types import EventType
from featurestore.store import Store
from service.experiments.background import BackgroundSteps
from service.experiments.counting import ArmCounts, Membership
from service.metrics import Counts

# The type that what `/recommend` records has, where it has not been retired.
IMPRESSION = "impression"
# As long as someone may think about a purchase; windows of shops and advertisers are 1 to 30 days.
_WINDOW_S = 7 * 86_400.0
# Soon after the answer, and together with those of other answers.
_STORE_S = 0.2
# 3 MB; a worker answers some 2,000 lists of 10 items in the time.
_MOST_WAITING = 20_000
# One call of ratings may have as many.
_AT_ONCE = 10_000
# Figures are looked at by people.
_FLUSH_S = 2.0
# Histories that are read for the positive events of a call. A larger call is an import.
MOST_POSITIVES = 256
# To look for what had shown an item takes some 30 microseconds; a thread takes as long as a few.
_INLINE_POSITIVES = 16
# Of a scenario, an experiment or an arm; no name has a tilde or a colon.
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_TOKEN = re.compile(
    rf"(?P<generation>\d{{1,16}})~(?P<at>\d{{1,12}})~[0-9a-f]{{16}}~(?P<scenario>(?:{_NAME})?)"
    rf"~(?P<arm>(?:{_NAME}:{_NAME})?)",
    re.ASCII,
)
# A scenario, and the arm of an experiment, at their longest.
MAX_TOKEN = 241
# Two answers of a billion have the same with a chance of 1 to 37.
_RANDOM_BYTES = 8


class Token(NamedTuple):
    """What the `recommendation_id` of an answer says: which generation, scenario and `arm` (of which
    experiment) made it, and when (`at`, seconds since 1970).

    It can be read without asking anything, and says nothing of the user. It is not signed: who may send
    events may say that an item was shown anyway.
    """

    generation: int
    at: float
    scenario: str | None
    arm: tuple[str, str] | None


def new_token(generation: int, at: float, scenario: str | None, arm: tuple[str, str] | None) -> str:
    """Return the `recommendation_id` of an answer."""
    return f"{generation}~{at:.0f}~{secrets.token_hex(_RANDOM_BYTES)}~{scenario or ''}~{':'.join(arm or ())}"


def parse_token(text: str) -> Token | None:
    """Return what a `recommendation_id` says; None of a text that is none."""
    match = _TOKEN.fullmatch(text) if len(text) <= MAX_TOKEN else None
    if match is None:
        return None
    experiment, _, arm = match["arm"].partition(":")
    made = (experiment, arm) if arm else None
    return Token(int(match["generation"]), float(match["at"]), match["scenario"] or None, made)


@dataclass(slots=True)
class _Waiting:
    """What waits to be handed over of one generation."""

    showings: Showings = field(default_factory=Showings)
    rows: set[int] = field(default_factory=set)


class _Shown(NamedTuple):
    """An item that an answer has shown, to be stored."""

    user_id: bytes
    item_id: bytes
    row: int
    generation: int
    member: Membership | None
    at: float
    n: int


class Noted(NamedTuple):
    """What the events of a call count for, once they are stored: positions and generations of those shown,
    and of those that followed a showing.
    """

    columns: Columns
    shown: Sequence[tuple[int, int]]
    positives: Sequence[tuple[int, int]]
    tokens: Sequence[Token | None]


class FeedbackRecorder:
    """What one worker has shown and counted, and not yet handed over. `most_entries`: those of one user."""

    def __init__(
        self,
        store: Store,
        follower: Follower,
        counts: Counts,
        arm_counts: ArmCounts,
        *,
        most_entries: int,
    ) -> None:
        self._store = store
        self._follower = follower
        self._counts = counts
        self._arm_counts = arm_counts
        self._most_entries = most_entries
        self._shown: list[_Shown] = []
        self._waiting = defaultdict[int, _Waiting](_Waiting)
        self._flushed_at = time.monotonic()
        self._steps = BackgroundSteps("record what was shown", counts)

    def listed(self, generation: int, member: Membership | None) -> None:
        """Count an answered list, of an arm where the user is a `member` of one."""
        self._waiting[generation].showings.lists += 1
        if member is not None:
            self._arm_counts.count(member, Figure.LISTS)

    def show(
        self,
        generation: int,
        user_id: bytes,
        items: Sequence[tuple[bytes, int]],
        member: Membership | None,
        *,
        n: int,
    ) -> None:
        """Record that `items` (id and row) were shown to a user, soon. `n`: the user's as it was read for the
        answer.
        """
        now = time.time()
        # The first are the likeliest to be looked at.
        room = max(0, _MOST_WAITING - len(self._shown))
        self._counts.impressions_lost += max(0, len(items) - room)
        self._shown += [
            _Shown(user_id, item_id, row, generation, member, now, n) for item_id, row in items[:room]
        ]

    def forget(self, user_id: bytes) -> None:
        """Drop what waits of a user."""
        self._shown = [each for each in self._shown if each.user_id != user_id]

    async def note(
        self, columns: Columns, types: Sequence[EventType], tokens: Sequence[Token | None]
    ) -> Noted | None:
        """Look at the events of a call before they are stored; None where none says anything of lists. Of a
        call with over `MOST_POSITIVES` positive events none of these counts.
        """
        live = self._follower.live
        if live is None or columns.type_code is None:
            return None
        # A retired type's events stay, and so does what they mean.
        codes = {each.code: each.meaning for each in types}
        meant = [codes.get(code) for code in columns.type_code.tolist()]
        shown = [(k, int(columns.rating[k])) for k, what in enumerate(meant) if what == "shown"]
        wanted = [k for k, what in enumerate(meant) if what == "positive"]
        found: list[tuple[int, int]] = []
        if 0 < len(wanted) <= MOST_POSITIVES:
            found = await self._followed(columns, wanted, [k for k, _ in shown], types, live.epoch)
        return Noted(columns, shown, found, tokens) if shown or found else None

    async def _followed(
        self,
        columns: Columns,
        wanted: Sequence[int],
        shown_here: Sequence[int],
        types: Sequence[EventType],
        epoch: int,
    ) -> list[tuple[int, int]]:
        of_user, shown_to = defaultdict[bytes, list[int]](list), defaultdict[bytes, list[int]](list)
        for events, by_user in ((wanted, of_user), (shown_here, shown_to)):
            for k in events:
                by_user[columns.user_id[k]].append(k)
        names = dict.fromkeys(columns.item_id[k] for k in wanted)
        if any(each.user_id in of_user for each in self._shown):
            # Who is as fast as that was shown the item by an answer that is not stored yet.
            await self._steps.make(self._store_shown())
        try:
            histories, rows = await asyncio.gather(
                self._store.users.parts(epoch, list(of_user)), self._store.items(epoch).rows(list(names))
            )
        except (StoreUnavailable, StoreDamaged):
            # The call itself says what matters to it: to store events no history is read.
            return []
        # A number of its own also for an item without a row: it may be shown and chosen in this call.
        row_of = {
            item: -1 - k if row is None else row
            for k, (item, row) in enumerate(zip(names, rows, strict=True))
        }
        shown, positive = (
            [each.code for each in types if each.meaning == meaning] for meaning in ("shown", "positive")
        )

        def follow() -> list[tuple[int, int]]:
            found = []
            for history, (user_id, places) in zip(histories, of_user.items(), strict=True):
                # What a call shows comes before what it says was chosen, as clients send in batches.
                here = [k for k in shown_to.get(user_id, ()) if columns.item_id[k] in row_of]
                before = _with_showings(
                    history.feedback,
                    [row_of[columns.item_id[k]] for k in here],
                    columns.time[here],
                    columns.rating[here],
                    shown,
                )
                items = [row_of[columns.item_id[k]] for k in places]
                times = [float(columns.time[k]) for k in places]
                for place, generation in _positives(before, items, times, shown, positive):
                    found.append((places[place], generation))
            return found

        return follow() if len(wanted) <= _INLINE_POSITIVES else await asyncio.to_thread(follow)

    def count(self, noted: Noted) -> None:
        """Count the events of a call that is stored."""
        live = self._follower.live
        columns, registry = noted.columns, self._store.items(1 if live is None else live.epoch)
        newest = self._store.users.kept.upto
        for events, figure in ((noted.shown, Figure.SHOWN), (noted.positives, Figure.POSITIVES)):
            for k, generation in events:
                if not 0 < generation <= newest:
                    # Of a token that was made up, or an import: it would take the place of one that there is.
                    continue
                row = registry.row(columns.item_id[k]) if figure is Figure.SHOWN else None
                member = self._member(columns.user_id[k], noted.tokens[k])
                self._count(figure, generation, row, member)

    def _member(self, user_id: bytes, token: Token | None) -> Membership | None:
        """Return the arm that an event counts for: that of the answer, by its token, if it is the user's."""
        if token is None or token.arm is None:
            return None
        name, arm = token.arm
        experiment = self._follower.experiments.named(name)
        member = None if experiment is None else Membership.of(experiment, user_id)
        return member if member is not None and member.name == arm else None

    def _count(self, figure: Figure, generation: int, row: int | None, member: Membership | None) -> None:
        waiting = self._waiting[generation]
        if figure is Figure.SHOWN:
            waiting.showings.shown += 1
            if row is not None:
                waiting.rows.add(row)
        else:
            waiting.showings.positives += 1
        if member is not None:
            self._arm_counts.count(member, figure)

    async def run(self) -> None:
        """Store and hand over until cancelled, and once more then."""
        try:
            while True:
                await asyncio.sleep(_STORE_S)
                await self._steps.make(self._store_shown())
                if time.monotonic() - self._flushed_at >= _FLUSH_S:
                    await self._steps.make(self._flush())
        finally:
            await self._steps.make(self._store_shown())
            await self._steps.make(self._flush())

    async def _flush(self) -> None:
        """Hand the sums over."""
        self._flushed_at = time.monotonic()
        waiting, self._waiting = self._waiting, defaultdict(_Waiting)
        for generation, each in waiting.items():
            await self._store.showings.add(generation, each.showings, each.rows)

    async def _store_shown(self) -> None:
        """Store what was shown as events, and count it."""
        while self._shown:
            some, self._shown = self._shown[:_AT_ONCE], self._shown[_AT_ONCE:]
            try:
                types = await self._store.event_types.current()
            except Exception:
                self._counts.impressions_lost += len(some)
                raise
            code = next((each.code for each in types if each.name == IMPRESSION and not each.retired), None)
            # An operator has retired the type, or nothing may be written.
            if code is None or self._follower.full is not None:
                self._counts.impressions_lost += len(some)
                continue
            # A partition that is full, or a user who is damaged, costs no other partition its showings.
            parts: dict[int, list[_Shown]] = {}
            for each in some:
                parts.setdefault(partition_of(each.user_id, self._store.keys.partitions), []).append(each)
            calls = (self._store_part(part, code) for part in parts.values())
            for failed in await asyncio.gather(*calls, return_exceptions=True):
                if failed is not None:
                    raise failed

    async def _store_part(self, part: Sequence[_Shown], code: int) -> None:
        """Store and count what was shown to users of one partition. Raises `StoreError`."""
        columns, most = _columns(part, code), self._most_entries
        try:
            left_out = await self._store.ratings.append_columns(columns, most_entries=most)
        except Exception:
            # Some may have been stored: they are not sent again, as they would be shown twice.
            self._counts.impressions_lost += len(part)
            raise
        self._counts.impressions_lost += left_out
        for each in part:
            self._count(Figure.SHOWN, each.generation, each.row, each.member)


def _columns(some: Sequence[_Shown], code: int) -> Columns:
    # The value of a showing is the generation that has shown it.
    known: dict[bytes, int] = {}
    for each in some:
        # Of several answers the first: what was shown before the user was forgotten must not be stored.
        known.setdefault(each.user_id, each.n)
    values: Float64s = np.array([each.generation for each in some], dtype=np.float64)
    return Columns(
        [each.user_id for each in some],
        [each.item_id for each in some],
        values,
        np.array([each.at for each in some]),
        np.full(len(some), code, dtype=np.uint8),
        known,
    )


def _positives(
    before: Feedback,
    rows: Sequence[int],
    times: Sequence[float],
    shown: Collection[int],
    positive: Collection[int],
) -> list[tuple[int, int]]:
    """Return which events of one user follow a showing, on items `rows` (m,), at `times` (m,), in their
    order: places among them, and the generations that had shown the items. Of each showing of an item one
    event counts, at most seven days later; what a user had done before the item was shown again does not.

    `before`: the events of the user before these; `shown`, `positive`: codes of the types that mean so.
    """
    found: list[tuple[int, int]] = []
    counted: set[int] = set()
    is_shown, is_positive = (np.isin(before.type_code, [*codes]) for codes in (shown, positive))
    for place, (row, at) in enumerate(zip(rows, times, strict=True)):
        own = before.item_row == row
        showings = np.flatnonzero(own & is_shown)
        if row in counted or not len(showings):
            continue
        # Entries stand in the order of arrival; clients may send what is older later.
        last = showings[np.argmax(before.time[showings])]
        since = before.time[last]
        answered = (before.time[own & is_positive] >= since).any()
        if 0.0 <= at - since <= _WINDOW_S and not answered:
            counted.add(row)
            found.append((place, int(before.value[last])))
    return found


def _with_showings(
    before: Feedback, rows: Sequence[int], times: Float64s, generations: Float64s, shown: Sequence[int]
) -> Feedback:
    """Return the events of a user with showings of items `rows` (m,) at `times` (m,) by `generations` (m,)
    behind them.
    """
    if not len(rows):
        return before
    return Feedback(
        np.append(before.item_row, np.array(rows, dtype=np.int32)),
        np.append(before.type_code, np.full(len(rows), shown[0], dtype=np.uint8)),
        np.append(before.value, generations),
        np.append(before.time, times),
        np.append(before.place, np.zeros(len(rows), dtype=np.int64)),
    )
