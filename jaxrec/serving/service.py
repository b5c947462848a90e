"""Service of a run: what each path of the server answers, and its limits."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from jaxrec.options import Range, validate
from jaxrec.serving.batching import MicroBatcher
from jaxrec.serving.explain import Explanation, explain
from jaxrec.serving.lists import REQUESTS
from jaxrec.serving.recommender import Recommendation, Recommender
from jaxrec.serving.requests import Prepared, Request
from jaxrec.serving.similar import SimilarItems
from jaxrec.serving.user_state import Interaction, StateError, UserState

#: Characters of the id of an item in an event: the lists of users are kept.
MOST_ID = 1024

#: Fields of a request for a list, beside "user".
FIELDS = tuple(field.name for field in dataclasses.fields(Request) if field.name != "user")


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """Options of the server.

    Attributes:
      host: address to listen on; the default answers this machine only.
      port: port to listen on.
      max_k: longest list that a request may ask for.
      max_body: bytes of the largest request.
      max_history: items of the longest history that a request may hold.
      timeout: seconds after which a request that was not received or not answered ends.
      max_waiting: requests that wait for the model at most; further ones are refused at once.
      max_connections: open connections at most.
      redis: URL of a Redis server for the last interactions of users, as in redis://localhost:6379/0; empty = none.
      last: interactions kept per user.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Range("[0, 65535]")] = 8000
    max_k: Annotated[int, Range("[1, inf)")] = 1000
    max_body: Annotated[int, Range("[1, inf)")] = 1 << 20
    max_history: Annotated[int, Range("[1, inf)")] = 10_000
    timeout: Annotated[float, Range("(0, inf)")] = 10.0
    max_waiting: Annotated[int, Range("[1, inf)")] = 1024
    max_connections: Annotated[int, Range("[1, inf)")] = 1024
    redis: str = ""
    last: Annotated[int, Range("[1, inf)")] = 50

    def __post_init__(self) -> None:
        """Check each option."""
        validate(self, "")


