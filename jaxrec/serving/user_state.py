"""The last interactions of each user, in Redis."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

from jaxrec.errors import ConfigError
from jaxrec.serving.requests import parse_json


class Interaction(NamedTuple):
    """One interaction.

    Attributes:
      item: original id.
      timestamp: seconds since 1970, or None.
    """

    item: str
    timestamp: int | None


class StateError(ValueError):
    """The list of a user holds something else than interactions."""


class UserState:
    """A list per user with the last interactions, oldest first.

    Args:
      url: of the Redis server, as in ``redis://localhost:6379/0``.
      last: interactions kept per user.
      prefix: of the keys.

    Raises:
      ConfigError: the package redis is not installed, or the URL is none.
    """

    def __init__(self, url: str, last: int, prefix: str = "jaxrec:user:"):
        try:
            import redis.asyncio
        except ImportError:
            raise ConfigError("--redis needs the package redis: pip install 'jaxrec[serve]'") from None
        try:
            self._client = redis.asyncio.from_url(url, socket_timeout=2, socket_connect_timeout=2)
        except ValueError as error:
            raise ConfigError(
                f"--redis must be a URL as in redis://localhost:6379/0, got {url!r}: {error}"
            ) from None
        self.last, self._prefix = last, prefix

    @staticmethod
    def failures() -> tuple[type[Exception], ...]:
        """Exceptions of a server that does not answer."""
        import redis

        return (redis.RedisError, OSError)

    async def read(self, user: str) -> list[Interaction]:
        """Return the last interactions of a user, oldest first; none of an unknown user.

        They are in the order of their timestamps where all have one, else in that of their arrival.

        Raises:
          StateError: an entry is no interaction.
        """
        key = self._prefix + user
        # Other processes may write the list, and not cut it.
        kept = [_interaction(key, value) for value in await self._client.lrange(key, -self.last, -1)]
        if all(interaction.timestamp is not None for interaction in kept):
            kept.sort(key=lambda interaction: interaction.timestamp or 0)
        return kept

    async def append(self, user: str, interactions: list[Interaction]) -> int:
        """Add interactions at the end and drop the oldest beyond ``last``; return how many are kept."""
        key = self._prefix + user
        pipeline: Any = self._client.pipeline(transaction=True)
        pipeline.rpush(key, *(json.dumps(list(interaction)) for interaction in interactions))
        pipeline.ltrim(key, -self.last, -1)
        pipeline.llen(key)
        return int((await pipeline.execute())[-1])

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _interaction(key: str, value: bytes) -> Interaction:
    """Read an entry of a list, ``["item", seconds]``."""
    try:
        item, moment = parse_json(value)
        if isinstance(item, bool) or not isinstance(item, (str, int)):
            raise ValueError
        if moment is not None and (
            isinstance(moment, bool) or not math.isfinite(moment) or abs(moment) >= 2**62
        ):
            raise ValueError
        return Interaction(str(item), None if moment is None else int(moment))
    except (ValueError, TypeError, OverflowError):
        raise StateError(
            f'{key!r} must hold entries of the form ["item", seconds], got {value[:60]!r}'
        ) from None
