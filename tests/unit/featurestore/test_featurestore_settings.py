"""Settings: scales, and addresses of which no secret is shown."""

import pytest

from factors import Scale
from featurestore.settings import StoreSettings, format_scale, parse_scale, redacted
from processes.settings import SettingsError, load


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("1:5", Scale(1, 5)),
        ("0.5:5:0.5", Scale(0.5, 5, 0.5)),
        ("-10:10", Scale(-10, 10)),
        ("0:1:0.1", Scale(0, 1, 0.1)),
        ("0:1e-6", Scale(0, 1e-6)),
        ("1e8:100000101", Scale(1e8, 1e8 + 101)),
    ],
)
def test_scales_are_read_and_written(text: str, scale: Scale) -> None:
    assert parse_scale(text) == scale
    assert parse_scale(format_scale(scale)) == scale


def test_a_password_is_not_shown() -> None:
    url = "redis://user:hunter2@store:6379/0"
    assert redacted(url) == "redis://user:***@store:6379/0"
    assert redacted("redis://store:6379") == "redis://store:6379"
    assert "hunter2" not in repr(StoreSettings(url=url))


@pytest.mark.parametrize(
    "url",
    [
        *(
            "redis://a..b",
            f"redis://{'a' * 64}.b",
            "redis://one:0",
            "redis://one:65536",
            "redis://one:\uff16",
        ),
        *("redis://one:6379/zero", "redis://[::1", "redis://[one]:6379", "redis://::1", "redis://one,two"),
        *("unix://", "unix://store.sock", "http://user:hunter2@store", "redis+sentinel://one:26379"),
        *(
            "redis+sentinel://one:0/foldin",
            "redis+sentinel://a..b/foldin",
            "redis+sentinel://one,,two/foldin",
        ),
        # The end of the password is the host of no one.
        "redis://user:hunter2/more@one",
    ],
)
def test_an_address_that_leads_nowhere_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="FOLDIN_REDIS_URL must be an address like") as caught:
        load(StoreSettings, (), {"FOLDIN_REDIS_URL": url})
    assert "hunter2" not in str(caught.value)