class HttpError(Exception):
    """A request that is answered with a status of 400 or more and a message."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Service:
    """Answers of the routes, from one model.

    Args:
      recommender: of a finished run.
      config: limits.
    """

    def __init__(self, recommender: Recommender, config: ServerConfig):
        import prometheus_client

        self.recommender, self.config = recommender, config
        self.neighbours = SimilarItems(recommender)
        self.state = UserState(config.redis, config.last) if config.redis else None
        self.registry = prometheus_client.CollectorRegistry()
        self.requests = prometheus_client.Counter(
            "jaxrec_requests", "Requests by path and status", ["path", "status"], registry=self.registry
        )
        self.seconds = prometheus_client.Histogram(
            "jaxrec_request_seconds",
            "Seconds from the request to its answer",
            ["path"],
            registry=self.registry,
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
        )
        self.batches = prometheus_client.Histogram(
            "jaxrec_batch_size",
            "Requests answered together",
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )
        self.batcher: MicroBatcher[Prepared, Recommendation] = MicroBatcher(
            recommender.answer_prepared, REQUESTS, config.max_waiting, self.batches.observe
        )
        prometheus_client.Gauge(
            "jaxrec_waiting", "Requests in the queue", registry=self.registry
        ).set_function(lambda: self.batcher.waiting)
        titles = recommender.items.item_titles
        self._titles = [str(title) for title in (recommender.items.item_ids if titles is None else titles)]
        self._search = TitleSearch(self._titles)

    def warm_up(self) -> None:
        """Compile the usual programs before the first request."""
        self.recommender.lists.warm_up(self.recommender.needs_times)
        item = str(self.recommender.items.item_ids[0])
        if self.recommender.items.n_items > 1:
            self.neighbours.of([item], 1)

    async def recommend(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer ``{"history": [...], "k": 10, ...}`` or ``{"user": "...", ...}``."""
        check_fields(body, ("user", *FIELDS))
        request = self._request(body)
        has_history = body.get("history") is not None
        if body.get("user") is not None:
            request = await self._of_user(body["user"], request, has_history)
        elif not has_history:
            raise HttpError(400, "expected a field history (a list of item ids) or user, got neither")
        prepared = (await asyncio.to_thread(self.recommender.prepare, [request]))[0]
        return dataclasses.asdict(await self.batcher.submit(prepared))

    def _request(self, body: dict[str, Any]) -> Request:
        values = {name: body[name] for name in FIELDS if body.get(name) is not None}
        history = values.setdefault("history", [])
        if not isinstance(history, list) or not all(
            isinstance(item, (str, int)) and not isinstance(item, bool) for item in history
        ):
            raise HttpError(400, f"history must be a list of item ids, got {short(history)}")
        if len(history) > self.config.max_history:
            raise HttpError(
                400, f"history must have at most {self.config.max_history} items, got {len(history)}"
            )
        k = values.get("k", 10)
        if isinstance(k, int) and not isinstance(k, bool) and k > self.config.max_k:
            raise HttpError(400, f"k must be at most {self.config.max_k} (--max-k), got {short(k)}")
        for name in ("exclude", "allow", "exclude_attributes", "allow_attributes", "timestamps"):
            if not isinstance(values.get(name, []), list):
                raise HttpError(400, f"{name} must be a list, got {short(values[name])}")
        if "k" not in values:
            values["k"] = min(10, self.recommender.items.n_items)
        return Request(**values)

    async def _of_user(self, user: Any, request: Request, has_history: bool) -> Request:
        """The request with what the server knows of the user: the last interactions, and who it is."""
        reads_users = self.recommender.needs_users
        if has_history and self.state is None and not reads_users:
            raise HttpError(
                400,
                "user beside history needs a server with user state, or a model that reads whose history it is: leave user "
                "out, or start the server with --redis URL",
            )
        if self.state is not None or not (reads_users and has_history):
            request = await self._with_state(user, request)
        return dataclasses.replace(request, user=self._user(user)) if reads_users else request

    async def _with_state(self, user: Any, request: Request) -> Request:
        """The request with the user's last interactions before its own history."""
        kept = await self._state(self._user(user), "read")
        if self.recommender.needs_times:
            kept = sorted(kept, key=lambda interaction: interaction.timestamp or 0)
        history = [interaction.item for interaction in kept] + list(request.history)
        times = None
        if self.recommender.needs_times:
            times = [interaction.timestamp or 0 for interaction in kept] + list(request.timestamps or ())
        return dataclasses.replace(request, history=history, timestamps=times)

    async def events(self, body: dict[str, Any]) -> dict[str, Any]:
        """Add ``{"user": "...", "item": "...", "timestamp": seconds}`` to the state of a user."""
        check_fields(body, ("user", "item", "timestamp"))
        user, item, moment = self._user(body.get("user")), body.get("item"), body.get("timestamp")
        if not isinstance(item, (str, int)) or isinstance(item, bool) or len(str(item)) > MOST_ID:
            raise HttpError(
                400, f"item must be an item id of at most {MOST_ID} characters, got {short(item)}"
            )
        if moment is not None and (
            not isinstance(moment, int) or isinstance(moment, bool) or abs(moment) >= 2**62
        ):
            raise HttpError(400, f"timestamp must be whole seconds since 1970, got {short(moment)}")
        if moment is None and self.recommender.needs_times:
            moment = int(time.time())
        return {"kept": await self._state(user, "append", [Interaction(str(item), moment)])}

    async def _state(self, user: str, method: str, *arguments: Any) -> Any:
        if self.state is None:
            raise HttpError(
                400, "user needs a server with user state: start it with --redis URL, or give history"
            )
        try:
            return await getattr(self.state, method)(user, *arguments)
        except UserState.failures() as error:
            raise HttpError(503, f"the user state does not answer: {error}") from None
        except StateError as error:
            raise HttpError(503, f"the user state cannot be used: {error}") from None

    def _user(self, user: Any) -> str:
        if not isinstance(user, (str, int)) or isinstance(user, bool) or not 0 < len(str(user)) <= 256:
            raise HttpError(400, f"user must be a text of 1 to 256 characters, got {short(user)}")
        return str(user)

    async def similar(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer ``{"item": "...", "k": 10}``."""
        check_fields(body, ("item", "k"))
        k = body.get("k", min(10, self.recommender.items.n_items - 1))
        if isinstance(k, int) and k > self.config.max_k:
            raise HttpError(400, f"k must be at most {self.config.max_k} (--max-k), got {short(k)}")
        if self.recommender.items.item_index(body.get("item")) is None:
            raise HttpError(404, f"item must be an id of the catalogue, got {short(body.get('item'))}")
        answers = await self.batcher.in_thread(self.neighbours.of, [body["item"]], k)
        return dataclasses.asdict(answers[0])

    async def explain(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer ``{"history": [...], "item": "..."}``, with ``"user"`` for a model that reads whose history it is."""
        check_fields(body, ("history", "item", "timestamps", "user"))
        request = self._request({name: body.get(name) for name in ("history", "timestamps")})
        answer: Explanation = await self.batcher.in_thread(
            explain, self.recommender, request.history, body.get("item"), request.timestamps, body.get("user")
        )
        return dataclasses.asdict(answer)

    def find(self, text: str, count: int = 20) -> dict[str, Any]:
        """Items whose titles (or ids) contain a text, those that start with it first."""
        ids = self.recommender.items.item_ids
        places = self._search.find(text, count)
        return {"items": [{"item": str(ids[place]), "title": self._titles[place]} for place in places]}

    def health(self) -> dict[str, Any]:
        """Name of the run, number of items, requests waiting."""
        return {
            "status": "ok",
            "run": self.recommender.run.name,
            "items": self.recommender.items.n_items,
            "waiting": self.batcher.waiting,
        }


class TitleSearch:
    """Finds titles by a part of them, whatever its case; all lie in one text, whose search takes milliseconds per million.

    Args:
      titles: of the items.
    """

    def __init__(self, titles: Sequence[str]):
        folded = [title.casefold().replace("\n", " ") for title in titles]
        self._text = "\n" + "\n".join(folded) + "\n"
        # The line break before each title, and that after the last.
        self._breaks = np.cumsum([0, *(len(title) + 1 for title in folded)])

    def find(self, text: str, count: int) -> list[int]:
        """Indices of ``count`` titles at most: those that start with the text first, in order of the catalogue otherwise."""
        wanted = text.casefold().strip().replace("\n", " ")
        if not wanted:
            return []
        places = self._lines("\n" + wanted, count)
        first = set(places)
        others = self._lines(wanted, count + len(first))
        return (places + [place for place in others if place not in first])[:count]

    def _lines(self, part: str, most: int) -> list[int]:
        lines: list[int] = []
        at = self._text.find(part)
        while at >= 0 and len(lines) < most:
            line = int(np.searchsorted(self._breaks, at, side="right")) - 1
            lines.append(line)
            at = self._text.find(part, int(self._breaks[line + 1]))
        return lines


def check_fields(body: dict[str, Any], known: tuple[str, ...]) -> None:
    """Refuse fields that the path does not have."""
    unknown = [name for name in body if name not in known]
    if unknown:
        raise HttpError(400, f"unknown field {unknown[0]!r}: expected some of {', '.join(known)}")


def short(value: Any) -> str:
    """The value for a message, cut to 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
