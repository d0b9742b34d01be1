# Made by `make clients` of the service's description: change that, not this.
"""The types of the API: what is sent, and what is answered."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType


class Accepted(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How many ratings or events were stored, and the generation that was live then (null before the
    first).
    """

    accepted: int
    generation: int | None


class AccessOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The role of the key that asks, `none` without one that is known; `keys`: whether calls need one."""

    role: str
    keys: bool


class Activated(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is live now. `served`: whether every worker answers from it already."""

    generation: int
    epoch: int
    held: bool
    served: bool


class Alive(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The process runs and its event loop turns."""

    alive: bool


class AnonymousEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event, other than a rating, of someone who is not stored."""

    item_id: str | int
    type: str
    timestamp: float | str | None = None


class AnonymousRating(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A rating of someone who is not stored."""

    item_id: str | int
    rating: float
    timestamp: float | str | None = None
    context: dict[str, float | str | bool | None] | None = None


class Arm(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A share of the users, and the scenario that they get."""

    name: str
    share: float
    scenario: str


class Difference(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """By how much a figure is above that of the first arm, with a 95 % interval."""

    value: float
    low: float
    high: float
    excludes_zero: bool


class Estimate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


class ArmIn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A `share` of the users, from 0 to 1, and the scenario that they get."""

    name: str
    share: float
    scenario: str


class AttributesOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The attributes of a user. Times are ISO 8601, in UTC."""

    user_id: str
    attributes: dict[str, Any]


class UserRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A user and the attributes."""

    user_id: str
    attributes: dict[str, Any]


class Average(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an average user would give an item: with 90 % a rating from `low` to `high`, around
    `rating`. Each rating of the item narrows it.
    """

    rating: float
    low: float
    high: float


class Backup(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a backup has: `events` ratings and other events. `at`: when it ended, in seconds since
    1970.
    """

    at: float
    events: int


class Boost(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Multiplies the scores of the items that pass a filter."""

    filter: dict[str, Any]
    multiply: float


class ContextFieldBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A field of the contexts of ratings. `categories`: those that it has, where it is one of
    categories.
    """

    kind: str
    categories: list[str] = msgspec.field(default_factory=list)


class Deleted(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How many ratings were taken back."""

    deleted: int
    generation: int | None


class DeletedAttributes(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of how many users attributes were deleted."""

    deleted: int


class DeletedItem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How many items were deleted. `receipt`: of the ratings, which are taken back one by one;
    `archive` is `pending` until then.
    """

    deleted: int
    receipt: str | None = None
    archive: str | None = None


class Diversity(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Maximal marginal relevance: `lambda` 1 is the order of the scores, 0 looks at differences alone."""

    lambda_: float = msgspec.field(name="lambda")


class Ended(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`scenario`: that of calls that ask for none from now on. `followed`: whether every worker knows."""

    ended: str
    followed: bool
    scenario: str | None = None


class EventIn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event as it is sent. `value`: any number, 1 without it; of type `rating` the rating; of a
    type that means `shown` the generation that has shown it, 0 for none, and the live one without
    it. `timestamp`: seconds since 1970; without it, the moment of arrival. `recommendation_id`: of
    the answer that showed the item. `context`: of a rating.
    """

    user_id: str | int
    item_id: str | int
    type: str
    value: float | None = None
    timestamp: float | str | None = None
    recommendation_id: str | None = None
    context: dict[str, float | str | bool | None] | None = None


class EventOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of a user. `timestamp` is null where it is not known."""

    item_id: str
    type: str
    value: float
    timestamp: float | None


class EventType(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One type. `meaning`: the user wanted the item (`positive`), or did not (`negative`), or was only
    `shown` it; `weight`: how much an event counts in a ranking head, where a rating counts 1, None
    where a fit is to choose it; `consumed`: whether the item counts as seen. A `retired` type takes
    no events any more.
    """

    name: str
    code: int
    meaning: str
    weight: float | None = None
    consumed: bool = False
    retired: bool = False


class Part(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """By how much one rating of the user moved the score."""

    item_id: str
    rating: float
    contribution: float


class Replica(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process that is at work. `at`: when it told of itself, seconds since 1970. `busy`: what a
    trainer is at; `failed`: why its last fit did not go live, at `failed_at`; `wrong`: a sentence
    for each alert whose condition it finds in itself.
    """

    process: str
    host: str
    generation: int
    requests_per_s: float
    in_flight: int
    resident_bytes: int
    busy: str
    at: float
    failed: str = ""
    failed_at: float = 0.0
    wrong: dict[str, str] = msgspec.field(default_factory=dict)


class ItemIn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of an item besides its ratings. It is not hidden where that is left out."""

    title: str = ""
    categories: list[str] = msgspec.field(default_factory=list)
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    hidden: bool | UnsetType = UNSET
    available_from: float | str | None = None
    available_until: float | str | None = None
    image: str | None = None


class ItemLine(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An item of an export. It always says whether it is hidden: a row of POST /items that does not
    leaves that as it is.
    """

    item_id: str
    title: str = ""
    categories: list[str] = msgspec.field(default_factory=list)
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    available_from: str | None = None
    available_until: str | None = None
    image: str | None = None
    hidden: bool


class Pin(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An item at a position of the list, from 1 on."""

    item_id: str | int
    position: int


class ItemListed(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An item of a page. Where all known ones are asked for, and a generation is live, `ratings` and
    `mean` as it knows them; `positives`: its positive events, where the generation has learned any
    of any item.
    """

    item_id: str
    title: str = ""
    categories: list[str] = msgspec.field(default_factory=list)
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    hidden: bool = False
    available_from: str | None = None
    available_until: str | None = None
    image: str | None = None
    ratings: int | None = None
    mean: float | None = None
    positives: int | None = None


class Prediction(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One score: the expected rating, its standard deviation and what it rests on."""

    rating: float
    std: float
    basis: str


class ItemPatch(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Changes of an item: what is left out stays, an attribute that is null goes."""

    title: str | UnsetType = UNSET
    categories: list[str] | UnsetType = UNSET
    attributes: dict[str, Any] | UnsetType = UNSET
    hidden: bool | UnsetType = UNSET
    available_from: float | str | UnsetType | None = UNSET
    available_until: float | str | UnsetType | None = UNSET
    image: str | UnsetType | None = UNSET


class ItemRowIn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The same with the item's id, in a call with several. Where `hidden` is left out an item that is
    hidden stays so. `undelete`: whether one that was deleted comes back.
    """

    title: str = ""
    categories: list[str] = msgspec.field(default_factory=list)
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    hidden: bool | UnsetType = UNSET
    available_from: float | str | None = None
    available_until: float | str | None = None
    image: str | None = None
    item_id: str | int
    undelete: bool = False


class ItemShown(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An item of the catalogue. Times are ISO 8601, in UTC."""

    item_id: str
    title: str = ""
    categories: list[str] = msgspec.field(default_factory=list)
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    hidden: bool = False
    available_from: str | None = None
    available_until: str | None = None
    image: str | None = None


class KeyIn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key that is to be made."""

    name: str
    role: Literal["metrics", "operate", "rate", "read"]


class KeyMade(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key that was made. `key` is shown this once."""

    name: str
    role: str
    key: str


class KeyOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key, without itself. `created`: seconds since 1970."""

    name: str
    role: str
    created: float


class KeyRemoved(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How many keys of the name there were."""

    removed: int


class New(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An item and since when it may be shown, in seconds since 1970; null where that was not said."""

    item_id: str
    available_from: float | None
    title: str | None = None
    image: str | None = None
    categories: list[str] | None = None
    attributes: dict[str, Any] | None = None


class Loved(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An item and the lower 95 % bound of what an average user would give it; by events, the weight of
    its positive ones, and how many these are.
    """

    item_id: str
    score: float
    ratings: int
    mean: float | None
    positives: int | None = None
    title: str | None = None
    image: str | None = None
    categories: list[str] | None = None
    attributes: dict[str, Any] | None = None


class NearUserOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A user, how like the taste is (1: the same, 0: none in common), and how many ratings say so;
    where the generation has learned none, how many `events`.
    """

    user_id: str
    similarity: float
    ratings: int
    events: int | None = None


class Neighbour(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An item and how near it is: 1 is the same taste or content, 0 none in common."""

    item_id: str
    score: float
    title: str | None = None
    image: str | None = None
    categories: list[str] | None = None
    attributes: dict[str, Any] | None = None


class OnePrediction(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer of GET /predict. `distribution`: probability of each step of the scale, lowest first.
    `degraded`: the store is away, and the answer may lack ratings that were acknowledged.
    """

    rating: float
    std: float
    basis: str
    generation: int
    distribution: list[float] | None = None
    degraded: bool = False


class ProblemOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong, by RFC 9457. `code` is stable; `field` and `row` (from 0) tell where the input
    is wrong.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    field: str | None = None
    row: int | None = None


class RatingIn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One rating as it is sent. `timestamp`: seconds since 1970, or ISO 8601; without it, the moment
    of arrival. `context`: under which circumstances it was given.
    """

    user_id: str | int
    item_id: str | int
    rating: float
    timestamp: float | str | None = None
    context: dict[str, float | str | bool | None] | None = None


class RatingLine(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A rating as POST /ratings takes it."""

    user_id: str
    item_id: str
    rating: float
    timestamp: float | None = None
    context: dict[str, float | str] | None = None


class RatingOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One rating of a user. `timestamp` is null where it is not known. `context`: as it was given,
    numbers with the digits of a float32; not there where none was.
    """

    item_id: str
    rating: float
    timestamp: float | None
    context: dict[str, float | str] | UnsetType = UNSET


class Ready(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A generation is live here. `degraded`: the store does not answer, and reads rest on copies."""

    ready: bool
    generation: int
    epoch: int
    degraded: bool = False


class Reason(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An item that the user chose or rated, and by how much that moved what ranks another."""

    title: str | None = None
    image: str | None = None
    categories: list[str] | None = None
    attributes: dict[str, Any] | None = None
    item_id: str
    contribution: float


class Receipt(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Proof of a request to be forgotten, or to take the ratings of an item back. `archive` is
    `erased` once the trainer has erased it there too; of the ratings of an item it becomes
    `taken_back`, or `failed` where their history was replaced before.
    """

    receipt: str
    archive: str
    user_id: str | None = None
    ratings: int | None = None
    detail: str | None = None


class RelevancePart(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """By how much having chosen one item, by a rating of whatever value or by another event, moved the
    relevance.
    """

    item_id: str
    contribution: float


class Rising(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An item and how much it is rated of late, each rating counted half for each week since it was
    given: 1 is as much as the first item of the list, .5 half as much.
    """

    item_id: str
    score: float
    title: str | None = None
    image: str | None = None
    categories: list[str] | None = None
    attributes: dict[str, Any] | None = None


class ScaleIn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A scale: its low end, its high end, and the step between its values where all ratings keep one."""

    low: float
    high: float
    step: float | None = None


class ScaleOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The scale of the ratings. `served`: whether every worker answers by it already."""

    low: float
    high: float
    step: float | None
    served: bool


class ScenarioDeleted(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How many were deleted."""

    deleted: int


class ScenarioNames(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The names of all scenarios, in order."""

    scenarios: list[str]


class SettingOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One setting as it is in force. `name`: its variable, or its flag; a secret says only that it is
    set.
    """

    name: str
    value: str
    default: str
    help: str


class WorkerOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One worker process of this host."""

    worker: int
    generation: int
    epoch: int
    in_flight: int
    resident_bytes: int
    age_s: float


class StoreReplica(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A replica, as its primary sees it. `behind_bytes`: of what the primary wrote; `silent_s`: since
    when it has said nothing.
    """

    address: str
    online: bool
    behind_bytes: int
    silent_s: int = 0


class Stored(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How many items were taken. `still_deleted`: how many of them were deleted before, and stay so."""

    accepted: int
    still_deleted: int = 0


class StoredUsers(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of how many users attributes were stored."""

    accepted: int


class TrainBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A history: three parallel lists, one event a position, in time order. Rows count from 0; ids may
    be text too.
    """

    nb_users: int
    nb_items: int
    user_history: list[str | int]
    item_history: list[str | int]
    rating_history: list[float]
    variables_history: list[list[float]] | None = None
    replace: bool = False
    next_user: str | int | None = None
    next_item: str | int | None = None


class TrainedOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is live now. `served`: whether every worker answers from it already."""

    generation: int
    epoch: int
    ratings: int
    metrics: dict[str, float]
    served: bool


class TrainingOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a training has come. `receipt`: for GET /train/{receipt}; `since`: when it was asked
    for, in seconds since 1970. `waiting`: for a trainer; while it is `running`, `phase` is that of
    the fit that the trainer makes, `sweep` how many sweeps of it have ended. `generation`: what
    went live when it was `done`; `cause` and `detail`: why it `failed`.
    """

    receipt: str
    state: str
    since: float
    phase: str | None = None
    sweep: int | None = None
    generation: int | None = None
    cause: str | None = None
    detail: str | None = None


class TypeIn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A type as it is put. `weight`: how much an event counts where a rating counts 1; null: a fit
    chooses.
    """

    name: str
    meaning: Literal["negative", "positive", "shown"]
    weight: float | None = None
    consumed: bool = False


class UserRowIn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a user besides ratings."""

    user_id: str | int
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)


class UsersPage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Some of the users, in no order. `next`: where to go on; null at the end."""

    users: list[str]
    next: str | None


class Begun(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`followed`: whether every worker acts by it already."""

    name: str
    arms: list[Arm]
    began: float
    scenario: str | None = None
    followed: bool = False


class ExperimentOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An experiment. `began`: seconds since 1970."""

    name: str
    arms: list[Arm]
    began: float
    scenario: str | None = None


class ArmFigures(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of an arm. `users`: how many it has answered, to about a percent. `lists` that were
    answered, items `shown` in them, and of these the `positives`. The difference is to the first
    arm.
    """

    name: str
    share: float
    scenario: str
    users: int
    lists: int
    shown: int
    positives: int
    positive_rate: Estimate | None = None
    positive_rate_difference: Difference | None = None


class Feedback(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of a generation's lists: how many there were, items shown in them, of these the
    positives (a positive event within seven days), their share with a 95 % interval, and the share
    of its items that were shown at all, to about a percent.
    """

    lists: int
    shown: int
    positives: int
    positive_rate: Estimate | None
    coverage: float


class ExperimentBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`scenario`: the calls of GET /recommend that take part ask for this one; without it, those that
    ask for none.
    """

    arms: list[ArmIn]
    scenario: str | None = None


class AttributesPage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Users with attributes, in an order that stays. `next` is the cursor of the page behind, null at
    the end.
    """

    users: list[UserRow]
    next: str | None


class SchemaBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The types of attributes of items and of users, and the fields of the contexts of ratings."""

    items: dict[str, str] = msgspec.field(default_factory=dict)
    users: dict[str, str] = msgspec.field(default_factory=dict)
    context: dict[str, ContextFieldBody] = msgspec.field(default_factory=dict)


class EventsPage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Some of a user's events that are no ratings, the latest first. `total`: how many there are."""

    user_id: str
    total: int
    n: int
    offset: int
    events: list[EventOut]


class TypesOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All types by code, those that were retired too."""

    types: list[EventType]


class ItemListBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which part of a list, under which rules. `user_id`: whose items that were seen are left out;
    `scenario`: rules that are stored.
    """

    filter: dict[str, Any] | None = None
    exclude_items: list[str | int] | None = None
    candidate_items: list[str | int] | None = None
    boosts: list[Boost] | None = None
    diversity: Diversity | None = None
    per_category: int | None = None
    pinned: list[Pin] | None = None
    n: int | None = None
    exclude_seen: bool | list[str] | None = None
    include: str | list[str] | None = None
    offset: int = 0
    user_id: str | int | None = None
    scenario: str | None = None


class ListBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is wanted, and under which rules. `scenario`: rules that are stored, for those that the
    call does not have. `context`: that of the ratings that the list is made for.
    """

    filter: dict[str, Any] | None = None
    exclude_items: list[str | int] | None = None
    candidate_items: list[str | int] | None = None
    boosts: list[Boost] | None = None
    diversity: Diversity | None = None
    per_category: int | None = None
    pinned: list[Pin] | None = None
    n: int | None = None
    exclude_seen: bool | list[str] | None = None
    include: str | list[str] | None = None
    order: Literal["score", "rating"] | None = None
    explore: Literal["none", "thompson"] | None = None
    recency: float | None = None
    impressions: bool | None = None
    offset: int = 0
    seed: int | None = None
    scenario: str | None = None
    context: dict[str, float | str | bool | None] | None = None


class PopularBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The same of a list of the most loved items."""

    filter: dict[str, Any] | None = None
    exclude_items: list[str | int] | None = None
    candidate_items: list[str | int] | None = None
    boosts: list[Boost] | None = None
    diversity: Diversity | None = None
    per_category: int | None = None
    pinned: list[Pin] | None = None
    n: int | None = None
    exclude_seen: bool | list[str] | None = None
    include: str | list[str] | None = None
    offset: int = 0
    user_id: str | int | None = None
    scenario: str | None = None
    by: Literal["rating", "events"] | None = None


class RecommendBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Someone's ratings and other events, each in the order in which they were made, and what is
    wanted.
    """

    filter: dict[str, Any] | None = None
    exclude_items: list[str | int] | None = None
    candidate_items: list[str | int] | None = None
    boosts: list[Boost] | None = None
    diversity: Diversity | None = None
    per_category: int | None = None
    pinned: list[Pin] | None = None
    n: int | None = None
    exclude_seen: bool | list[str] | None = None
    include: str | list[str] | None = None
    order: Literal["score", "rating"] | None = None
    explore: Literal["none", "thompson"] | None = None
    recency: float | None = None
    impressions: bool | None = None
    offset: int = 0
    seed: int | None = None
    scenario: str | None = None
    context: dict[str, float | str | bool | None] | None = None
    ratings: list[AnonymousRating] = msgspec.field(default_factory=list)
    events: list[AnonymousEvent] = msgspec.field(default_factory=list)


class RuleFields(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a list for someone may have, and in which order. A scenario has the same fields."""

    filter: dict[str, Any] | None = None
    exclude_items: list[str | int] | None = None
    candidate_items: list[str | int] | None = None
    boosts: list[Boost] | None = None
    diversity: Diversity | None = None
    per_category: int | None = None
    pinned: list[Pin] | None = None
    n: int | None = None
    exclude_seen: bool | list[str] | None = None
    include: str | list[str] | None = None
    order: Literal["score", "rating"] | None = None
    explore: Literal["none", "thompson"] | None = None
    recency: float | None = None
    impressions: bool | None = None


class Scenario(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A scenario and its name."""

    filter: dict[str, Any] | None = None
    exclude_items: list[str | int] | None = None
    candidate_items: list[str | int] | None = None
    boosts: list[Boost] | None = None
    diversity: Diversity | None = None
    per_category: int | None = None
    pinned: list[Pin] | None = None
    n: int | None = None
    exclude_seen: bool | list[str] | None = None
    include: str | list[str] | None = None
    order: str | None = None
    explore: str | None = None
    recency: float | None = None
    impressions: bool | None = None
    name: str


class SimilarBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The same of a list of similar items."""

    filter: dict[str, Any] | None = None
    exclude_items: list[str | int] | None = None
    candidate_items: list[str | int] | None = None
    boosts: list[Boost] | None = None
    diversity: Diversity | None = None
    per_category: int | None = None
    pinned: list[Pin] | None = None
    n: int | None = None
    exclude_seen: bool | list[str] | None = None
    include: str | list[str] | None = None
    offset: int = 0
    user_id: str | int | None = None
    scenario: str | None = None
    by: Literal["behaviour", "content", "both"] | None = None


class ItemPage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Items in the order of their ids, or of their titles. `next` is the cursor of the page behind,
    null at the end; `total` counts all items of the catalogue, or all that were ever known, deleted
    ones too; where some were named, those of them that are there.
    """

    total: int
    items: list[ItemListed]
    next: str | None


class ItemOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the catalogue has of an item, and what the live generation knows of it. `expected`: from an
    unknown user; `distribution`: the probability of each step of the scale, lowest first.
    `average`: of an item that has ratings. `positives`: its positive events, where the generation
    has learned any of any item.
    """

    item_id: str
    title: str = ""
    categories: list[str] = msgspec.field(default_factory=list)
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    hidden: bool = False
    available_from: str | None = None
    available_until: str | None = None
    image: str | None = None
    ratings: int
    mean: float | None
    expected: Prediction
    generation: int
    average: Average | None = None
    distribution: list[float] | None = None
    positives: int | None = None


class Predictions(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Predictions in the order in which they were asked."""

    generation: int
    predictions: list[Prediction]
    degraded: bool = False


class UserOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a user. `expected`: of an unknown item. `events`: all that were made or taken
    back, ratings and others.
    """

    user_id: str
    ratings: int
    mean: float | None
    events: int
    expected: Prediction
    generation: int
    degraded: bool = False


class KeysOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All keys, the oldest first. `unreadable`: so many are of a newer version."""

    keys: list[KeyOut]
    unreadable: int


class Latest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The latest items, the last first. `reason`: why there are none."""

    generation: int
    items: list[New]
    recommendation_id: str
    degraded: bool = False
    reason: str | None = None


class Popular(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The most loved items, best first, and what they are listed `by`: events, or rating where nothing
    is said. `reason`: why there are none.
    """

    generation: int
    items: list[Loved]
    recommendation_id: str
    by: str = "rating"
    degraded: bool = False
    reason: str | None = None


class NeighboursOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The users nearest to one, the nearest first. `among`: of how many they are the nearest.
    `reason`: why there are none.
    """

    user_id: str
    generation: int
    neighbours: list[NearUserOut]
    among: int
    reason: str | None = None
    degraded: bool = False


class Similar(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The nearest items, best first. `reason`: why there are none."""

    item_id: str
    generation: int
    items: list[Neighbour]
    recommendation_id: str
    degraded: bool = False
    reason: str | None = None


class RatingsPage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Some of a user's ratings, the latest first. `total`: how many there are."""

    user_id: str
    total: int
    n: int
    offset: int
    ratings: list[RatingOut]


class Recommended(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An item. `score`: what it is ranked by, made of `relevance`, how likely the user is to choose
    it, and the expected `rating`; ranked by rating alone, it is that, and there is no relevance. A
    boost is in the score alone. `basis`: what the rating rests on, as in GET /predict;
    `relevance_basis`: what the relevance does, in the same words, by events of the user and of the
    item in the place of ratings. `reasons`: what of the user's history did most for its place.
    """

    item_id: str
    score: float
    rating: float
    basis: str
    relevance: float | None = None
    relevance_basis: str | None = None
    reasons: list[Reason] | None = None
    title: str | None = None
    image: str | None = None
    categories: list[str] | None = None
    attributes: dict[str, Any] | None = None


class Relevance(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`base` plus all contributions, and the `rest` of those that `n` left out, is `value`, the
    relevance of GET /recommend; `basis` its `relevance_basis`.
    """

    value: float
    base: float
    parts: list[RelevancePart]
    basis: str
    rest: float | None = None


class Trending(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The items that are rated most of late, most first. `reason`: why there are none."""

    generation: int
    items: list[Rising]
    recommendation_id: str
    degraded: bool = False
    reason: str | None = None


class SettingsOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The settings of the worker that answers."""

    settings: list[SettingOut]


class Status(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the page shows. `rmse` is that of ratings predicted before they were learned, `recent_rmse`
    over about a minute. `scale`: low end, high end and step; one that is not `scale_decided` is
    what the first rating makes it. `known_events`: ratings and other events since the history
    began; `known_items`: items that have a row, in a fit or not yet. `backed_up`: when the last
    `foldin backup` ended, in seconds since 1970, with how many events; null for none. `refusing`:
    what has no room for ratings; null where they are taken. `lists`: what stands for the ranking
    head of a first fit, and until when; null where it is there.
    """

    store_up: bool
    generation: int
    epoch: int
    engine: str | None
    link: str | None
    rank: int | None
    created: float | None
    users: int
    items: int
    ratings: int
    scale: list[float | None]
    metrics: dict[str, float]
    requests: int
    predictions: int
    accepted_ratings: int
    ratings_per_s: float
    recent_rmse: float | None
    rmse: float | None
    stream_lag: int | None
    known_events: int | None
    known_items: int
    workers: list[WorkerOut]
    scale_decided: bool = True
    backed_up: Backup | None = None
    refusing: str | None = None
    lists: str | None = None


class StoreServer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A server that takes writes. `slots`: how many it has, 0 where the store is no cluster;
    `limit_bytes`: of its memory, 0 for none. Of one that is away, which does not `answer`, the rest
    is not known.
    """

    address: str
    slots: int = 0
    answers: bool = True
    used_bytes: int = 0
    limit_bytes: int = 0
    replicas: list[StoreReplica] = msgspec.field(default_factory=list)


class TypesIn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Types that are to take events, beside those that do."""

    types: list[TypeIn]


class ExperimentsOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Those that run. `default_scenario`: of calls that ask for none, as an experiment has left it."""

    experiments: list[ExperimentOut]
    default_scenario: str | None = None


class ExperimentFigures(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An experiment and what came of it so far."""

    name: str
    arms: list[ArmFigures]
    began: float
    scenario: str | None = None


class GenerationOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One generation. `created`: seconds since 1970."""

    generation: int
    epoch: int
    state: str
    live: bool
    created: float
    rank: int
    link: str
    engine: str
    n_users: int
    n_items: int
    n_ratings: int
    metrics: dict[str, float]
    feedback: Feedback | None = None


class Recommendations(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Items, best first. `order`: what ranked them; of a generation without a ranking head it is
    `rating`, also where `score` was asked for. `recommendation_id`: names this answer; to be sent
    back with events. `ignored`: ratings of the call whose item is not known. `reason`: why there is
    no item. `arms`: the user's arm by the name of the experiment that the list is of.
    """

    generation: int
    items: list[Recommended]
    order: str
    recommendation_id: str
    user_id: str | None = None
    ignored: int | None = None
    seed: int | None = None
    degraded: bool = False
    reason: str | None = None
    arms: dict[str, str] | None = None


class Explained(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`base` plus all contributions, and the `rest` of those that `n` left out, is `rating`, which is
    what GET /predict answers. `score`: what GET /recommend ranks the item by, of the rating and
    `relevance`, where the generation has a ranking head.
    """

    user_id: str
    item_id: str
    rating: float
    std: float
    basis: str
    base: float
    parts: list[Part]
    generation: int
    degraded: bool = False
    rest: float | None = None
    score: float | None = None
    relevance: Relevance | None = None


class HistoryOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Intervals of `step_s` seconds, the oldest first; null where no process has told of itself.

    `at`: their ends, seconds since 1970. `rmse`, `baseline_rmse`: of ratings that arrived, as
    predicted before they were learned, and as an unknown user would be told. `failures_per_s`,
    `turned_away_per_s`: answers of 5xx, and of 401, 403 and 429; `mistakes_per_s`: unexpected
    exceptions. `servers`: of the store, as a trainer has found them last.
    """

    step_s: float
    at: list[float]
    rmse: list[float | None]
    baseline_rmse: list[float | None]
    requests_per_s: list[float | None]
    failures_per_s: list[float | None]
    turned_away_per_s: list[float | None]
    mistakes_per_s: list[float | None]
    p50_s: list[float | None]
    p99_s: list[float | None]
    predictions_per_s: list[float | None]
    ratings_per_s: list[float | None]
    generation: list[int | None]
    lag: list[float | None]
    workers_bytes: list[float | None]
    store_bytes: list[float | None]
    trainer_bytes: list[float | None]
    replicas: list[Replica]
    servers: list[StoreServer] = msgspec.field(default_factory=list)


class GenerationsOut(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept, the newest first. `live` is 0 before the first; `held`: automatic refits wait."""

    live: int
    epoch: int
    held: bool
    generations: list[GenerationOut]
