"""Settings: scales, and addresses of which no secret is shown."""

import pytest

from factors import Scale
from featurestore.settings import StoreSettings, format_scale, parse_scale, redacted


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
