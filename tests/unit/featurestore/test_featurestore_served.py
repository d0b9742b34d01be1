"""Which beats of workers say that a generation is served."""

from featurestore.generations.manifest import Worker
from featurestore.generations.served import FRESH_BEAT_S, all_serve


def worker(generation: int, age_s: float) -> Worker:
    return Worker(id="w", epoch=1, generation=generation, age_s=age_s, pid=1)


def test_each_worker_that_is_alive_counts() -> None:
    assert all_serve([], {(1, 2)}, FRESH_BEAT_S)
    assert all_serve([worker(2, 0.1), worker(1, 9.0)], {(1, 2)}, FRESH_BEAT_S)
    assert not all_serve([worker(2, 0.1), worker(1, 0.1)], {(1, 2)}, FRESH_BEAT_S)
    assert all_serve([worker(2, 0.1), worker(1, 0.1)], {(1, 1), (1, 2)}, FRESH_BEAT_S)


def test_a_beat_from_before_the_call_says_nothing() -> None:
    assert not all_serve([worker(2, 0.5)], {(1, 2)}, 0.4)
    assert all_serve([worker(2, 0.3)], {(1, 2)}, 0.4)
