"""Checks of answers, by the calls and their answers alone: while they come, and again from a log of them.

Invariant: what is found depends on what stands in the log and on its order, on nothing else.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from featurestore.ratings.context_schema import ContextField
from torture.histories import LATE_S, Documents, Histories, Value
from torture.report import Report

READ, CLEAR, UNSEEN = "reads have all writes", "clear answers", "no seen item is recommended"
TOLD, DOCUMENT = "a rating has what was told with it", "documents are as they were put"
HIDDEN = "no hidden or deleted item is in a list"
DELETED = "ratings of deleted items are gone"
# Values of ratings differ by so much at least.
TICK = 1e-9
# What is told with some ratings; it is named before the first.
CONTEXT_FIELD = ContextField("mark", "number")
# Answers that say: not now. With a code, and Retry-After.
_LATER = {429, 503, 504, 507}
# What else a call of its kind may be told.
_UNKNOWN = ("user", "rating", "item", "generation", "receipt", "scenario", "experiment")
_TOLD = {404: {f"unknown_{each}" for each in _UNKNOWN}, 409: {"experiment_exists"}}
_TOLD_TRAINING = {409: {"train_in_progress"}, 422: {"training_refused"}}
_WRITES = {"PUT", "PATCH", "DELETE"}

Turn = Literal["first", "switched", "replaced", "given up", "taken back"]
"""What the store tells of a new history: it is the first one, takes all writes, is live, or will not be; or
that no ratings of a deleted item are left to be taken back.
"""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a `kind` (for the report) at one replica. `number`: in the log."""

    number: int
    kind: str
    method: str
    path: str
    body: Any = None
    replica: int = 0

    @property
    def parts(self) -> list[str]:
        """The path by its parts, decoded."""
        return [unquote(each) for each in self.route.split("/")[1:]]

    @property
    def route(self) -> str:
        """The path without its query."""
        return urlsplit(self.path).path

    @property
    def deleted_item(self) -> str | None:
        """The item that is to be deleted with its ratings."""
        return self.parts[1] if self.path.endswith("?ratings=delete") else None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a call. `status` 0: nothing; `began`, `ended`: by the loop's clock; `says_when`: whether
    it has Retry-After.
    """

    status: int
    body: Any
    began: float
    ended: float
    says_when: bool = False

    @property
    def ok(self) -> bool:
        """Whether it was done."""
        return 200 <= self.status < 300

    @property
    def open(self) -> bool:
        """Whether it may have been done or not."""
        # Others are refused before anything was done, for their form.
        return self.status == 0 or self.status >= 500 or self.status == 429

    @property
    def degraded(self) -> bool:
        """Whether it says itself that it may lack what came last."""
        return isinstance(self.body, dict) and bool(self.body.get("degraded"))


class Checks:
    """What is known from calls and answers so far. `receipts`: of erasures, with their users; `late`: until
    when a call that had no answer may still be about a user.
    """

    def __init__(self, report: Report) -> None:
        replicated = report.kind != "one"
        self.report = report
        self.histories = Histories(replicated=replicated)
        self.documents = Documents(replicated=replicated)
        self.receipts: dict[str, str] = {}
        self.late: dict[str, float] = {}

    def turned(self, turn: Turn, now: float) -> None:
        """Take in what became of a new history."""
        histories = self.histories
        if turn == "first":
            del histories.worlds[1:]
        elif turn == "switched":
            histories.switched(now)
        elif turn == "taken back":
            histories.taken_back(now, known=False)
        else:
            histories.decide(now, replaced=turn == "replaced")

    def sent(self, call: Call) -> None:
        """Take in a call that is about to be made."""
        match call.method, call.parts:
            case "POST", ["ratings"]:
                for row in _rows(call):
                    self.histories.sent[row["user_id"]].add(row["rating"])
            case "DELETE", ["users", user]:
                self.histories.forgetting(user)
            case "POST", ["train"] if call.body is not None:
                self.histories.begin()
            case method, ["items" | "scenarios" | "experiments", _] | ["users", _, "attributes"]:
                if method in _WRITES:
                    self.documents.writing(call.route)
        if item := call.deleted_item:
            self.histories.deleting(item)

    def told(self, call: Call, reply: Reply) -> None:
        """Check an answer."""
        self.report.called(call.kind, reply.status)
        self._is_clear(call, reply)
        match call.method, call.parts:
            case "POST", ["ratings"]:
                self._rated(call, reply)
            case "DELETE", ["ratings", user, item]:
                self._taken_back(user, item, reply)
            case "DELETE", ["users", user]:
                self._forgotten(user, reply)
            case "POST", ["train"] if call.body is not None:
                self.histories.begun(reply.ended, refused=400 <= reply.status < 500)
            case "GET", ["users", user, "ratings"]:
                self._read(user, call.replica, reply)
            case "GET", ["recommend", user]:
                self._recommended(user, reply)
                self._listed(reply)
            case "GET", ["latest"]:
                self._listed(reply)
            case _, ["users", user, "attributes"]:
                self._document(call, reply)
                self._note_late(user, reply)
            case "GET", ["receipts", receipt]:
                self._receipt(receipt, reply)
            case _, ["items" | "scenarios" | "experiments", _]:
                self._document(call, reply)
        if gone := call.deleted_item:
            told = reply.body["receipt"] if reply.ok else None
            self.histories.deleted(gone, reply.ended, told, refused=not (reply.ok or reply.open))

    def _receipt(self, receipt: str, reply: Reply) -> None:
        deletion = self.histories.deletion
        if deletion is None or deletion.receipt != receipt or not (reply.ok or reply.status == 404):
            return
        state = reply.body["archive"] if reply.ok else "unknown"
        if state == "taken_back":
            # Reads are held against that.
            self.report.checked(DELETED, self.histories.taken_back(reply.ended, known=True))
        elif state != "pending" and len(self.histories.worlds) == 1:
            self.report.violated(DELETED, f"item {deletion.item}: its receipt is {state}")
            self.histories.taken_back(reply.ended, known=False)

    def _is_clear(self, call: Call, reply: Reply) -> None:
        self.report.checked(CLEAR)
        body = reply.body if isinstance(reply.body, dict) else {}
        code, told = body.get("code"), _TOLD_TRAINING if call.path == "/train" else _TOLD
        later = reply.status in _LATER and code and reply.says_when
        if reply.status == 0 or later or (reply.ok and isinstance(reply.body, dict)):
            return
        if code not in told.get(reply.status, set()):
            what = f"{call.method} {call.path} was answered {reply.status}: {str(reply.body)[:200]}"
            self.report.violated(CLEAR, f"call {call.number} ({call.kind}): {what}")

    def _note_late(self, user: str, reply: Reply) -> None:
        if reply.open:
            self.late[user] = reply.ended + LATE_S

    def _rated(self, call: Call, reply: Reply) -> None:
        by_user: dict[str, dict[str, Value]] = {}
        for row in _rows(call):
            by_user.setdefault(row["user_id"], {})[row["item_id"]] = row["rating"]
        for user, ratings in by_user.items():
            self._note_late(user, reply)
            if reply.ok or reply.open:
                self.histories.rated(user, ratings, reply.began, reply.ended, known=reply.ok)

    def _taken_back(self, user: str, item: str, reply: Reply) -> None:
        self._note_late(user, reply)
        if reply.status == 404:
            self.report.checked(READ)
            if item in self.histories.surely_rated(user, reply.began):
                self.report.violated(READ, f"user {user} has no rating of item {item} to take back")
        elif reply.ok or reply.open:
            self.histories.rated(user, {item: None}, reply.began, reply.ended, known=reply.ok)

    def _forgotten(self, user: str, reply: Reply) -> None:
        self._note_late(user, reply)
        if reply.ok or reply.open:
            self.histories.forgot(user, reply.began, reply.ended, known=reply.ok)
            self.documents.deleted(f"/users/{user}/attributes", reply.ended, known=reply.ok)
        if reply.ok:
            self.receipts[reply.body["receipt"]] = user

    def _read(self, user: str, replica: int, reply: Reply) -> None:
        if reply.degraded or not (reply.ok or reply.status == 404):
            return
        self.report.checked(READ)
        rows = reply.body["ratings"] if reply.ok else []
        found = {row["item_id"]: row["rating"] for row in rows}
        for wrong in self.histories.found(user, found, reply.began):
            self.report.violated(READ, f"replica {replica}: {wrong}")
        # Of a new history no rating has any.
        known = [row for row in rows if row["rating"] in self.histories.sent[user]]
        self.report.checked(TOLD, len(known))
        for row in known:
            if row.get("context") != context_of(row["rating"]):
                self.report.violated(TOLD, f"replica {replica}, user {user}: {row}")

    def _recommended(self, user: str, reply: Reply) -> None:
        if reply.ok and not reply.degraded:
            self.report.checked(UNSEEN)
            seen = self.histories.surely_rated(user, reply.began)
            if again := seen & {each["item_id"] for each in reply.body["items"]}:
                self.report.violated(UNSEEN, f"user {user} is recommended {sorted(again)}, already rated")

    def _listed(self, reply: Reply) -> None:
        if not reply.ok or reply.degraded:
            return
        self.report.checked(HIDDEN)
        for item in [each["item_id"] for each in reply.body["items"]]:
            path = f"/items/{item}"
            surely = self.documents.surely(path, reply.began)
            # One that was rated and never described has no title either.
            if surely.get("hidden") or (path in self.documents.gone and surely.get("title", "") is None):
                self.report.violated(HIDDEN, f"item {item} is in it, of which is known: {surely}")

    def _document(self, call: Call, reply: Reply) -> None:
        documents, path = self.documents, call.route
        if call.method in _WRITES:
            documents.written(path, reply.ended)
        if call.method in _WRITES and (reply.ok or reply.open):
            wrote = partial(documents.wrote, path, ended=reply.ended, known=reply.ok)
            if call.method == "DELETE":
                documents.deleted(path, reply.ended, known=reply.ok)
            elif call.method == "PUT":
                wrote({**dict.fromkeys(documents.fields[path]), **_fields(call.body)})
            else:
                wrote({**dict.fromkeys(call.body), **_fields(call.body)})
        elif (reply.ok or (reply.status == 404 and call.method != "PUT")) and not reply.degraded:
            self.report.checked(DOCUMENT)
            for wrong in documents.found(path, _fields(reply.body) if reply.ok else {}, reply.began):
                self.report.violated(DOCUMENT, f"call {call.number} at replica {call.replica}: {wrong}")


def _rows(call: Call) -> list[Any]:
    return call.body if isinstance(call.body, list) else [call.body]


def _fields(document: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the fields of a document as text: of arms what was said of them, not what came of them."""
    document = document.get("attributes", document)
    if arms := document.get("arms"):
        document = {**document, "arms": [[arm["name"], arm["share"], arm["scenario"]] for arm in arms]}
    return {name: json.dumps(value) for name, value in document.items() if value not in (None, False)}


def context_of(value: float) -> dict[str, float] | None:
    """Return what is told with a rating of this value: with one in three a number, which it decides."""
    ticks = round(value / TICK)
    # Exact as a float32.
    return {CONTEXT_FIELD.name: ticks % 4096} if ticks % 3 == 0 else None
