"""The settings that are in force, the keys of the API and the scale of the ratings, for those who operate it.

Invariant: no answer has a secret, but the one that a key is made by. The scale is decided once: after a 2xx
every worker holds ratings to it, and none answers by the prior of another.
"""

from dataclasses import fields, is_dataclass
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from featurestore.access import KEY_NAME, Role, new_secret, operating
from featurestore.errors import LastOperateKey, StoreRefused
from featurestore.generations.served import wait_for_scale
from featurestore.settings import format_scale, redacted, scale_of
from processes.settings import Setting
from service.context import CONTEXT
from service.http.audit import WHAT
from service.http.parsing import Body
from service.http.problems import Problem
from service.http.response import json_answer
from service.openapi import BODY, STORE, WRITES, Route, parameter, request_body
from service.training import SERVED_WITHIN_S

_MOST_BYTES = 1_000  # a name and a role, or three numbers
_NAME = {"type": "string", "pattern": f"^{KEY_NAME.pattern}$"}
HIDDEN = "is set"


class SettingOut(msgspec.Struct):
    """One setting as it is in force. `name`: its variable, or its flag; a secret says only that it is set."""

    name: str
    value: str
    default: str
    help: str


class SettingsOut(msgspec.Struct):
    """The settings of the worker that answers."""

    settings: list[SettingOut]


class KeyOut(msgspec.Struct):
    """A key, without itself. `created`: seconds since 1970."""

    name: str
    role: Role
    created: float


class KeysOut(msgspec.Struct):
    """All keys, the oldest first. `unreadable`: so many are of a newer version."""

    keys: list[KeyOut]
    unreadable: int


class KeyIn(msgspec.Struct, forbid_unknown_fields=True):
    """A key that is to be made."""

    name: Annotated[str, Meta(pattern=f"^{KEY_NAME.pattern}$")]
    role: Role


class KeyMade(msgspec.Struct):
    """A key that was made. `key` is shown this once."""

    name: str
    role: Role
    key: str


class KeyRemoved(msgspec.Struct):
    """How many keys of the name there were."""

    removed: int


class ScaleIn(msgspec.Struct, forbid_unknown_fields=True):
    """A scale: its low end, its high end, and the step between its values where all ratings keep one."""

    low: float
    high: float
    step: float | None = None


class ScaleOut(msgspec.Struct):
    """The scale of the ratings. `served`: whether every worker answers by it already."""

    low: float
    high: float
    step: float | None
    served: bool


_KEY: Body[KeyIn] = Body(KeyIn)
_SCALE: Body[ScaleIn] = Body(ScaleIn)


@Route("GET", "/settings", "Operations", SettingsOut, needs="operate", operation_id="settings")
async def get_settings(request: web.Request) -> web.StreamResponse:
    """The settings that are in force."""
    return json_answer(SettingsOut(in_force(request.app[CONTEXT].settings)))


def in_force(settings: Any) -> list[SettingOut]:
    """Return the settings of an object of a settings class, and of those nested in it."""
    found: list[SettingOut] = []
    for entry in fields(settings):
        value, declared = getattr(settings, entry.name), entry.metadata.get("setting")
        if is_dataclass(value):
            found += in_force(value)
        elif isinstance(declared, Setting):
            name = declared.variable or declared.flag or entry.name
            shown = _shown(value) if entry.repr else HIDDEN if value else ""
            found.append(SettingOut(name, shown, declared.shown, declared.help))
    return found


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    text = "" if value is None else str(value)
    # An address may have a password.
    return redacted(text) if "@" in text else text


@Route(
    "GET", "/keys", "Operations", KeysOut, ("data_damaged", *STORE), needs="operate", operation_id="getKeys"
)
async def get_keys(request: web.Request) -> web.StreamResponse:
    """The keys of the API, which themselves are not stored."""
    stored = list((await request.app[CONTEXT].store.access.load()).items())
    known = [key for _, key in stored if key is not None]
    unreadable = sum(key is None and bool(digest) for digest, key in stored)
    return json_answer(
        KeysOut(
            [
                KeyOut(key.name, key.role, key.created)
                for key in sorted(known, key=lambda key: (key.created, key.name))
            ],
            unreadable,
        )
    )


