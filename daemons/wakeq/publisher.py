"""Publishing messages: `Publisher` for blocking code, `AsyncPublisher` for asyncio.

    with Publisher() as publisher:
        publisher.publish("orders", {"id": 7}, key="customer-3", dedup="order-7")

A publish whose reply is lost may have happened. It is not sent again, because that may add the
message twice, unless it has a deduplication key: then it is, a few times, and happens once.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Self

import redis

from wakeq.config import Config
from wakeq.errors import WakeqError
from wakeq.given_client import GivenClient
from wakeq.message import Fields, Publish
from wakeq.publishing import Core, Exchange, Outcome, Terms, UnconfirmedError, due
from wakeq.redis_client import Servers, explained
from wakeq.redis_url import RedisURL
from wakeq.steps import follow, follow_async

__all__ = ["AsyncPublisher", "Publisher", "UnconfirmedError"]

_NAME = "wakeq-publisher"


class _Publisher:
    """What both publishers are made of."""

    def __init__(self, redis_url: str | RedisURL | None, client: Any, asynchronous: bool) -> None:
        if client is not None:
            if redis_url is not None:
                raise TypeError("give redis_url or client, not both")
            self._servers: Any = GivenClient(client)
        else:
            url = redis_url or Config().common().redis_url
            url = url if isinstance(url, RedisURL) else RedisURL(url)
            self._servers = Servers(url, _NAME, asynchronous)
        self._core = Core(self._servers)

    def _pipeline(self, exchange: Exchange) -> Any:
        pipeline = self._servers.client(exchange.key).pipeline(transaction=False)
        for command in exchange.commands:
            pipeline.execute_command(*command)
        return pipeline

    def _failed(self, exchange: Exchange, error: Exception) -> WakeqError | None:
        """Return what it means; None: it was not sent, and another server may be asked."""
        if self._servers.lost(exchange.key, error):
            return None
        return explained(error, self._servers.url)


class Publisher(_Publisher):
    """Publishes messages; may be used by several threads at once.

    Args:
        redis_url: where Redis is; by default what WAKEQ_REDIS_URL or wakeq.toml says.
        client: a `redis.Redis` to use instead; it is not closed.

    Raises:
        ConfigError: the URL or wakeq.toml is wrong.
    """

    def __init__(self, redis_url: str | RedisURL | None = None, *, client: Any = None) -> None:
        super().__init__(redis_url, client, asynchronous=False)

    def __enter__(self) -> Self:
        """Return the publisher; it connects when it first publishes."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections; the next publish makes new ones."""
        self._servers.close()

    def publish(  # noqa: PLR0913  (one call says all of a message)
        self,
        stream: str,
        body: object = None,
        *,
        fields: Fields | None = None,
        key: str | bytes | None = None,
        dedup: str | None = None,
        dedup_window: float = 86400.0,
        delay: float | None = None,
        at: datetime | float | None = None,
    ) -> str:
        """Publish one message and return its id.

        Args:
            stream: where it goes.
            body: bytes or text as they are, anything else as JSON; None for no body.
            fields: further fields; names may not begin with `wakeq.`.
            key: messages with the same key are handled in order (`order = "key"`).
            dedup: of publishes with the same key only the first is carried out; the others
                return its id.
            dedup_window: how long `dedup` is remembered, in seconds; at least until the message
                has been delivered.
            delay: deliver it in so many seconds, by the clock of Redis.
            at: deliver it then: a datetime with a time zone, or seconds since 1970; at once, if
                that has passed. wakeq-delay delivers it, under the id that is returned.

        Raises:
            UnavailableError: Redis cannot be reached; the message may have been published.
            WakeqError: Redis refuses it; it was not published.
            ValueError, TypeError: it is no message.
        """
        message = _message(stream, body, fields, key)
        terms = Terms(dedup, dedup_window, due(delay, at))
        return str(follow(self._core.publish(message, terms), self._send))

    def publish_many(self, messages: Iterable[Publish], batch: int = 1000) -> list[str]:
        """Publish messages in order, so many at a time, and return their ids.

        The messages of one stream stay in order. A batch is no transaction: other messages may
        come in between, and if one is refused, the others of its batch are published.

        Raises:
            UnconfirmedError: the connection was lost; its `ids` say what is known.
            WakeqError: Redis refuses one; the text says how many were published.
        """
        return list(follow(self._core.publish_many(messages, batch), self._send))

    def _send(self, exchange: Exchange) -> Outcome:
        while True:
            try:
                return list(self._pipeline(exchange).execute(raise_on_error=False))
            except (redis.exceptions.RedisError, OSError) as error:
                if failure := self._failed(exchange, error):
                    return failure


class AsyncPublisher(_Publisher):
    """Publishes messages, for asyncio; arguments and errors are those of `Publisher`."""

    def __init__(self, redis_url: str | RedisURL | None = None, *, client: Any = None) -> None:
        super().__init__(redis_url, client, asynchronous=True)

    async def __aenter__(self) -> Self:
        """Return the publisher; it connects when it first publishes."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections; the next publish makes new ones."""
        await self._servers.aclose()

    async def publish(  # noqa: PLR0913  (as that of Publisher)
        self,
        stream: str,
        body: object = None,
        *,
        fields: Fields | None = None,
        key: str | bytes | None = None,
        dedup: str | None = None,
        dedup_window: float = 86400.0,
        delay: float | None = None,
        at: datetime | float | None = None,
    ) -> str:
        """Publish one message and return its id; see `Publisher.publish`."""
        message = _message(stream, body, fields, key)
        terms = Terms(dedup, dedup_window, due(delay, at))
        return str(await follow_async(self._core.publish(message, terms), self._send))

    async def publish_many(self, messages: Iterable[Publish], batch: int = 1000) -> list[str]:
        """Publish messages and return their ids; see `Publisher.publish_many`."""
        return list(await follow_async(self._core.publish_many(messages, batch), self._send))

    async def _send(self, exchange: Exchange) -> Outcome:
        while True:
            try:
                return list(await self._pipeline(exchange).execute(raise_on_error=False))
            except (redis.exceptions.RedisError, OSError) as error:
                if failure := self._failed(exchange, error):
                    return failure


def _message(
    stream: str,
    body: object,
    fields: Fields | None,
    key: str | bytes | None,
) -> Publish:
    if not stream:
        raise ValueError("a stream must have a name")
    return Publish(stream, body, fields=fields, key=key)
