"""Pauses before another try: they grow, spread, and end where trying is in vain."""

import random
import signal

from processes import backoff
from processes.backoff import Backoff, FailureRecord


def test_delays_double_up_to_a_limit() -> None:
    delays_of = Backoff(1.0, 8.0, random.Random(0))
    delays = [delays_of.next_s() for _ in range(100)]
    for delay, whole in zip(delays, [1, 2, 4, *[8] * 97], strict=True):
        assert whole / 2 <= delay <= whole
    delays_of.reset()
    assert delays_of.next_s() <= 1.0


def test_pauses_grow_for_a_part_that_does_not_last_and_only_for_it() -> None:
    record = FailureRecord()
    pauses = [record.ended(now, -signal.SIGKILL, now - 0.1) for now in range(1, 10)]
    assert None not in pauses
    assert pauses == sorted(pauses, key=float)  # type: ignore[arg-type] # none is None
    assert pauses[0] == backoff.FIRST_PAUSE_S
    assert pauses[-1] == backoff.MAX_PAUSE_S
    assert record.ended(100.0, -signal.SIGKILL, 90.0) == backoff.FIRST_PAUSE_S


def test_only_failures_in_a_short_time_end_a_part_for_good() -> None:
    record = FailureRecord()
    assert all(record.ended(now * 20.0, 1, now * 20.0 - 5) is not None for now in range(50))
    assert all(record.ended(2000.0 + now, -signal.SIGKILL, 1999.0) is not None for now in range(50))
    assert [record.ended(3000.0 + now, 1, None) is None for now in range(5)] == [False] * 4 + [True]