@Route(
    *("POST", "/keys", "Operations", KeyMade, (*BODY, "key_exists", "last_operate_key", *WRITES)),
    needs="operate",
    operation_id="addKey",
    body=request_body(KeyIn, {"name": "shop", "role": "rate"}),
)
async def post_key(request: web.Request) -> web.StreamResponse:
    """Make a key. Workers let it in within two seconds; from the first key on all calls need one. One of the
    role `operate` comes first, so that there is one that may make others.
    """
    context = request.app[CONTEXT]
    async with context.bodies.read(request, context.imports, limit_bytes=_MOST_BYTES) as received:
        wanted = _KEY.decode(received.raw)
    # The pattern's `$` lets a line break through.
    if KEY_NAME.fullmatch(wanted.name) is None:
        raise Problem("invalid_body", "name may not end with a line break", field="name")
    request[WHAT] = f"{wanted.role} {wanted.name}"
    access = context.store.access
    stored = await access.load()
    if any(key is not None and key.name == wanted.name for key in stored.values()):
        raise Problem("key_exists", "remove that one first, or choose another name", field="name")
    if wanted.role != "operate" and not operating(stored):
        detail = "make one with the role operate first, and keep it: no other key may make or remove keys"
        raise Problem("last_operate_key", detail, field="role")
    secret = new_secret()
    try:
        await access.add(secret, wanted.name, wanted.role)
    except StoreRefused as exc:
        raise Problem("invalid_body", str(exc)) from exc
    return json_answer(KeyMade(wanted.name, wanted.role, secret))


@Route(
    *(
        "DELETE",
        "/keys/{name}",
        "Operations",
        KeyRemoved,
        ("unknown_key", "not_found", "last_operate_key", *WRITES),
    ),
    needs="operate",
    operation_id="removeKey",
    parameters=(parameter("name", "path", _NAME, "Its name", required=True),),
)
async def delete_key(request: web.Request) -> web.StreamResponse:
    """Let the keys of a name in no longer, within two seconds. The last one of the role `operate` stays while
    there are others. Keys go on being asked for after the very last: `foldin keys add` makes another.
    """
    request[WHAT] = name = request.match_info["name"]
    try:
        removed = await request.app[CONTEXT].store.access.remove(name, operable=True)
    except LastOperateKey as exc:
        detail = f"only {name} has the role operate: make another key with it first, or remove the others"
        raise Problem("last_operate_key", detail) from exc
    if not removed:
        raise Problem("unknown_key", "no key has this name")
    return json_answer(KeyRemoved(removed))


@Route(
    *("PUT", "/scale", "Operations", ScaleOut),
    (*BODY, "scale_decided", "data_damaged", *WRITES),
    needs="operate",
    operation_id="decideScale",
    body=request_body(ScaleIn, {"low": 0.5, "high": 5, "step": 0.5}),
)
async def put_scale(request: web.Request) -> web.StreamResponse:
    """Decide on the scale of the ratings, before the first one is stored. May be repeated."""
    context = request.app[CONTEXT]
    async with context.bodies.read(request, None, limit_bytes=_MOST_BYTES) as (raw, _):
        body = _SCALE.decode(raw)
    try:
        wanted = scale_of(body.low, body.high, body.step)
    except ValueError as exc:
        raise Problem("invalid_body", f"the scale {exc}", field="low") from None
    request[WHAT] = f"scale={format_scale(wanted)}"
    store = context.store
    since = store.confirmation.begin()
    if not await store.scale.decide(wanted):
        detail = (
            f"it is {format_scale(store.scale.value)}, for good: for another one begin another store, with "
            "another FOLDIN_NAMESPACE, or `foldin up --data` on another folder"
        )
        raise Problem("scale_decided", detail)
    await store.confirmation.wait(since)
    served = await wait_for_scale(store.generations, store.scale, SERVED_WITHIN_S, here=context.follower)
    scale = store.scale.value
    return json_answer(ScaleOut(scale.low, scale.high, scale.step, served))
