"""A wrong value of any setting is one clear line and exit code 2, no traceback and no start without it."""

from typing import Any

import pytest

from processes.settings import SettingsError, declarations, load
from tests.unit.test_docs_settings import settings_classes

NUMBERS = ("-1", "1_0", "\uff19", "nan", "many", "9" * 30)

# What is refused when it is read.
READ: dict[str, tuple[str, ...]] = {
    "FOLDIN_ACCESS": ("yes", "OPEN"),
    "FOLDIN_DURABILITY": ("maybe", "FSYNC"),
    "FOLDIN_ENGINE": ("als", "Variational"),
    "FOLDIN_ENVIRONMENT_PORT": (*NUMBERS, "65536"),
    "FOLDIN_ENVIRONMENT_SEED": NUMBERS,
    "FOLDIN_FIT_THREADS": (*NUMBERS, "0"),
    "FOLDIN_HOSTS": ("http://shop.example", "a/b", "*"),
    "FOLDIN_LOG_FORMAT": ("xml", "JSON"),
    "FOLDIN_LOG_LEVEL": ("info", "TRACE"),
    "FOLDIN_MAX_ITEMS": (*NUMBERS, "0", str(2**31)),
    "FOLDIN_NAMESPACE": ("a.b", "{a}", "a b", "a" * 65, "\uff41"),
    "FOLDIN_ORIGINS": ("shop.example", "https://shop.example/page", "*"),
    "FOLDIN_PARTITIONS": (*NUMBERS, "0", "4097"),
    "FOLDIN_PLAY_STEPS": (*NUMBERS, "0"),
    "FOLDIN_PORT": (*NUMBERS, "65536"),
    "FOLDIN_PROXIES": ("proxy", "10.0.0.0/33", "10.0.0.1/8", "::/129"),
    "FOLDIN_REDIS_URL": ("redis", "http://one", "redis://a..b", "redis://one:0", "redis+sentinel://one"),
    "FOLDIN_REFIT_EVENTS": (*NUMBERS, "0"),
    "FOLDIN_REFIT_GROWTH": NUMBERS,
    "FOLDIN_REFIT_SHARE": (*NUMBERS, "0", "101"),
    "FOLDIN_REFIT_SECONDS": (*NUMBERS, "0", "86401"),
    "FOLDIN_SCALE": ("5:1", "1", "1:5:0.3", "1:inf", "\uff11:5", "1_0:20"),
    "FOLDIN_STORE_TIMEOUT_S": (*NUMBERS, "0", "61"),
    "FOLDIN_STREAM_LIMIT": (*NUMBERS, "0"),
    "FOLDIN_TRACES_URL": ("collector:4318", "ftp://one"),
    "FOLDIN_TRAINER_ADDRESS": ("9108", "one:0", "one:65536", "one:\uff19", "[::1:9", "::1:9", "a..b:9"),
    "FOLDIN_TRASH_BYTES": NUMBERS,
    "FOLDIN_TRASH_DAYS": (*NUMBERS, "36501"),
    "FOLDIN_WORKERS": (*NUMBERS, "0", "257"),
    "FOLDIN_ARCHIVE_DIR": ("\udcff", "s3://", "s3://key:word@bucket/a", "s3://bucket?endpoint=host", "s3://bucket?key=1"),
    "FOLDIN_FITS_DIR": ("\udcff",),
    "FOLDIN_LINGER_S": (*NUMBERS, "0", "61"),
}  # fmt: skip


def readers(variable: str) -> list[type[Any]]:
    """The settings classes that read a variable."""
    return [
        cls for cls in settings_classes() if any(each.variable == variable for _, each in declarations(cls))
    ]


@pytest.mark.parametrize("variable", READ)
def test_a_value_that_is_read_wrong_is_one_line(variable: str) -> None:
    for cls in readers(variable):
        for value in READ[variable]:
            with pytest.raises(SettingsError) as caught:
                load(cls, (), {variable: value})
            told = [problem for problem in caught.value.problems if problem.startswith(f"{variable} ")]
            assert len(told) == 1, caught.value.problems
            assert told[0].isprintable()
            assert "must" in told[0]
