"""A file that is imported again has nothing that a fit has not learned: it judges no fit by what it knows."""

from pathlib import Path

import numpy as np

from tests.support.event_tables import event_table, free, item_ids, opened
from trainer.archive.epoch_archive import EpochArchive
from trainer.archive.events import spans_of, string_array
from trainer.fit_job.ratings import load_ratings

NAN = float("nan")


def test_what_is_told_again_is_not_new(tmp_path: Path) -> None:
    archive = EpochArchive(tmp_path, 1, guard=free)
    first = [("a", 1, 0, 4.0), ("a", 2, 1, 2.0), ("b", 1, 0, 5.0), ("b", 2, 2, 1.0)]
    # The same again, one of them changed, one taken back between; and what is new of a known and a new user.
    again = [
        *(("a", 3, 0, 4.0), ("a", 4, 1, 3.0), ("a", 5, 2, 4.0)),
        *(("b", 3, 0, NAN), ("b", 4, 0, 5.0), ("b", 5, 2, NAN)),
        ("c", 1, 0, 4.0),
    ]
    for events, ms in ((first, 1), (again, 100)):
        table = event_table(*zip(*events, strict=True), stream_ms=np.arange(ms, ms + len(events)), time=0.0)
        archive.append(table, spans_of(table))
    given = load_ratings(opened(archive), item_ids(3), string_array([b"a", b"b"]), np.array([2, 2]))
    new = given.unlearned
    users = given.user_ids.to_pylist()
    told = {
        (users[given.ratings.user_row[k]], int(given.ratings.item_row[k]), given.ratings.value[k])
        for k in new
    }
    assert told == {("a", 1, 3.0), ("a", 2, 4.0), ("c", 0, 4.0)}
    assert load_ratings(opened(archive), item_ids(3)).unlearned.size == 0
