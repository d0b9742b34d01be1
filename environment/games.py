"""The games in progress, one a token.

Invariant: memory is bounded. A game is a seed, a position and a window of its world, which is drawn again
from the seed whenever the window is used up. Above `max_tokens` the token that was silent longest goes.
"""

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET, UnsetType

from environment.contract import PredictAnswer, ResetAnswer
from environment.world import World, WorldOptions, make_world

R = TypeVar("R")

# Drawing a world takes a few ms: 10 us a step. A large world takes longer, so it is drawn less often.
WINDOW_STEPS = 512
# Of the windows of all games: 26,843 steps of one at a thousand tokens, 2,684 at ten thousand.
WINDOWS_BYTES = 1 << 28
# User and item take four bytes each, the rating one.
STEP_BYTES = 9
# A float64 each.
VARIABLE_BYTES = 8
# Below that drawing would be all that is done: at most a million tokens, so 0.6 GB.
LEAST_STEPS = 64


@dataclass(frozen=True, slots=True)
class Window:
    """Events of a world from position `start` on. `user`, `item`: int32 (n,); `rating`: uint8 (n,);
    `variables`: float64 (n, k).

    `n_pairs`: events of the whole world.
    """

    start: int
    n_pairs: int
    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    rating: npt.NDArray[np.uint8]
    variables: npt.NDArray[np.float64]

    def variables_at(self, index: int) -> list[float] | UnsetType:
        """Return the numbers beside one event; unset in a world without any."""
        return self.variables[index].tolist() if self.variables.shape[1] else UNSET


class UnknownTokenError(Exception):
    """This token has no game: it never had one, or it was forgotten as the one silent longest."""


class NoPairLeftError(Exception):
    """Every pair of this token's world has been rated."""


class _Game:
    """One token's game. `lock` orders its requests; `window` is None while the first one is drawn."""

    __slots__ = ("lock", "position", "resets", "seed", "window")

    def __init__(self, seed: int, resets: int) -> None:
        self.lock = asyncio.Lock()
        self.seed = seed
        self.resets = resets
        self.position = 0
        self.window: Window | None = None


def window_steps(n_pairs: int, max_tokens: int, n_variables: int = 0) -> int:
    """Return how many steps a window has, so that those of all tokens are bounded."""
    wanted = max(WINDOW_STEPS, n_pairs // 64)
    step_bytes = STEP_BYTES + VARIABLE_BYTES * n_variables
    return max(LEAST_STEPS, min(wanted, WINDOWS_BYTES // (step_bytes * max_tokens)))


def open_game(seed: int, options: WorldOptions, steps: int) -> tuple[bytes, Window]:
    """Draw a world; return the JSON answer to the reset and the first window. Pure, for a thread."""
    world = make_world(seed, options)
    window = _window(world, options.n_known, steps)
    known = slice(0, options.n_known)
    variables = world.variables[known].tolist() if options.n_variables else UNSET
    answer = ResetAnswer(
        nb_users=options.n_users,
        nb_items=options.n_items,
        user_history=world.user[known].tolist(),
        item_history=world.item[known].tolist(),
        rating_history=world.rating[known].tolist(),
        next_user=int(world.user[options.n_known]),
        next_item=int(world.item[options.n_known]),
        variables_history=variables,
        next_variables=window.variables_at(0),
    )
    return msgspec.json.encode(answer), window


def _window(world: World, start: int, steps: int) -> Window:
    cut = slice(start, start + steps)
    # Copies: a view would keep the whole world alive.
    user, item, rating = world.user[cut].copy(), world.item[cut].copy(), world.rating[cut].copy()
    return Window(start, world.user.size, user, item, rating, world.variables[cut].copy())


class Games:
    """All games of a server, on one event loop; worlds are drawn in `executor`."""

    def __init__(
        self, *, options: WorldOptions, seed: int | None, max_tokens: int, executor: Executor
    ) -> None:
        self._options = options
        self._seed = seed
        self._max_tokens = max_tokens
        self._steps = window_steps(options.n_users * options.n_items, max_tokens, options.n_variables)
        self._executor = executor
        # In the order of the last request: the token that was silent longest comes first.
        self._games: OrderedDict[str, _Game] = OrderedDict()

    def __len__(self) -> int:
        return len(self._games)

    async def reset(self, token: str, world_seed: int | None = None) -> bytes:
        """Begin a new game for `token`; return the JSON answer. `world_seed` None: a new world each time."""
        before = self._games.get(token)
        resets = before.resets + 1 if before else 1
        seed = world_seed if world_seed is not None else self._draw_seed(token, resets)
        game = _Game(seed, resets)
        async with game.lock:  # a prediction that comes before the world is drawn waits for it
            self._games[token] = game
            self._games.move_to_end(token)
            while len(self._games) > self._max_tokens:
                self._games.popitem(last=False)
            try:
                answer, window = await self._in_executor(lambda: open_game(seed, self._options, self._steps))
            except BaseException:
                # Cancelled or out of memory: a game without a window must not stay, and a newer one must.
                if self._games.get(token) is game:
                    del self._games[token]
                raise
            game.window = window
            game.position = window.start
        return answer

    async def rate(self, token: str) -> PredictAnswer | int:
        """Rate the pending pair of `token` and move on; after the last pair return its rating alone. Raises
        UnknownTokenError or NoPairLeftError.
        """
        game = self._games.get(token)
        if game is None:
            raise UnknownTokenError(token)
        self._games.move_to_end(token)
        async with game.lock:
            if game.window is None:  # its reset failed while this request waited for the lock
                raise UnknownTokenError(token)
            return await self._step(game, game.window)

    async def _step(self, game: _Game, window: Window) -> PredictAnswer | int:
        if game.position == window.n_pairs:
            raise NoPairLeftError
        rating = int(window.rating[game.position - window.start])
        following = game.position + 1
        if following == window.n_pairs:
            # The last pair: its rating is due although there is no next one.
            game.position = following
            return rating
        if following - window.start == window.user.size:
            seed, options, steps = game.seed, self._options, self._steps
            window = await self._in_executor(lambda: _window(make_world(seed, options), following, steps))
            game.window = window
        game.position = following
        index = following - window.start
        variables = window.variables_at(index)
        return PredictAnswer(int(window.item[index]), int(window.user[index]), rating, variables)

    def _draw_seed(self, token: str, resets: int) -> int:
        if self._seed is None:
            return secrets.randbits(128)  # no player can guess another's world
        # Named by token and count, so a player's worlds do not depend on who else plays.
        name = f"{self._seed} {resets} {token}".encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "big")

    async def _in_executor(self, work: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)
