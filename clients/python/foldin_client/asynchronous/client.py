"""The client that people use: every call of the API, and what takes several of them."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from foldin_client import models
from foldin_client.asynchronous.operations import AsyncOperations
from foldin_client.problems import TrainingFailedError, TrainingRefusedError
from foldin_client.rows import MAX_ROWS
from foldin_client.wire import Call, given

# How often to look whether a training has ended: one takes from seconds to minutes.
LOOK_S = 1.0
# As many as a page may have.
PAGE = 1_000


class AsyncClient(AsyncOperations):
    """Every call of the API as a method, for ratings, predictions, lists, the catalogue and operation.

    ```python
    async with AsyncClient("http://127.0.0.1:8080") as foldin:
        await foldin.rate({"user_id": "ann", "item_id": "dune", "rating": 5})
        print((await foldin.predict("ann", "emma")).rating)
    ```

    Calls raise `FoldinError`, of which `foldin_client.problems` has a class for each `code`. What the API
    calls idempotent is sent again while the service is busy or away; anything else only where it surely did
    not act.
    """

    async def predict_many(
        self,
        pairs: Sequence[tuple[str | int, str | int]] = (),
        *,
        user_id: str | int | None = None,
        item_ids: Sequence[str | int] = (),
        context: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        timestamp: float | str | Sequence[float | str | None] | None = None,
    ) -> models.Predictions:
        """The expected ratings of pairs, or of one user with many items, in the order given.

        `context`, `timestamp`: one for all, or one for each. 10,000 go into a call; the answers of several
        calls can be of two generations, where one went live in between: `generation` is that of the last.
        """
        if (user_id is None) == (not pairs) and (pairs or item_ids):
            raise ValueError("give pairs, or a user_id with item_ids")
        wanted: Sequence[Any] = pairs if user_id is None else item_ids
        found: list[models.Prediction] = []
        answer = models.Predictions(generation=0, predictions=[])
        degraded = False
        for first in range(0, len(wanted), MAX_ROWS):
            part = wanted[first : first + MAX_ROWS]
            asked: dict[str, Any] = (
                {"pairs": part} if user_id is None else {"user_id": user_id, "item_ids": part}
            )
            if context is not None:
                one = isinstance(context, Mapping)
                asked["context"] = context if one else list(context)[first : first + MAX_ROWS]
            if timestamp is not None:
                asked["timestamp"] = timestamp
                if not isinstance(timestamp, float | int | str):
                    asked["timestamp"] = list(timestamp)[first : first + MAX_ROWS]
            call = Call("POST", "/predict", body=given(**asked), is_repeatable=True)
            answer = await self._ask(call, models.Predictions)
            found += answer.predictions
            degraded = degraded or answer.degraded
        return models.Predictions(generation=answer.generation, predictions=found, degraded=degraded)

    async def iter_users(self, prefix: str = "") -> AsyncIterator[str]:
        """The ids of all users, or of those that begin with `prefix`, in no order."""
        cursor: str | None = None
        while True:
            page = await self.find_users(prefix=prefix, n=PAGE, cursor=cursor)
            for user_id in page.users:
                yield user_id
            if page.next is None:
                return
            cursor = page.next

    async def iter_items(
        self, prefix: str = "", of: Literal["catalogue", "all"] = "catalogue"
    ) -> AsyncIterator[models.ItemListed]:
        """The items of the catalogue by id, hidden ones too, or those whose ids begin with `prefix`; of all,
        those too that ratings or other events alone name.
        """
        cursor: str | None = None
        while True:
            page = await self.list_items(prefix=prefix or None, n=PAGE, cursor=cursor, of=of)
            for item in page.items:
                yield item
            if page.next is None:
                return
            cursor = page.next

    async def iter_user_ratings(self, user_id: str | int) -> AsyncIterator[models.RatingOut]:
        """All ratings of a user, the latest first. One that comes in meanwhile may show another twice."""
        offset = 0
        while True:
            page = await self.get_user_ratings(user_id, n=PAGE, offset=offset)
            for rating in page.ratings:
                yield rating
            offset += len(page.ratings)
            if not page.ratings or offset >= page.total:
                return

    async def wait_for_training(self, receipt: str) -> models.TrainingOut:
        """Return the training of a receipt when it has ended well. Raises TrainingRefusedError or
        TrainingFailedError where it has not.
        """
        while True:
            told = await self.get_training(receipt)
            if told.state == "done":
                return told
            if told.state == "failed":
                refused = told.cause in {"fit_refused", "gate_refused"}
                kind = TrainingRefusedError if refused else TrainingFailedError
                raise kind(
                    f"the training of {self.url} failed: {told.detail}",
                    status=422 if refused else 503,
                    code="training_refused" if refused else "training_failed",
                    detail=told.detail or "",
                    more={"cause": told.cause},
                )
            await asyncio.sleep(LOOK_S)

    async def refit(self) -> int:
        """Fit again on all that is known; return the generation when it is live."""
        answer = await self.train()
        if isinstance(answer, models.TrainedOut):
            return answer.generation
        return (await self.wait_for_training(answer.receipt)).generation or 0
