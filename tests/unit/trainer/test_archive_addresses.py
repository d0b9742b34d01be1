"""Where an archive may be: how a share is mounted."""

import pytest

from trainer.archive.storage.shares import problem_in

ROOT = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"


def mounted(kind: str, options: str, place: str = "/mnt/share") -> str:
    return f"{ROOT}\n90 22 0:50 / {place} rw,relatime shared:9 - {kind} host:/export rw,{options}\n"


@pytest.mark.parametrize(
    ("mounts", "told"),
    [
        (ROOT, None),
        (mounted("nfs4", "vers=4.2,hard,lookupcache=none"), None),
        (mounted("nfs", "vers=3,hard,noac"), None),
        (mounted("nfs4", "vers=4.2,hard"), "without lookupcache=none"),
        (mounted("nfs4", "soft,lookupcache=none"), "mount it hard"),
        (mounted("cifs", "vers=3.1"), "is cifs, of which it is not known"),
        (mounted("xfs", "attr2"), None),
        ("broken line\n" + mounted("fuse.sshfs", "user_id=0"), "is fuse.sshfs"),
    ],
)
def test_mounts(mounts: str, told: str | None) -> None:
    found = problem_in(mounts, "/mnt/share/archive/foldin")
    assert (found is None) == (told is None)
    assert told is None or told in str(found)
    assert problem_in(mounts, "/mnt/shared") is None
