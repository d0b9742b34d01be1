"""When the store's own files were written anew since a moment, from what the store says of them."""

from dataclasses import replace

import pytest

from featurestore.ratings.files import FileState, Step, next_step

QUIET = FileState("run", 3, 0, busy=False, rewritten=True, saved=True, appends=True, dumps=False)
BOTH = replace(QUIET, saves=2, dumps=True)
DUMPS = replace(BOTH, appends=False)


@pytest.mark.parametrize(
    ("before", "now", "step"),
    [
        (QUIET, QUIET, "rewrite"),
        (QUIET, replace(QUIET, rewrites=4, busy=True), "wait"),
        (QUIET, replace(QUIET, rewrites=4), "done"),
        (QUIET, replace(QUIET, rewrites=4, rewritten=False), "rewrite"),
        (BOTH, replace(BOTH, rewrites=4), "save"),
        (BOTH, replace(BOTH, rewrites=4, saves=3), "done"),
        (BOTH, replace(BOTH, rewrites=4, saves=3, saved=False), "save"),
        # A dump that was begun since, by the store itself.
        (QUIET, replace(BOTH, rewrites=4), "done"),
        (DUMPS, DUMPS, "save"),
        (DUMPS, replace(DUMPS, saves=3), "done"),
        (replace(DUMPS, dumps=False), replace(DUMPS, dumps=False), "done"),
    ],
)
def test_next_step(before: FileState, now: FileState, step: Step) -> None:
    assert next_step([before], [now]) == step
