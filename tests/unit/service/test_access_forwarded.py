"""Through a proxy on this machine others reach a service without keys: it refuses them until it has one."""

import pytest
from multidict import CIMultiDict

from featurestore.access import ApiKey, digest_of_secret, new_secret
from service.http.access import LEVELS, PUBLIC, READ, Access
from service.http.problems import Problem

HERE = {"Host": "127.0.0.1:8080"}


@pytest.mark.parametrize(
    "name", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP"]
)
def test_a_call_that_was_forwarded_needs_a_key(name: str) -> None:
    forwarded = CIMultiDict({**HERE, name: "for=203.0.113.9"})
    access = Access(loopback=True)
    for level in (READ, LEVELS["operate"]):
        with pytest.raises(Problem, match="foldin keys") as caught:
            access.admit(forwarded, level)
        assert caught.value.code == "unauthorized"
        assert access.admit(CIMultiDict(HERE), level) is None
    assert access.admit(forwarded, PUBLIC) is None
    # Where that was said, all may ask.
    assert Access(asks=False, loopback=True).admit(forwarded, READ) is None
    secret = new_secret()
    access.update({digest_of_secret(secret): ApiKey("shop", "read", 0.0)})
    with_key = CIMultiDict({**forwarded, "Authorization": f"Bearer {secret}"})
    assert access.admit(with_key, READ) is not None
