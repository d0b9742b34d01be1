"""Whose history is asked for together with the record."""

from featurestore.users import recent_raters
from featurestore.users.recent_raters import RecentRaters


def test_who_has_rated_is_told_once() -> None:
    raters = RecentRaters()
    assert raters.take([b"a"]) == []
    raters.add([b"a", b"b", b"a"])
    assert raters.take([b"c", b"a", b"a"]) == [b"a"]
    assert raters.take([b"a", b"b"]) == [b"b"]
    assert raters.take([b"a", b"b"]) == []


def test_neither_who_is_kept_nor_what_comes_at_once_grows_without_bound() -> None:
    raters, every = RecentRaters(), [b"%d" % number for number in range(recent_raters.KEPT + 3)]
    raters.add(every)
    assert raters.take(every[:3]) == []
    most = recent_raters.AT_ONCE
    assert raters.take(every[3:100]) == every[3 : 3 + most]
