"""Whatever the options: each pair once, no user before it exists, the same again from the same seed."""

import numpy as np
from hypothesis import event, given
from hypothesis import strategies as st

from environment.settings import ServerSettings
from environment.world import WorldOptions, make_world
from processes.settings import SettingsError


@st.composite
def options(draw: st.DrawFn) -> WorldOptions:
    n_users, n_items = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    return WorldOptions(
        n_users=n_users,
        n_items=n_items,
        n_known=draw(st.integers(0, n_users * n_items - 1)),
        late_users=draw(st.floats(0, 0.9)),
        late_items=draw(st.floats(0, 0.9)),
        drift=draw(st.floats(0, 100)),
        noise=draw(st.floats(0, 100)),
    )


@given(options(), st.integers(0, 2**128 - 1))
def test_a_world_is_whole_timely_and_repeatable(drawn: WorldOptions, seed: int) -> None:
    assert not drawn.problems()
    world = make_world(seed, drawn)
    pairs = world.user.astype(np.int64) * drawn.n_items + world.item
    assert np.array_equal(np.sort(pairs), np.arange(drawn.n_users * drawn.n_items))
    assert world.rating.min() >= 1
    assert world.rating.max() <= 5
    time = np.arange(pairs.size)
    assert np.all(time >= world.user_arrival[world.user])
    assert np.all(time >= world.item_arrival[world.item])
    again = make_world(seed, drawn)
    assert np.array_equal(world.user, again.user)
    assert np.array_equal(world.rating, again.rating)


@given(
    st.lists(st.text(max_size=8), max_size=6),
    st.dictionaries(
        st.sampled_from(["FOLDIN_ENVIRONMENT_PORT", "FOLDIN_ENVIRONMENT_SEED", "FOLDIN_ENVIRONMENT_HOST"]),
        st.text(max_size=8),
    ),
)
def test_settings_are_read_or_refused_with_a_sentence(argv: list[str], environ: dict[str, str]) -> None:
    asks_for_help = any(argument.startswith(("-h", "--h")) for argument in argv)
    try:
        settings = ServerSettings.load([] if asks_for_help else argv, environ)
    except SettingsError as error:
        event(str(error)[:10])
    else:
        assert 0 <= settings.port <= 65_535
