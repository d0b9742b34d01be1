"""Players of the environment, by name. All see a world only through the environment's HTTP API."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from evaluation.players.als import AlsPlayer
from evaluation.players.base import BlindPlayer, Player, PlayerFailedError
from evaluation.players.baselines import BiasPlayer, ConstantPlayer, RandomPlayer
from evaluation.players.deployed import DeployedPlayer, SharedApi
from evaluation.players.neighbours import NeighboursPlayer

MakePlayer = Callable[[int], Player]
"""Makes a player from the seed of its random numbers. Raises PlayerFailedError where something is missing."""

_LOCAL: dict[str, MakePlayer] = {
    "random": RandomPlayer,
    "constant": lambda _seed: ConstantPlayer(),
    "bias": lambda _seed: BiasPlayer(),
    "neighbours": lambda _seed: NeighboursPlayer(),
    "als": AlsPlayer,
}
LOCAL_PLAYERS = tuple(_LOCAL)
# Players with Foldin's own model in their process. The caller brings them, as `foldin evaluate` does with
# `players/model.py`: a play of the others must not load the trainer's engines.
BROUGHT_PLAYERS = ("variational", "ordinal", "neural")
# `deployed-frozen` is not told the ratings that come: the difference is what learning online is worth.
API_PLAYERS = ("deployed", "deployed-frozen")
PLAYERS = LOCAL_PLAYERS + BROUGHT_PLAYERS + API_PLAYERS
# At the end of the name of a player that is to see no variables of the events.
BLIND_SUFFIX = "-blind"


def seeing(name: str) -> str:
    """Return the name of the player that a blind one is, and of any other its own."""
    return name.removesuffix(BLIND_SUFFIX)


def player_name(text: str) -> str:
    """Parse the name of a player. Raises ValueError that lists them all."""
    if seeing(text) not in PLAYERS:
        raise ValueError(
            f"must name players among {', '.join(PLAYERS)}, each also with {BLIND_SUFFIX}, not {text}"
        )
    return text


def make_player(
    name: str,
    *,
    seed: int,
    api: SharedApi | None,
    tag: str,
    replace: bool = False,
    own_ids: bool = False,
    brought: Mapping[str, MakePlayer] = MappingProxyType({}),
) -> Player:
    """Make the player of that name. Raises PlayerFailedError.

    `seed`: of its random numbers. `brought`: players that the caller adds. The rest is for the players that
    need the API, see `DeployedPlayer`.
    """
    if name != seeing(name):
        return BlindPlayer(
            make_player(
                seeing(name),
                seed=seed,
                api=api,
                tag=tag,
                replace=replace,
                own_ids=own_ids,
                brought=brought,
            )
        )
    if name in brought:
        return brought[name](seed)
    if name in LOCAL_PLAYERS:
        return _LOCAL[name](seed)
    if name not in API_PLAYERS:
        why = "comes with `foldin evaluate` only" if name in BROUGHT_PLAYERS else "does not exist"
        raise PlayerFailedError(f"the player {name} {why}")
    if api is None:
        raise PlayerFailedError(f"the player {name} needs the address of an API")
    return DeployedPlayer(api, tag=tag, online=name == "deployed", replace=replace, own_ids=own_ids)


__all__ = [
    "API_PLAYERS",
    "BROUGHT_PLAYERS",
    "LOCAL_PLAYERS",
    "MakePlayer",
    "Player",
    "PlayerFailedError",
    "SharedApi",
    "make_player",
    "player_name",
    "seeing",
]
