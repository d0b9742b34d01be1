"""The check of a request, with values: keys, roles, pages of other origins, names of the service."""

import ipaddress

import pytest
from multidict import CIMultiDict

from featurestore.access import ROLES, ApiKey, StoredKeys, digest_of_secret, new_secret
from service.http.access import LEVELS, PUBLIC, READ, UNKNOWN, Access
from service.http.audit import Audit
from service.http.problems import Problem
from service.routes import ROUTES

SECRETS: dict[str, str] = {role: new_secret() for role in ROLES}
STORED: StoredKeys = {digest_of_secret(SECRETS[role]): ApiKey(f"the-{role}", role, 0.0) for role in ROLES}
OWN = {"Host": "foldin.example"}


def with_keys(**more: object) -> Access:
    access = Access(loopback=False, **more)  # type: ignore[arg-type]  # as the test says
    access.update(STORED)
    return access


def outcome(access: Access, headers: dict[str, str], level: int = READ) -> str:
    """The code of the refusal, or `ok`."""
    try:
        access.admit(CIMultiDict(headers), level)
    except Problem as problem:
        return problem.code
    return "ok"


def bearer(role: str) -> dict[str, str]:
    return {**OWN, "Authorization": f"Bearer {SECRETS[role]}"}


def test_what_is_no_key_is_refused_and_what_is_public_needs_none() -> None:
    access = with_keys()
    good = SECRETS["read"]
    for headers in (
        {},
        {"Authorization": good},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {good}"},
        {"Authorization": f"Bearer {good[:-1]}"},
        {"Authorization": f"Bearer {good} {good}"},
        {"Authorization": f"Bearer {digest_of_secret(good)}"},
        {"Authorization": "Bearer \udcff"},
        {"X-API-Key": ""},
        {"X-API-Key": f"Bearer {good}"},
        {"Cookie": f"key={good}"},
    ):
        assert outcome(access, {**OWN, **headers}) == "unauthorized", headers
        assert outcome(access, {**OWN, **headers}, PUBLIC) == "ok"
        assert access.name_of(CIMultiDict(headers)) == UNKNOWN
    # A proxy's own use of Authorization leaves the other header.
    assert outcome(access, {**OWN, "Authorization": "Basic eA==", "X-API-Key": good}) == "ok"
    assert outcome(access, {**OWN, "Authorization": f"bearer  {good}"}) == "ok"
    assert access.name_of(CIMultiDict(bearer("rate"))) == "the-rate"


ORIGINS = [
    ({"Origin": "http://foldin.example"}, "ok"),
    ({"Origin": "https://foldin.example"}, "ok"),
    ({"Origin": "https://shop.example"}, "ok"),
    ({"Origin": "https://evil.example"}, "cross_site"),
    ({"Origin": "https://foldin.example:444"}, "cross_site"),
    ({"Origin": "null"}, "cross_site"),
    ({"Sec-Fetch-Site": "same-origin"}, "ok"),
    ({"Sec-Fetch-Site": "cross-site"}, "cross_site"),
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, "cross_site"),
    ({"Sec-Fetch-Site": "cross-site", "Origin": "https://shop.example"}, "ok"),
]


@pytest.mark.parametrize(("headers", "expected"), ORIGINS)
@pytest.mark.parametrize("level", LEVELS.values())
def test_a_page_of_another_origin_is_refused(headers: dict[str, str], expected: str, level: int) -> None:
    access = with_keys(origins=["https://shop.example"])
    link = level == PUBLIC and headers.get("Sec-Fetch-Mode") == "navigate"
    assert outcome(access, {**bearer("operate"), **headers}, level) == ("ok" if link else expected)


