# Made by `make clients` of the service's description: change that, not this.
"""Every call of the API as a method, as its description has it."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from msgspec import UNSET, UnsetType

from foldin_client import models
from foldin_client.asynchronous.transport import AsyncTransport
from foldin_client.rows import AsyncRows
from foldin_client.wire import Call, encoded, given, given_any, part


class AsyncOperations(AsyncTransport):
    """The calls. Each raises FoldinError."""

    async def predict(
        self,
        user_id: str | int,
        item_id: str | int,
        *,
        timestamp: float | str | None = None,
        distribution: bool | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> models.OnePrediction:
        """The expected rating of one pair. `user` and `item` are synonyms of the parameters.

        `GET /predict`; needs the role `read`.

        user_id: Who.
        item_id: What.
        timestamp: When, in seconds since 1970 or as ISO 8601.
        distribution: The probability of each step of the scale too.
        context: The context, by field.
        """
        return await self._ask(
            Call(
                "GET",
                "/predict",
                query={
                    "user_id": user_id,
                    "item_id": item_id,
                    "timestamp": timestamp,
                    "distribution": distribution,
                    "context": context,
                },
                is_repeatable=True,
            ),
            models.OnePrediction,
        )

    async def rate(self, rows: AsyncRows[models.RatingIn]) -> models.Accepted:
        """Learn ratings: one, an array, or one a line. One bad row refuses all; reads after a 2xx know
        them.

        `POST /ratings`; needs the role `rate`.
        """
        return await self._send_rows("/ratings", rows, models.Accepted, is_repeatable=True)

    async def unrate(self, user_id: str | int, item_id: str | int) -> models.Deleted:
        """Take one rating back.

        `DELETE /ratings/{user_id}/{item_id}`; needs the role `rate`.

        user_id: 1 to 256 bytes of UTF-8.
        item_id: 1 to 256 bytes of UTF-8.
        """
        return await self._ask(
            Call("DELETE", f"/ratings/{part(user_id)}/{part(item_id)}", is_repeatable=True), models.Deleted
        )

    def export_ratings(self) -> AsyncIterator[models.RatingLine]:
        """All ratings, one a line, as POST /ratings takes them.

        `GET /export/ratings`; needs the role `read`.
        """
        return self._ask_lines(Call("GET", "/export/ratings", is_repeatable=True), models.RatingLine)

    async def post_events(self, rows: AsyncRows[models.EventIn]) -> models.Accepted:
        """Learn events of any types: one, an array, or one a line. One bad row refuses all.

        `POST /events`; needs the role `rate`.
        """
        return await self._send_rows("/events", rows, models.Accepted, is_repeatable=False)

    async def get_user_events(
        self, user_id: str | int, *, n: int | None = None, offset: int | None = None
    ) -> models.EventsPage:
        """The events of a user that are no ratings, the latest first.

        `GET /users/{user_id}/events`; needs the role `read`.

        user_id: 1 to 256 bytes of UTF-8.
        n: How many.
        offset: How many of the latest to leave out.
        """
        return await self._ask(
            Call(
                "GET", f"/users/{part(user_id)}/events", query={"n": n, "offset": offset}, is_repeatable=True
            ),
            models.EventsPage,
        )

    async def delete_event(self, user_id: str | int, item_id: str | int, type: str) -> models.Deleted:
        """Take one event back.

        `DELETE /events/{user_id}/{item_id}/{type}`; needs the role `rate`.

        user_id: 1 to 256 bytes of UTF-8.
        item_id: 1 to 256 bytes of UTF-8.
        type: A type of GET /event-types.
        """
        return await self._ask(
            Call("DELETE", f"/events/{part(user_id)}/{part(item_id)}/{part(type)}", is_repeatable=True),
            models.Deleted,
        )

    async def get_event_types(self) -> models.TypesOut:
        """The types of events.

        `GET /event-types`; needs the role `read`.
        """
        return await self._ask(Call("GET", "/event-types", is_repeatable=True), models.TypesOut)

    async def put_event_types(self, *, types: Sequence[models.TypeIn | Mapping[str, Any]]) -> models.TypesOut:
        """Have these types take events, as they are put here.

        `PUT /event-types`; needs the role `operate`.
        """
        return await self._ask(
            Call("PUT", "/event-types", body=given(types=types), is_repeatable=True), models.TypesOut
        )

    async def retire_event_type(self, type: str) -> models.TypesOut:
        """Retire a type: it takes no events any more, and those that there are stay, and count on.

        `DELETE /event-types/{type}`; needs the role `operate`.

        type: 1 to 256 bytes of UTF-8.
        """
        return await self._ask(
            Call("DELETE", f"/event-types/{part(type)}", is_repeatable=True), models.TypesOut
        )

    async def recommend(
        self,
        user_id: str | int,
        *,
        n: int | None = None,
        offset: int | None = None,
        exclude_seen: bool | str | None = None,
        impressions: bool | None = None,
        explore: Literal["none", "thompson"] | None = None,
        recency: float | None = None,
        seed: int | None = None,
        order: Literal["score", "rating"] | None = None,
        category: str | None = None,
        exclude_items: str | None = None,
        scenario: str | None = None,
        include: str | Sequence[str] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> models.Recommendations:
        """The best items for a user.

        `GET /recommend/{user_id}`; needs the role `read`.

        user_id: 1 to 256 bytes of UTF-8.
        n: How many; else as the scenario says.
        offset: How many of the best to leave out.
        exclude_seen: Leave out what the user has rated or consumed; or names of types, with commas
            between.
        impressions: Record the items as shown to the user.
        explore: `thompson` ranks by a draw from the posterior.
        recency: How many times more the latest events of the user count.
        seed: Makes a draw repeatable.
        order: `rating` ranks by the expected rating alone.
        category: Only items of this category, or any of several with commas.
        exclude_items: Ids of items to leave out, with commas between.
        scenario: Rules that are stored.
        include: What to say of each item, with commas between: `title`, `image`, `categories`,
            `attributes`, `attributes.NAME`, and in lists for a user `reasons`.
        context: The context, by field.
        """
        return await self._ask(
            Call(
                "GET",
                f"/recommend/{part(user_id)}",
                query={
                    "n": n,
                    "offset": offset,
                    "exclude_seen": exclude_seen,
                    "impressions": impressions,
                    "explore": explore,
                    "recency": recency,
                    "seed": seed,
                    "order": order,
                    "category": category,
                    "exclude_items": exclude_items,
                    "scenario": scenario,
                    "include": include,
                    "context": context,
                },
                is_repeatable=impressions is not True,
            ),
            models.Recommendations,
        )

    async def recommend_by_rules(
        self,
        user_id: str | int,
        *,
        filter: Mapping[str, Any] | UnsetType | None = UNSET,
        exclude_items: Sequence[str | int] | UnsetType | None = UNSET,
        candidate_items: Sequence[str | int] | UnsetType | None = UNSET,
        boosts: Sequence[models.Boost | Mapping[str, Any]] | UnsetType | None = UNSET,
        diversity: models.Diversity | Mapping[str, Any] | UnsetType | None = UNSET,
        per_category: int | UnsetType | None = UNSET,
        pinned: Sequence[models.Pin | Mapping[str, Any]] | UnsetType | None = UNSET,
        n: int | UnsetType | None = UNSET,
        exclude_seen: bool | Sequence[str] | UnsetType | None = UNSET,
        include: str | Sequence[str] | UnsetType | None = UNSET,
        order: Literal["score", "rating"] | UnsetType | None = UNSET,
        explore: Literal["none", "thompson"] | UnsetType | None = UNSET,
        recency: float | UnsetType | None = UNSET,
        impressions: bool | UnsetType | None = UNSET,
        offset: int | UnsetType = UNSET,
        seed: int | UnsetType | None = UNSET,
        scenario: str | UnsetType | None = UNSET,
        context: Mapping[str, float | str | bool | None] | UnsetType | None = UNSET,
    ) -> models.Recommendations:
        """The best items for a user, under rules.

        `POST /recommend/{user_id}`; needs the role `read`.

        user_id: 1 to 256 bytes of UTF-8.
        filter: `must` (all hold), `should` (one does), `must_not` (none does): lists of conditions.
            A condition is a filter, `{key, match: {value | any | except}}`, `{key, range: {gt, gte,
            lt, lte}}`, `{is_empty: {key}}` or `{has_id: [..]}`.
        exclude_items: Ids of items to leave out.
        n: How many; else as the scenario says.
        exclude_seen: Leave out what the user has rated or consumed; or names of types.
        include: What to say of each item: `title`, `image`, `categories`, `attributes`,
            `attributes.NAME`, and in lists for a user `reasons`.
        order: `rating` ranks by the expected rating alone.
        explore: `thompson` ranks by a draw from the posterior.
        recency: How many times more the latest events of the user count.
        impressions: Record the items as shown to the user.
        offset: How many of the best to leave out.
        seed: Makes a draw repeatable.
        scenario: Rules that are stored.
        """
        return await self._ask(
            Call(
                "POST",
                f"/recommend/{part(user_id)}",
                body=given(
                    filter=filter,
                    exclude_items=exclude_items,
                    candidate_items=candidate_items,
                    boosts=boosts,
                    diversity=diversity,
                    per_category=per_category,
                    pinned=pinned,
                    n=n,
                    exclude_seen=exclude_seen,
                    include=include,
                    order=order,
                    explore=explore,
                    recency=recency,
                    impressions=impressions,
                    offset=offset,
                    seed=seed,
                    scenario=scenario,
                    context=context,
                ),
                is_repeatable=impressions is not True,
            ),
            models.Recommendations,
        )

    async def recommend_anonymous(
        self,
        *,
        filter: Mapping[str, Any] | UnsetType | None = UNSET,
        exclude_items: Sequence[str | int] | UnsetType | None = UNSET,
        candidate_items: Sequence[str | int] | UnsetType | None = UNSET,
        boosts: Sequence[models.Boost | Mapping[str, Any]] | UnsetType | None = UNSET,
        diversity: models.Diversity | Mapping[str, Any] | UnsetType | None = UNSET,
        per_category: int | UnsetType | None = UNSET,
        pinned: Sequence[models.Pin | Mapping[str, Any]] | UnsetType | None = UNSET,
        n: int | UnsetType | None = UNSET,
        exclude_seen: bool | Sequence[str] | UnsetType | None = UNSET,
        include: str | Sequence[str] | UnsetType | None = UNSET,
        order: Literal["score", "rating"] | UnsetType | None = UNSET,
        explore: Literal["none", "thompson"] | UnsetType | None = UNSET,
        recency: float | UnsetType | None = UNSET,
        impressions: bool | UnsetType | None = UNSET,
        offset: int | UnsetType = UNSET,
        seed: int | UnsetType | None = UNSET,
        scenario: str | UnsetType | None = UNSET,
        context: Mapping[str, float | str | bool | None] | UnsetType | None = UNSET,
        ratings: Sequence[models.AnonymousRating | Mapping[str, Any]] | UnsetType = UNSET,
        events: Sequence[models.AnonymousEvent | Mapping[str, Any]] | UnsetType = UNSET,
    ) -> models.Recommendations:
        """The best items for someone who is not stored.

        `POST /recommend`; needs the role `read`.

        filter: `must` (all hold), `should` (one does), `must_not` (none does): lists of conditions.
            A condition is a filter, `{key, match: {value | any | except}}`, `{key, range: {gt, gte,
            lt, lte}}`, `{is_empty: {key}}` or `{has_id: [..]}`.
        exclude_items: Ids of items to leave out.
        n: How many; else as the scenario says.
        exclude_seen: Leave out what the user has rated or consumed; or names of types.
        include: What to say of each item: `title`, `image`, `categories`, `attributes`,
            `attributes.NAME`, and in lists for a user `reasons`.
        order: `rating` ranks by the expected rating alone.
        explore: `thompson` ranks by a draw from the posterior.
        recency: How many times more the latest events of the user count.
        impressions: Record the items as shown to the user.
        offset: How many of the best to leave out.
        seed: Makes a draw repeatable.
        scenario: Rules that are stored.
        """
        return await self._ask(
            Call(
                "POST",
                "/recommend",
                body=given(
                    filter=filter,
                    exclude_items=exclude_items,
                    candidate_items=candidate_items,
                    boosts=boosts,
                    diversity=diversity,
                    per_category=per_category,
                    pinned=pinned,
                    n=n,
                    exclude_seen=exclude_seen,
                    include=include,
                    order=order,
                    explore=explore,
                    recency=recency,
                    impressions=impressions,
                    offset=offset,
                    seed=seed,
                    scenario=scenario,
                    context=context,
                    ratings=ratings,
                    events=events,
                ),
                is_repeatable=impressions is not True,
            ),
            models.Recommendations,
        )

    async def get_scenarios(self) -> models.ScenarioNames:
        """The names of all scenarios.

        `GET /scenarios`; needs the role `read`.
        """
        return await self._ask(Call("GET", "/scenarios", is_repeatable=True), models.ScenarioNames)

    async def get_scenario(self, name: str) -> models.Scenario:
        """The rules of a scenario.

        `GET /scenarios/{name}`; needs the role `read`.

        name: Letters, digits and `_.-`.
        """
        return await self._ask(Call("GET", f"/scenarios/{part(name)}", is_repeatable=True), models.Scenario)

    async def put_scenario(
        self,
        name: str,
        *,
        filter: Mapping[str, Any] | UnsetType | None = UNSET,
        exclude_items: Sequence[str | int] | UnsetType | None = UNSET,
        candidate_items: Sequence[str | int] | UnsetType | None = UNSET,
        boosts: Sequence[models.Boost | Mapping[str, Any]] | UnsetType | None = UNSET,
        diversity: models.Diversity | Mapping[str, Any] | UnsetType | None = UNSET,
        per_category: int | UnsetType | None = UNSET,
        pinned: Sequence[models.Pin | Mapping[str, Any]] | UnsetType | None = UNSET,
        n: int | UnsetType | None = UNSET,
        exclude_seen: bool | Sequence[str] | UnsetType | None = UNSET,
        include: str | Sequence[str] | UnsetType | None = UNSET,
        order: Literal["score", "rating"] | UnsetType | None = UNSET,
        explore: Literal["none", "thompson"] | UnsetType | None = UNSET,
        recency: float | UnsetType | None = UNSET,
        impressions: bool | UnsetType | None = UNSET,
    ) -> models.Scenario:
        """Store rules under a name, in place of those before.

        `PUT /scenarios/{name}`; needs the role `operate`.

        name: Letters, digits and `_.-`.
        filter: `must` (all hold), `should` (one does), `must_not` (none does): lists of conditions.
            A condition is a filter, `{key, match: {value | any | except}}`, `{key, range: {gt, gte,
            lt, lte}}`, `{is_empty: {key}}` or `{has_id: [..]}`.
        """
        return await self._ask(
            Call(
                "PUT",
                f"/scenarios/{part(name)}",
                body=given(
                    filter=filter,
                    exclude_items=exclude_items,
                    candidate_items=candidate_items,
                    boosts=boosts,
                    diversity=diversity,
                    per_category=per_category,
                    pinned=pinned,
                    n=n,
                    exclude_seen=exclude_seen,
                    include=include,
                    order=order,
                    explore=explore,
                    recency=recency,
                    impressions=impressions,
                ),
                is_repeatable=impressions is not True,
            ),
            models.Scenario,
        )

    async def delete_scenario(self, name: str) -> models.ScenarioDeleted:
        """Delete a scenario.

        `DELETE /scenarios/{name}`; needs the role `operate`.

        name: Letters, digits and `_.-`.
        """
        return await self._ask(
            Call("DELETE", f"/scenarios/{part(name)}", is_repeatable=True), models.ScenarioDeleted
        )

    async def get_experiments(self) -> models.ExperimentsOut:
        """The experiments that run.

        `GET /experiments`; needs the role `read`.
        """
        return await self._ask(Call("GET", "/experiments", is_repeatable=True), models.ExperimentsOut)

    async def get_experiment(self, name: str) -> models.ExperimentFigures:
        """What came of an experiment so far, by arm.

        `GET /experiments/{name}`; needs the role `read`.

        name: Letters, digits and `_.-`.
        """
        return await self._ask(
            Call("GET", f"/experiments/{part(name)}", is_repeatable=True), models.ExperimentFigures
        )

    async def put_experiment(
        self,
        name: str,
        *,
        arms: Sequence[models.ArmIn | Mapping[str, Any]],
        scenario: str | UnsetType | None = UNSET,
    ) -> models.Begun:
        """Begin an experiment. Sent again it changes nothing; another one of the same name is refused.

        `PUT /experiments/{name}`; needs the role `operate`.

        name: Letters, digits and `_.-`.
        """
        return await self._ask(
            Call(
                "PUT",
                f"/experiments/{part(name)}",
                body=given(arms=arms, scenario=scenario),
                is_repeatable=True,
            ),
            models.Begun,
        )

    async def delete_experiment(self, name: str, *, keep: str | None = None) -> models.Ended:
        """End an experiment, and forget its figures.

        `DELETE /experiments/{name}`; needs the role `operate`.

        name: Letters, digits and `_.-`.
        keep: The arm that goes on, for everybody.
        """
        return await self._ask(
            Call("DELETE", f"/experiments/{part(name)}", query={"keep": keep}, is_repeatable=True),
            models.Ended,
        )

    async def similar(
        self,
        item_id: str | int,
        *,
        by: Literal["behaviour", "content", "both"] | None = None,
        n: int | None = None,
        offset: int | None = None,
        user_id: str | None = None,
        exclude_seen: bool | str | None = None,
        category: str | None = None,
        exclude_items: str | None = None,
        scenario: str | None = None,
        include: str | Sequence[str] | None = None,
    ) -> models.Similar:
        """The items most like one.

        `GET /similar/{item_id}`; needs the role `read`.

        item_id: 1 to 256 bytes of UTF-8.
        by: `behaviour`: whose ratings or events go together; `content`: that share texts in the
            catalogue.
        n: How many; else as the scenario says.
        offset: How many of the best to leave out.
        user_id: Leave out what this user has seen.
        exclude_seen: Leave out what the user has rated or consumed; or names of types, with commas
            between.
        category: Only items of this category, or any of several with commas.
        exclude_items: Ids of items to leave out, with commas between.
        scenario: Rules that are stored.
        include: What to say of each item, with commas between: `title`, `image`, `categories`,
            `attributes`, `attributes.NAME`, and in lists for a user `reasons`.
        """
        return await self._ask(
            Call(
                "GET",
                f"/similar/{part(item_id)}",
                query={
                    "by": by,
                    "n": n,
                    "offset": offset,
                    "user_id": user_id,
                    "exclude_seen": exclude_seen,
                    "category": category,
                    "exclude_items": exclude_items,
                    "scenario": scenario,
                    "include": include,
                },
                is_repeatable=True,
            ),
            models.Similar,
        )

    async def similar_by_rules(
        self,
        item_id: str | int,
        *,
        filter: Mapping[str, Any] | UnsetType | None = UNSET,
        exclude_items: Sequence[str | int] | UnsetType | None = UNSET,
        candidate_items: Sequence[str | int] | UnsetType | None = UNSET,
        boosts: Sequence[models.Boost | Mapping[str, Any]] | UnsetType | None = UNSET,
        diversity: models.Diversity | Mapping[str, Any] | UnsetType | None = UNSET,
        per_category: int | UnsetType | None = UNSET,
        pinned: Sequence[models.Pin | Mapping[str, Any]] | UnsetType | None = UNSET,
        n: int | UnsetType | None = UNSET,
        exclude_seen: bool | Sequence[str] | UnsetType | None = UNSET,
        include: str | Sequence[str] | UnsetType | None = UNSET,
        offset: int | UnsetType = UNSET,
        user_id: str | int | UnsetType | None = UNSET,
        scenario: str | UnsetType | None = UNSET,
        by: Literal["behaviour", "content", "both"] | UnsetType | None = UNSET,
    ) -> models.Similar:
        """The items most like one, under rules.

        `POST /similar/{item_id}`; needs the role `read`.

        item_id: 1 to 256 bytes of UTF-8.
        filter: `must` (all hold), `should` (one does), `must_not` (none does): lists of conditions.
            A condition is a filter, `{key, match: {value | any | except}}`, `{key, range: {gt, gte,
            lt, lte}}`, `{is_empty: {key}}` or `{has_id: [..]}`.
        exclude_items: Ids of items to leave out.
        n: How many; else as the scenario says.
        exclude_seen: Leave out what the user has rated or consumed; or names of types.
        include: What to say of each item: `title`, `image`, `categories`, `attributes`,
            `attributes.NAME`, and in lists for a user `reasons`.
        offset: How many of the best to leave out.
        user_id: Leave out what this user has seen.
        scenario: Rules that are stored.
        by: `behaviour`: whose ratings or events go together; `content`: that share texts in the
            catalogue.
        """
        return await self._ask(
            Call(
                "POST",
                f"/similar/{part(item_id)}",
                body=given(
                    filter=filter,
                    exclude_items=exclude_items,
                    candidate_items=candidate_items,
                    boosts=boosts,
                    diversity=diversity,
                    per_category=per_category,
                    pinned=pinned,
                    n=n,
                    exclude_seen=exclude_seen,
                    include=include,
                    offset=offset,
                    user_id=user_id,
                    scenario=scenario,
                    by=by,
                ),
                is_repeatable=True,
            ),
            models.Similar,
        )

    async def popular(
        self,
        *,
        by: Literal["rating", "events"] | None = None,
        n: int | None = None,
        offset: int | None = None,
        user_id: str | None = None,
        exclude_seen: bool | str | None = None,
        category: str | None = None,
        exclude_items: str | None = None,
        scenario: str | None = None,
        include: str | Sequence[str] | None = None,
    ) -> models.Popular:
        """The most loved items.

        `GET /popular`; needs the role `read`.

        by: `rating`: what an average user would give; `events`: the weight of positive events.
            Without it by rating, and by events where the generation has learned no rating, or next
            to none.
        n: How many; else as the scenario says.
        offset: How many of the best to leave out.
        user_id: Leave out what this user has seen.
        exclude_seen: Leave out what the user has rated or consumed; or names of types, with commas
            between.
        category: Only items of this category, or any of several with commas.
        exclude_items: Ids of items to leave out, with commas between.
        scenario: Rules that are stored.
        include: What to say of each item, with commas between: `title`, `image`, `categories`,
            `attributes`, `attributes.NAME`, and in lists for a user `reasons`.
        """
        return await self._ask(
            Call(
                "GET",
                "/popular",
                query={
                    "by": by,
                    "n": n,
                    "offset": offset,
                    "user_id": user_id,
                    "exclude_seen": exclude_seen,
                    "category": category,
                    "exclude_items": exclude_items,
                    "scenario": scenario,
                    "include": include,
                },
                is_repeatable=True,
            ),
            models.Popular,
        )

    async def popular_by_rules(
        self,
        *,
        filter: Mapping[str, Any] | UnsetType | None = UNSET,
        exclude_items: Sequence[str | int] | UnsetType | None = UNSET,
        candidate_items: Sequence[str | int] | UnsetType | None = UNSET,
        boosts: Sequence[models.Boost | Mapping[str, Any]] | UnsetType | None = UNSET,
        diversity: models.Diversity | Mapping[str, Any] | UnsetType | None = UNSET,
        per_category: int | UnsetType | None = UNSET,
        pinned: Sequence[models.Pin | Mapping[str, Any]] | UnsetType | None = UNSET,
        n: int | UnsetType | None = UNSET,
        exclude_seen: bool | Sequence[str] | UnsetType | None = UNSET,
        include: str | Sequence[str] | UnsetType | None = UNSET,
        offset: int | UnsetType = UNSET,
        user_id: str | int | UnsetType | None = UNSET,
        scenario: str | UnsetType | None = UNSET,
        by: Literal["rating", "events"] | UnsetType | None = UNSET,
    ) -> models.Popular:
        """The most loved items, under rules.

        `POST /popular`; needs the role `read`.

        filter: `must` (all hold), `should` (one does), `must_not` (none does): lists of conditions.
            A condition is a filter, `{key, match: {value | any | except}}`, `{key, range: {gt, gte,
            lt, lte}}`, `{is_empty: {key}}` or `{has_id: [..]}`.
        exclude_items: Ids of items to leave out.
        n: How many; else as the scenario says.
        exclude_seen: Leave out what the user has rated or consumed; or names of types.
        include: What to say of each item: `title`, `image`, `categories`, `attributes`,
            `attributes.NAME`, and in lists for a user `reasons`.
        offset: How many of the best to leave out.
        user_id: Leave out what this user has seen.
        scenario: Rules that are stored.
        by: `rating`: what an average user would give; `events`: the weight of positive events.
            Without it by rating, and by events where the generation has learned no rating, or next
            to none.
        """
        return await self._ask(
            Call(
                "POST",
                "/popular",
                body=given(
                    filter=filter,
                    exclude_items=exclude_items,
                    candidate_items=candidate_items,
                    boosts=boosts,
                    diversity=diversity,
                    per_category=per_category,
                    pinned=pinned,
                    n=n,
                    exclude_seen=exclude_seen,
                    include=include,
                    offset=offset,
                    user_id=user_id,
                    scenario=scenario,
                    by=by,
                ),
                is_repeatable=True,
            ),
            models.Popular,
        )

    async def trending(
        self,
        *,
        n: int | None = None,
        offset: int | None = None,
        user_id: str | None = None,
        exclude_seen: bool | str | None = None,
        category: str | None = None,
        exclude_items: str | None = None,
        scenario: str | None = None,
        include: str | Sequence[str] | None = None,
    ) -> models.Trending:
        """The items that are rated most of late.

        `GET /trending`; needs the role `read`.

        n: How many; else as the scenario says.
        offset: How many of the best to leave out.
        user_id: Leave out what this user has seen.
        exclude_seen: Leave out what the user has rated or consumed; or names of types, with commas
            between.
        category: Only items of this category, or any of several with commas.
        exclude_items: Ids of items to leave out, with commas between.
        scenario: Rules that are stored.
        include: What to say of each item, with commas between: `title`, `image`, `categories`,
            `attributes`, `attributes.NAME`, and in lists for a user `reasons`.
        """
        return await self._ask(
            Call(
                "GET",
                "/trending",
                query={
                    "n": n,
                    "offset": offset,
                    "user_id": user_id,
                    "exclude_seen": exclude_seen,
                    "category": category,
                    "exclude_items": exclude_items,
                    "scenario": scenario,
                    "include": include,
                },
                is_repeatable=True,
            ),
            models.Trending,
        )

    async def trending_by_rules(
        self,
        *,
        filter: Mapping[str, Any] | UnsetType | None = UNSET,
        exclude_items: Sequence[str | int] | UnsetType | None = UNSET,
        candidate_items: Sequence[str | int] | UnsetType | None = UNSET,
        boosts: Sequence[models.Boost | Mapping[str, Any]] | UnsetType | None = UNSET,
        diversity: models.Diversity | Mapping[str, Any] | UnsetType | None = UNSET,
        per_category: int | UnsetType | None = UNSET,
        pinned: Sequence[models.Pin | Mapping[str, Any]] | UnsetType | None = UNSET,
        n: int | UnsetType | None = UNSET,
        exclude_seen: bool | Sequence[str] | UnsetType | None = UNSET,
        include: str | Sequence[str] | UnsetType | None = UNSET,
        offset: int | UnsetType = UNSET,
        user_id: str | int | UnsetType | None = UNSET,
        scenario: str | UnsetType | None = UNSET,
    ) -> models.Trending:
        """The items that are rated most of late, under rules.

        `POST /trending`; needs the role `read`.

        filter: `must` (all hold), `should` (one does), `must_not` (none does): lists of conditions.
            A condition is a filter, `{key, match: {value | any | except}}`, `{key, range: {gt, gte,
            lt, lte}}`, `{is_empty: {key}}` or `{has_id: [..]}`.
        exclude_items: Ids of items to leave out.
        n: How many; else as the scenario says.
        exclude_seen: Leave out what the user has rated or consumed; or names of types.
        include: What to say of each item: `title`, `image`, `categories`, `attributes`,
            `attributes.NAME`, and in lists for a user `reasons`.
        offset: How many of the best to leave out.
        user_id: Leave out what this user has seen.
        scenario: Rules that are stored.
        """
        return await self._ask(
            Call(
                "POST",
                "/trending",
                body=given(
                    filter=filter,
                    exclude_items=exclude_items,
                    candidate_items=candidate_items,
                    boosts=boosts,
                    diversity=diversity,
                    per_category=per_category,
                    pinned=pinned,
                    n=n,
                    exclude_seen=exclude_seen,
                    include=include,
                    offset=offset,
                    user_id=user_id,
                    scenario=scenario,
                ),
                is_repeatable=True,
            ),
            models.Trending,
        )

    async def latest(
        self,
        *,
        n: int | None = None,
        offset: int | None = None,
        user_id: str | None = None,
        exclude_seen: bool | str | None = None,
        category: str | None = None,
        exclude_items: str | None = None,
        scenario: str | None = None,
        include: str | Sequence[str] | None = None,
    ) -> models.Latest:
        """The latest items.

        `GET /latest`; needs the role `read`.

        n: How many; else as the scenario says.
        offset: How many of the best to leave out.
        user_id: Leave out what this user has seen.
        exclude_seen: Leave out what the user has rated or consumed; or names of types, with commas
            between.
        category: Only items of this category, or any of several with commas.
        exclude_items: Ids of items to leave out, with commas between.
        scenario: Rules that are stored.
        include: What to say of each item, with commas between: `title`, `image`, `categories`,
            `attributes`, `attributes.NAME`, and in lists for a user `reasons`.
        """
        return await self._ask(
            Call(
                "GET",
                "/latest",
                query={
                    "n": n,
                    "offset": offset,
                    "user_id": user_id,
                    "exclude_seen": exclude_seen,
                    "category": category,
                    "exclude_items": exclude_items,
                    "scenario": scenario,
                    "include": include,
                },
                is_repeatable=True,
            ),
            models.Latest,
        )

    async def latest_by_rules(
        self,
        *,
        filter: Mapping[str, Any] | UnsetType | None = UNSET,
        exclude_items: Sequence[str | int] | UnsetType | None = UNSET,
        candidate_items: Sequence[str | int] | UnsetType | None = UNSET,
        boosts: Sequence[models.Boost | Mapping[str, Any]] | UnsetType | None = UNSET,
        diversity: models.Diversity | Mapping[str, Any] | UnsetType | None = UNSET,
        per_category: int | UnsetType | None = UNSET,
        pinned: Sequence[models.Pin | Mapping[str, Any]] | UnsetType | None = UNSET,
        n: int | UnsetType | None = UNSET,
        exclude_seen: bool | Sequence[str] | UnsetType | None = UNSET,
        include: str | Sequence[str] | UnsetType | None = UNSET,
        offset: int | UnsetType = UNSET,
        user_id: str | int | UnsetType | None = UNSET,
        scenario: str | UnsetType | None = UNSET,
    ) -> models.Latest:
        """The latest items, under rules.

        `POST /latest`; needs the role `read`.

        filter: `must` (all hold), `should` (one does), `must_not` (none does): lists of conditions.
            A condition is a filter, `{key, match: {value | any | except}}`, `{key, range: {gt, gte,
            lt, lte}}`, `{is_empty: {key}}` or `{has_id: [..]}`.
        exclude_items: Ids of items to leave out.
        n: How many; else as the scenario says.
        exclude_seen: Leave out what the user has rated or consumed; or names of types.
        include: What to say of each item: `title`, `image`, `categories`, `attributes`,
            `attributes.NAME`, and in lists for a user `reasons`.
        offset: How many of the best to leave out.
        user_id: Leave out what this user has seen.
        scenario: Rules that are stored.
        """
        return await self._ask(
            Call(
                "POST",
                "/latest",
                body=given(
                    filter=filter,
                    exclude_items=exclude_items,
                    candidate_items=candidate_items,
                    boosts=boosts,
                    diversity=diversity,
                    per_category=per_category,
                    pinned=pinned,
                    n=n,
                    exclude_seen=exclude_seen,
                    include=include,
                    offset=offset,
                    user_id=user_id,
                    scenario=scenario,
                ),
                is_repeatable=True,
            ),
            models.Latest,
        )

    async def explain(
        self,
        user_id: str | int,
        item_id: str | int,
        *,
        n: int | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> models.Explained:
        """Which of the user's own ratings moved a score, and by how much.

        `GET /explain/{user_id}/{item_id}`; needs the role `read`.

        user_id: 1 to 256 bytes of UTF-8.
        item_id: 1 to 256 bytes of UTF-8.
        n: The strongest alone; `rest` is what the others add.
        context: The context, by field.
        """
        return await self._ask(
            Call(
                "GET",
                f"/explain/{part(user_id)}/{part(item_id)}",
                query={"n": n, "context": context},
                is_repeatable=True,
            ),
            models.Explained,
        )

    async def find_users(
        self, *, prefix: str | None = None, n: int | None = None, cursor: str | None = None
    ) -> models.UsersPage:
        """Users whose ids begin with a text. A call looks through a part of the store, so a page may
        be short.

        `GET /users`; needs the role `read`.

        prefix: How ids begin.
        n: About how many.
        cursor: `next` of the page before.
        """
        return await self._ask(
            Call("GET", "/users", query={"prefix": prefix, "n": n, "cursor": cursor}, is_repeatable=True),
            models.UsersPage,
        )

    async def put_users(self, rows: AsyncRows[models.UserRowIn]) -> models.StoredUsers:
        """Say what is known of users besides ratings: one, an array, or one a line. One bad row
        refuses all.

        `POST /users`; needs the role `operate`.
        """
        return await self._send_rows("/users", rows, models.StoredUsers, is_repeatable=True)

    async def get_user(self, user_id: str | int) -> models.UserOut:
        """What is known of a user.

        `GET /users/{user_id}`; needs the role `read`.

        user_id: 1 to 256 bytes of UTF-8.
        """
        return await self._ask(Call("GET", f"/users/{part(user_id)}", is_repeatable=True), models.UserOut)

    async def forget_user(self, user_id: str | int) -> models.Receipt:
        """Forget a user everywhere.

        `DELETE /users/{user_id}`; needs the role `operate`.

        user_id: 1 to 256 bytes of UTF-8.
        """
        return await self._ask(Call("DELETE", f"/users/{part(user_id)}", is_repeatable=True), models.Receipt)

    async def get_user_ratings(
        self, user_id: str | int, *, n: int | None = None, offset: int | None = None
    ) -> models.RatingsPage:
        """The ratings of a user, the latest first.

        `GET /users/{user_id}/ratings`; needs the role `read`.

        user_id: 1 to 256 bytes of UTF-8.
        n: How many.
        offset: How many of the latest to leave out.
        """
        return await self._ask(
            Call(
                "GET", f"/users/{part(user_id)}/ratings", query={"n": n, "offset": offset}, is_repeatable=True
            ),
            models.RatingsPage,
        )

    async def get_receipt(self, receipt: str) -> models.Receipt:
        """Whether the archive has forgotten a user, or has the ratings of an item taken back, too;
        `detail` says what a pending erasure waits for.

        `GET /receipts/{receipt}`; needs the role `read`.

        receipt: 1 to 256 bytes of UTF-8.
        """
        return await self._ask(Call("GET", f"/receipts/{part(receipt)}", is_repeatable=True), models.Receipt)

    async def get_item(self, item_id: str | int, *, distribution: bool | None = None) -> models.ItemOut:
        """What is known of an item.

        `GET /items/{item_id}`; needs the role `read`.

        item_id: 1 to 256 bytes of UTF-8.
        distribution: The probability of each step of the scale too, of a rating by an unknown user.
        """
        return await self._ask(
            Call("GET", f"/items/{part(item_id)}", query={"distribution": distribution}, is_repeatable=True),
            models.ItemOut,
        )

    async def put_item(
        self,
        item_id: str | int,
        *,
        title: str | UnsetType = UNSET,
        categories: Sequence[str] | UnsetType = UNSET,
        attributes: Mapping[str, Any] | UnsetType = UNSET,
        hidden: bool | UnsetType = UNSET,
        available_from: float | str | UnsetType | None = UNSET,
        available_until: float | str | UnsetType | None = UNSET,
        image: str | UnsetType | None = UNSET,
    ) -> models.ItemShown:
        """Say what is known of an item; what was said before is replaced.

        `PUT /items/{item_id}`; needs the role `operate`.

        item_id: 1 to 256 bytes of UTF-8.
        attributes: Numbers, texts, lists of texts, times (ISO 8601, or seconds since 1970) and
            booleans, by name. The first value of a name fixes its type.
        """
        return await self._ask(
            Call(
                "PUT",
                f"/items/{part(item_id)}",
                body=given(
                    title=title,
                    categories=categories,
                    attributes=attributes,
                    hidden=hidden,
                    available_from=available_from,
                    available_until=available_until,
                    image=image,
                ),
                is_repeatable=True,
            ),
            models.ItemShown,
        )

    async def patch_item(
        self,
        item_id: str | int,
        *,
        title: str | UnsetType = UNSET,
        categories: Sequence[str] | UnsetType = UNSET,
        attributes: Mapping[str, Any] | UnsetType = UNSET,
        hidden: bool | UnsetType = UNSET,
        available_from: float | str | UnsetType | None = UNSET,
        available_until: float | str | UnsetType | None = UNSET,
        image: str | UnsetType | None = UNSET,
    ) -> models.ItemShown:
        """Change some of what is known of an item.

        `PATCH /items/{item_id}`; needs the role `operate`.

        item_id: 1 to 256 bytes of UTF-8.
        attributes: Numbers, texts, lists of texts, times (ISO 8601, or seconds since 1970) and
            booleans, by name. The first value of a name fixes its type.
        """
        return await self._ask(
            Call(
                "PATCH",
                f"/items/{part(item_id)}",
                body=given(
                    title=title,
                    categories=categories,
                    attributes=attributes,
                    hidden=hidden,
                    available_from=available_from,
                    available_until=available_until,
                    image=image,
                ),
                is_repeatable=True,
            ),
            models.ItemShown,
        )

    async def delete_item(
        self, item_id: str | int, *, ratings: Literal["keep", "delete"] | None = None
    ) -> models.DeletedItem:
        """Delete an item: it is in no list any more.

        `DELETE /items/{item_id}`; needs the role `operate`.

        item_id: 1 to 256 bytes of UTF-8.
        ratings: `delete`: its ratings are taken back from all users, too; the answer is then 202.
        """
        return await self._ask(
            Call("DELETE", f"/items/{part(item_id)}", query={"ratings": ratings}, is_repeatable=True),
            models.DeletedItem,
        )

    async def neighbours(
        self,
        user_id: str | int,
        *,
        n: int | None = None,
        offset: int | None = None,
        least: float | None = None,
    ) -> models.NeighboursOut:
        """The users whose taste is nearest to a user's, among the most active ones.

        `GET /neighbours/{user_id}`; needs the role `read`.

        user_id: 1 to 256 bytes of UTF-8.
        n: How many.
        offset: How many of the nearest to leave out.
        least: Of at least this similarity.
        """
        return await self._ask(
            Call(
                "GET",
                f"/neighbours/{part(user_id)}",
                query={"n": n, "offset": offset, "least": least},
                is_repeatable=True,
            ),
            models.NeighboursOut,
        )

    async def get_attributes(self, user_id: str | int) -> models.AttributesOut:
        """What is known of a user besides ratings.

        `GET /users/{user_id}/attributes`; needs the role `read`.

        user_id: 1 to 256 bytes of UTF-8.
        """
        return await self._ask(
            Call("GET", f"/users/{part(user_id)}/attributes", is_repeatable=True), models.AttributesOut
        )

    async def put_attributes(self, user_id: str | int, attributes: Mapping[str, Any]) -> models.AttributesOut:
        """Say what is known of a user besides ratings; what was said before is replaced.

        `PUT /users/{user_id}/attributes`; needs the role `operate`.

        user_id: 1 to 256 bytes of UTF-8.
        """
        return await self._ask(
            Call("PUT", f"/users/{part(user_id)}/attributes", body=encoded(attributes), is_repeatable=True),
            models.AttributesOut,
        )

    async def patch_attributes(
        self, user_id: str | int, attributes: Mapping[str, Any]
    ) -> models.AttributesOut:
        """Change some attributes of a user.

        `PATCH /users/{user_id}/attributes`; needs the role `operate`.

        user_id: 1 to 256 bytes of UTF-8.
        """
        return await self._ask(
            Call("PATCH", f"/users/{part(user_id)}/attributes", body=encoded(attributes), is_repeatable=True),
            models.AttributesOut,
        )

    async def delete_attributes(self, user_id: str | int) -> models.DeletedAttributes:
        """Delete the attributes of a user; the ratings stay.

        `DELETE /users/{user_id}/attributes`; needs the role `operate`.

        user_id: 1 to 256 bytes of UTF-8.
        """
        return await self._ask(
            Call("DELETE", f"/users/{part(user_id)}/attributes", is_repeatable=True), models.DeletedAttributes
        )

    async def list_attributes(
        self, *, n: int | None = None, cursor: str | None = None
    ) -> models.AttributesPage:
        """List the users with attributes.

        `GET /attributes`; needs the role `read`.

        n: How many users.
        cursor: `next` of the page before.
        """
        return await self._ask(
            Call("GET", "/attributes", query={"n": n, "cursor": cursor}, is_repeatable=True),
            models.AttributesPage,
        )

    def export_users(self) -> AsyncIterator[models.UserRow]:
        """Return the attributes of all users, one user a line, as POST /users takes them.

        `GET /export/users`; needs the role `read`.
        """
        return self._ask_lines(Call("GET", "/export/users", is_repeatable=True), models.UserRow)

    async def list_items(
        self,
        *,
        n: int | None = None,
        cursor: str | None = None,
        prefix: str | None = None,
        by: Literal["id", "title"] | None = None,
        of: Literal["catalogue", "all"] | None = None,
        ids: Sequence[str] | None = None,
    ) -> models.ItemPage:
        """List the items of the catalogue, or all that are known; hidden ones too.

        `GET /items`; needs the role `read`.

        n: How many.
        cursor: `next` of the page before.
        prefix: What the ids, or titles, begin with.
        by: In which order.
        of: `all`: also items that ratings or other events alone name; in the order of ids.
        ids: These alone: a JSON array of at most 60 ids. Path and query of a call have 8,190 bytes
            at most, percent-encoded: of long ids fewer fit in.
        """
        return await self._ask(
            Call(
                "GET",
                "/items",
                query={"n": n, "cursor": cursor, "prefix": prefix, "by": by, "of": of, "ids": ids},
                is_repeatable=True,
            ),
            models.ItemPage,
        )

    async def put_items(self, rows: AsyncRows[models.ItemRowIn]) -> models.Stored:
        """Say what is known of items: one, an array, or one a line. One bad row refuses all.

        `POST /items`; needs the role `operate`.
        """
        return await self._send_rows("/items", rows, models.Stored, is_repeatable=True)

    def export_items(self) -> AsyncIterator[models.ItemLine]:
        """Return all items of the catalogue, one a line, as POST /items takes them.

        `GET /export/items`; needs the role `read`.
        """
        return self._ask_lines(Call("GET", "/export/items", is_repeatable=True), models.ItemLine)

    async def get_schema(self) -> models.SchemaBody:
        """Return the type of each attribute, told or inferred at its first use, and the fields of
        contexts.

        `GET /schema`; needs the role `read`.
        """
        return await self._ask(Call("GET", "/schema", is_repeatable=True), models.SchemaBody)

    async def put_schema(
        self,
        *,
        items: Mapping[str, Literal["boolean", "list", "number", "text", "time"]] | UnsetType = UNSET,
        users: Mapping[str, Literal["boolean", "list", "number", "text", "time"]] | UnsetType = UNSET,
        context: Mapping[str, models.ContextFieldBody | Mapping[str, Any]] | UnsetType = UNSET,
    ) -> models.SchemaBody:
        """Tell types of attributes, and fields of contexts, before their first use; those of others
        stay.

        `PUT /schema`; needs the role `operate`.
        """
        return await self._ask(
            Call("PUT", "/schema", body=given(items=items, users=users, context=context), is_repeatable=True),
            models.SchemaBody,
        )

    async def delete_item_attribute(self, attribute: str) -> models.SchemaBody:
        """Take an attribute from all items, and free its name, which may then have another type.

        `DELETE /schema/items/{attribute}`; needs the role `operate`.

        attribute: 1 to 256 bytes of UTF-8.
        """
        return await self._ask(
            Call("DELETE", f"/schema/items/{part(attribute)}", is_repeatable=True), models.SchemaBody
        )

    async def delete_user_attribute(self, attribute: str) -> models.SchemaBody:
        """Take an attribute from all users, and free its name, which may then have another type.

        `DELETE /schema/users/{attribute}`; needs the role `operate`.

        attribute: 1 to 256 bytes of UTF-8.
        """
        return await self._ask(
            Call("DELETE", f"/schema/users/{part(attribute)}", is_repeatable=True), models.SchemaBody
        )

    async def delete_context_field(self, field: str) -> models.SchemaBody:
        """Delete a field of contexts, and free its name: what ratings have of it is neither shown nor
        learned.

        `DELETE /schema/context/{field}`; needs the role `operate`.

        field: 1 to 256 bytes of UTF-8.
        """
        return await self._ask(Call("DELETE", f"/schema/context/{part(field)}"), models.SchemaBody)

    async def train(
        self,
        *,
        nb_users: int | UnsetType = UNSET,
        nb_items: int | UnsetType = UNSET,
        user_history: Sequence[str | int] | UnsetType = UNSET,
        item_history: Sequence[str | int] | UnsetType = UNSET,
        rating_history: Sequence[float] | UnsetType = UNSET,
        variables_history: Sequence[Sequence[float]] | UnsetType | None = UNSET,
        replace: bool | UnsetType = UNSET,
        next_user: str | int | UnsetType | None = UNSET,
        next_item: str | int | UnsetType | None = UNSET,
        wait: int | None = None,
    ) -> models.TrainedOut | models.TrainingOut:
        """Begin a new history with these ratings; without a body, fit again on all that is known.

        `POST /train`; needs the role `operate`.

        wait: Seconds until the answer is 202; 50 where it is left out.
        """
        answer: models.TrainedOut | models.TrainingOut = await self._ask_either(
            Call(
                "POST",
                "/train",
                query={"wait": wait},
                body=given_any(
                    nb_users=nb_users,
                    nb_items=nb_items,
                    user_history=user_history,
                    item_history=item_history,
                    rating_history=rating_history,
                    variables_history=variables_history,
                    replace=replace,
                    next_user=next_user,
                    next_item=next_item,
                ),
                longer_s=60.0 if wait is None else float(wait),
            ),
            {200: models.TrainedOut, 202: models.TrainingOut},
        )
        return answer

    async def get_training(self, receipt: str) -> models.TrainingOut:
        """How far a training has come.

        `GET /train/{receipt}`; needs the role `read`.

        receipt: 1 to 256 bytes of UTF-8.
        """
        return await self._ask(Call("GET", f"/train/{part(receipt)}", is_repeatable=True), models.TrainingOut)

    async def get_generations(self) -> models.GenerationsOut:
        """The generations that are kept.

        `GET /generations`; needs the role `read`.
        """
        return await self._ask(Call("GET", "/generations", is_repeatable=True), models.GenerationsOut)

    async def activate(self, generation: int, *, hold: bool | None = None) -> models.Activated:
        """Make a generation that is kept the live one.

        `POST /generations/{generation}/activate`; needs the role `operate`.

        generation: Its number.
        hold: Whether automatic refits wait from now on; left out, they do where it is not the
            newest.
        """
        return await self._ask(
            Call(
                "POST", f"/generations/{part(generation)}/activate", query={"hold": hold}, is_repeatable=True
            ),
            models.Activated,
        )

    async def livez(self) -> models.Alive:
        """Whether the process runs.

        `GET /livez`; needs no key.
        """
        return await self._ask(Call("GET", "/livez", is_repeatable=True), models.Alive)

    async def readyz(self) -> models.Ready:
        """Whether to send requests here.

        `GET /readyz`; needs no key.
        """
        return await self._ask(Call("GET", "/readyz", is_repeatable=True), models.Ready)

    async def access(self) -> models.AccessOut:
        """What the caller may do.

        `GET /access`; needs no key.
        """
        return await self._ask(Call("GET", "/access", is_repeatable=True), models.AccessOut)

    async def settings(self) -> models.SettingsOut:
        """The settings that are in force.

        `GET /settings`; needs the role `operate`.
        """
        return await self._ask(Call("GET", "/settings", is_repeatable=True), models.SettingsOut)

    async def get_keys(self) -> models.KeysOut:
        """The keys of the API, which themselves are not stored.

        `GET /keys`; needs the role `operate`.
        """
        return await self._ask(Call("GET", "/keys", is_repeatable=True), models.KeysOut)

    async def add_key(
        self, *, name: str, role: Literal["metrics", "operate", "rate", "read"]
    ) -> models.KeyMade:
        """Make a key. Workers let it in within two seconds; from the first key on all calls need one.
        One of the role `operate` comes first, so that there is one that may make others.

        `POST /keys`; needs the role `operate`.
        """
        return await self._ask(Call("POST", "/keys", body=given(name=name, role=role)), models.KeyMade)

    async def remove_key(self, name: str) -> models.KeyRemoved:
        """Let the keys of a name in no longer, within two seconds. The last one of the role `operate`
        stays while there are others. Keys go on being asked for after the very last: `foldin keys
        add` makes another.

        `DELETE /keys/{name}`; needs the role `operate`.

        name: Its name.
        """
        return await self._ask(Call("DELETE", f"/keys/{part(name)}", is_repeatable=True), models.KeyRemoved)

    async def decide_scale(
        self, *, low: float, high: float, step: float | UnsetType | None = UNSET
    ) -> models.ScaleOut:
        """Decide on the scale of the ratings, before the first one is stored. May be repeated.

        `PUT /scale`; needs the role `operate`.
        """
        return await self._ask(
            Call("PUT", "/scale", body=given(low=low, high=high, step=step), is_repeatable=True),
            models.ScaleOut,
        )

    async def status(self) -> models.Status:
        """What is live, in numbers.

        `GET /status`; needs the role `metrics`.
        """
        return await self._ask(Call("GET", "/status", is_repeatable=True), models.Status)

    async def history(self, *, seconds: int | None = None) -> models.HistoryOut:
        """How all replicas and the trainer have been, by interval, and who is at work now.

        `GET /history`; needs the role `read`.

        seconds: How far back.
        """
        return await self._ask(
            Call("GET", "/history", query={"seconds": seconds}, is_repeatable=True), models.HistoryOut
        )

    async def metrics(self) -> str:
        """For Prometheus.

        `GET /metrics`; needs the role `metrics`.
        """
        return await self._ask_text(Call("GET", "/metrics", is_repeatable=True))

    async def describe(self) -> dict[str, Any]:
        """This description.

        `GET /openapi.json`; needs no key.
        """
        return await self._ask(Call("GET", "/openapi.json", is_repeatable=True), dict[str, Any])

    async def page_file(self, name: str) -> str:
        """A file of the pages.

        `GET /static/{name}`; needs no key.

        name: The file.
        """
        return await self._ask_text(Call("GET", f"/static/{part(name)}", is_repeatable=True))

    async def page_folder_file(self, folder: str, name: str) -> str:
        """A file of a part of the pages.

        `GET /static/{folder}/{name}`; needs no key.

        folder: The folder.
        name: The file.
        """
        return await self._ask_text(Call("GET", f"/static/{part(folder)}/{part(name)}", is_repeatable=True))

    async def docs_page(self) -> str:
        """This description, to be read and tried.

        `GET /docs`; needs no key.
        """
        return await self._ask_text(Call("GET", "/docs", is_repeatable=True))

    async def page(self) -> str:
        """The dashboard.

        `GET /`; needs no key.
        """
        return await self._ask_text(Call("GET", "/", is_repeatable=True))

    async def manual(self) -> str:
        """The manual; where it is not built, how it is.

        `GET /manual`; needs no key.
        """
        return await self._ask_text(Call("GET", "/manual", is_repeatable=True))

    async def manual_page(self, page: str) -> str:
        """A page of the manual; where it is not built, how it is.

        `GET /manual/{page}`; needs no key.

        page: A page of it, or a file of a page.
        """
        return await self._ask_text(Call("GET", f"/manual/{part(page)}", is_repeatable=True))
