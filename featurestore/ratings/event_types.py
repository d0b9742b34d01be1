"""Which types of events there are beside ratings, what they mean and how much they weigh.

Invariant: a code is given to a name once and means the same for ever, for histories and archives have it.
The types stand in the store, not in settings: so every process reads the same ones, and none can start with a
code that means something else to the others.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from factors import Meaning
from featurestore.codecs import MAX_TYPE_CODE
from featurestore.errors import StoreRefused

# Grows when an older version could not read what is stored.
_FORMAT = 1


# The type of a rating: code 0, and no type of the store.
RATING = "rating"


class EventType(msgspec.Struct, frozen=True):
    """One type. `meaning`: the user wanted the item (`positive`), or did not (`negative`), or was only
    `shown` it; `weight`: how much an event counts in a ranking head, where a rating counts 1, None where a
    fit is to choose it; `consumed`: whether the item counts as seen. A `retired` type takes no events any
    more.
    """

    name: str
    code: int
    meaning: Meaning
    weight: float | None = None
    consumed: bool = False
    retired: bool = False


class NewType(msgspec.Struct, frozen=True):
    """A type as it is asked for; its code follows from what there is."""

    name: str
    meaning: Meaning
    weight: float | None = None
    consumed: bool = False


class _Document(msgspec.Struct, frozen=True):
    format: int
    types: list[EventType]


# The types of a store in which none were put. Never to be changed: their codes are in stored data.
DEFAULT_TYPES = (
    EventType("view", 1, "positive"),
    EventType("click", 2, "positive"),
    EventType("like", 3, "positive", consumed=True),
    EventType("purchase", 4, "positive", consumed=True),
    EventType("skip", 5, "negative", consumed=True),
    EventType("dislike", 6, "negative", consumed=True),
    EventType("impression", 7, "shown"),
)


def with_new(before: Sequence[EventType], wanted: Sequence[NewType]) -> tuple[EventType, ...]:
    """Return the types by code after `wanted` were put among those `before`: what is retired comes back with
    its code. Raises `StoreRefused` for another meaning, and for too many.
    """
    found = {each.name: each for each in before}
    for each in wanted:
        old = found.get(each.name)
        if old is not None and old.meaning != each.meaning:
            why = f"{each.name} means {old.meaning}, and stored events keep that: choose another name"
            raise StoreRefused(why)
        code = old.code if old is not None else 1 + max((one.code for one in found.values()), default=0)
        if code > MAX_TYPE_CODE:
            raise StoreRefused(f"there may be {MAX_TYPE_CODE} types, retired ones included")
        found[each.name] = EventType(code=code, **msgspec.structs.asdict(each))
    return tuple(sorted(found.values(), key=lambda each: each.code))


def with_retired(before: Sequence[EventType], name: str) -> tuple[EventType, ...]:
    """Return the types of which that of this name takes no events any more. Raises `KeyError`."""
    if all(each.name != name for each in before):
        raise KeyError(name)
    replace = msgspec.structs.replace
    return tuple(replace(each, retired=True) if each.name == name else each for each in before)


def with_types(before: Sequence[EventType], more: Sequence[EventType]) -> tuple[EventType, ...]:
    """Return the types `before` with those of `more` that they lack. Raises `StoreRefused` where a code or a
    name means another type.
    """
    found = {each.code: each for each in before}
    for each in more:
        there = found.setdefault(each.code, each)
        if (there.name, there.meaning) != (each.name, each.meaning):
            raise StoreRefused(f"the event type {each.code} is {there.name} here, and {each.name} there")
    if len({each.name for each in found.values()}) < len(found):
        raise StoreRefused("an event type has another code here than there")
    return tuple(found[code] for code in sorted(found))


def codes_taken(types: Iterable[EventType]) -> dict[str, int]:
    """Return the codes of the types that take events, by name, with that of a rating."""
    return {RATING: 0} | {each.name: each.code for each in types if not each.retired}


def unknown_type(name: str, codes: Mapping[str, int]) -> str:
    """Say that there is no type of this name, and which there are."""
    return f"there is no event type {name[:50]!r}; there are {', '.join(codes)}"


def consumed_codes(types: Sequence[EventType]) -> list[int]:
    """Return the codes of the types after which an item counts as seen."""
    return [each.code for each in types if each.consumed]


def types_to_bytes(types: Sequence[EventType]) -> bytes:
    """Return types as they are stored."""
    return msgspec.json.encode(_Document(_FORMAT, list(types)))


def types_from_bytes(data: bytes) -> tuple[EventType, ...]:
    """Return the types that `types_to_bytes` wrote. Raises `ValueError` for anything else."""
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise ValueError(f"no event types: {exc}") from exc
    codes, names = {each.code for each in document.types}, {each.name for each in document.types}
    if document.format != _FORMAT:
        raise ValueError(
            f"the event types have format {document.format}, this version reads {_FORMAT}: "
            "use the version that wrote it"
        )
    if not len(codes) == len(names) == len(document.types) or codes - set(range(1, MAX_TYPE_CODE + 1)):
        raise ValueError("event types whose codes or names are not apart")
    return tuple(document.types)