LOCAL = ("localhost", "LOCALHOST:8080", "127.0.0.1", "127.1.2.3:80", "[::1]", "[::1]:8080")
FOREIGN = ("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "", ":80")
ADDRESSES = ("10.0.0.7:8080", "[fe80::1]:8080", "8.8.8.8")


def test_open_on_loopback_it_answers_to_names_of_this_machine_alone() -> None:
    access = Access(loopback=True, hosts=["foldin.test", "here:81"])
    for _ in range(2):
        for host in (*LOCAL, "foldin.test", "Foldin.Test:9", "here:81"):
            assert outcome(access, {"Host": host}) == "ok", host
        for host in (*FOREIGN, *ADDRESSES, "here:82", "here"):
            assert outcome(access, {"Host": host}) == "cross_site", host
            assert outcome(access, {"Host": host}, PUBLIC) == "cross_site", host


def test_what_changes_more_than_ratings_needs_to_operate_and_few_are_public() -> None:
    needs = {role: {(each.method, each.path) for each in ROUTES if each.needs == role} for role in LEVELS}
    assert {path for _, path in needs["public"]} == {
        *("/livez", "/readyz", "/access", "/", "/docs", "/openapi.json"),
        *("/static/{name}", "/static/{folder}/{name}", "/manual", "/manual/{page}"),
    }
    # What Prometheus holds opens nothing that names a user.
    assert needs["metrics"] == {("GET", "/metrics"), ("GET", "/status")}
    assert needs["rate"] == {
        *(("POST", "/ratings"), ("DELETE", "/ratings/{user_id}/{item_id}")),
        *(("POST", "/events"), ("DELETE", "/events/{user_id}/{item_id}/{type}")),
    }
    asked_by_post = {"/predict", "/recommend", "/recommend/{user_id}", "/similar/{item_id}"}
    asked_by_post |= {"/popular", "/trending", "/latest"}
    assert {pair for pair in needs["read"] if pair[0] != "GET"} == {("POST", path) for path in asked_by_post}
    assert {pair for pair in needs["operate"] if pair[0] == "GET"} == {("GET", "/settings"), ("GET", "/keys")}


@pytest.mark.parametrize(
    "name", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP"]
)
def test_a_call_that_a_proxy_on_this_machine_forwarded_needs_a_key(name: str) -> None:
    here = {"Host": "127.0.0.1:8080"}
    forwarded = {**here, name: "for=203.0.113.9"}
    access = Access(loopback=True)
    for level in (READ, LEVELS["operate"]):
        with pytest.raises(Problem, match="foldin keys"):
            access.admit(CIMultiDict(forwarded), level)
        with pytest.raises(Problem, match="foldin keys"):
            access.admit(CIMultiDict(here), level, old_http=True)
        assert outcome(access, forwarded, level) == "unauthorized"
        assert outcome(access, here, level) == "ok"
    assert outcome(access, forwarded, PUBLIC) == "ok"
    # Where that was said, all may ask.
    assert outcome(Access(asks=False, loopback=True), forwarded) == "ok"
    access.update(STORED)
    assert outcome(access, {**bearer("read"), **forwarded}) == "ok"


FORWARDED = [
    ("10.0.0.2", "203.0.113.9", "203.0.113.9"),
    ("10.0.0.2", "6.6.6.6, 203.0.113.9", "203.0.113.9"),
    ("10.0.0.2", "6.6.6.6, 203.0.113.9, 10.0.0.3", "203.0.113.9"),
    ("10.0.0.2", "made up", "10.0.0.2"),
    ("10.0.0.2", "::1%x key=operator status=200", "10.0.0.2"),
    ("10.0.0.2", "", "10.0.0.2"),
    ("203.0.113.7", "6.6.6.6", "203.0.113.7"),
]


@pytest.mark.parametrize(("peer", "forwarded", "client"), FORWARDED)
def test_only_a_trusted_proxy_is_believed(peer: str, forwarded: str, client: str) -> None:
    audit = Audit((), [ipaddress.ip_network("10.0.0.0/8")])
    assert audit.client_of(peer, [forwarded]) == client
    assert Audit(()).client_of(peer, [forwarded]) == peer
