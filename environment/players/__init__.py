"""Players of the environment, by name. All see a world only through the environment's HTTP API."""

from environment.players.als import AlsPlayer
from environment.players.api import FoldinApi
from environment.players.base import Player, PlayerFailedError
from environment.players.baselines import BiasPlayer, ConstantPlayer, RandomPlayer
from environment.players.deployed import DeployedPlayer
from environment.players.neighbours import NeighboursPlayer

LOCAL_PLAYERS = ("random", "constant", "bias", "neighbours", "als")
API_PLAYERS = ("deployed", "deployed-frozen")


def player_name(text: str) -> str:
    """Reads the name of a player; raises ValueError that lists them all."""
    if text not in LOCAL_PLAYERS + API_PLAYERS:
        raise ValueError(f"must name players among {', '.join(LOCAL_PLAYERS + API_PLAYERS)}, not {text}")
    return text


def make_player(
    name: str,
    *,
    seed: int,
    api: FoldinApi | None,
    tag: str,
    replace: bool = False,
    own_ids: bool = False,
) -> Player:
    """The player of that name. `seed` decides its chances; the rest is for the players that need the API."""
    match name:
        case "random":
            return RandomPlayer(seed)
        case "constant":
            return ConstantPlayer()
        case "bias":
            return BiasPlayer()
        case "neighbours":
            return NeighboursPlayer()
        case "als":
            return AlsPlayer(seed)
        case "deployed" | "deployed-frozen":
            if api is None:
                raise PlayerFailedError(f"the player {name} needs the address of an API")
            online = name == "deployed"
            return DeployedPlayer(api, tag=tag, online=online, replace=replace, own_ids=own_ids)
        case _:
            raise PlayerFailedError(f"there is no player called {name}")


__all__ = [
    "API_PLAYERS",
    "LOCAL_PLAYERS",
    "FoldinApi",
    "Player",
    "PlayerFailedError",
    "make_player",
    "player_name",
]
