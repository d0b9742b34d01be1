"""The address of an archive: what is taken for one, and that no message has a key that stands in it."""

import pytest

from processes.settings import SettingsError
from trainer.settings import TrainerSettings


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("s3://KEY:SECRET@bucket/a", "must have no key in it"),
        ("s3://bucket/a?endpoint=https://KEY:SECRET@host", "must have no key in it"),
        ("s3://bucket?secret_access_key=SECRET", "must have no option 'secret_access_key'"),
        ("s3://bucket?endpoint=KEY-SECRET-host", "must be like s3://"),
        ("s3://bucket/a#SECRET", "must be like s3://"),
    ],
)
def test_no_message_has_a_key(address: str, told: str) -> None:
    with pytest.raises(SettingsError, match="FOLDIN_ARCHIVE_DIR") as refused:
        TrainerSettings.load((), {"FOLDIN_ARCHIVE_DIR": address})
    assert told in str(refused.value)
    for secret in ("SECRET", "KEY"):
        assert secret not in str(refused.value)
