"""Publishing messages: `Publisher` for blocking code, `AsyncPublisher` for asyncio.

    with Publisher() as publisher:
        publisher.publish("orders", {"id": 7}, key="customer-3", dedup="order-7")

A publish whose reply is lost may have happened. It is not sent again, because that may add the
message twice, unless it has a deduplication key: then it is, a few times, and happens once.

What to send, and what a reply means, is decided once for both classes, in generators. They
yield `_Exchange`, and get the replies, or the error that took their place; or they yield a
number of seconds to wait. The classes do the sending and the waiting.
"""

import asyncio
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, Self

import redis

from wakeq import keys
from wakeq.backoff import Backoff
from wakeq.config import Config
from wakeq.errors import UnavailableError, WakeqError
from wakeq.message import Publish, Value
from wakeq.redis_client import Servers, explained, server_error
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Argument, Command

_NAME = "wakeq-publisher"
_MAX_REDIRECTS = 5
# A batch of large messages is sent before it is full.
_BATCH_BYTES = 8 * 1024 * 1024
# How often a publish with a deduplication key is tried: about three seconds in all.
_TRIES = 6


class UnconfirmedError(UnavailableError):
    """The connection was lost while messages were published; some may have been, unconfirmed.

    Attributes:
        ids: the ids of the messages in the order given, up to the end of the batch that was
            being sent; None for a message of which nothing is known.
        confirmed: how many of them have an id.
    """

    def __init__(self, text: str, ids: list[str | None]) -> None:
        self.ids = ids
        self.confirmed = sum(known is not None for known in ids)
        unknown = len(ids) - self.confirmed
        super().__init__(
            f"{text}; {self.confirmed} messages were published,"
            f" of another {unknown} it is not known"
        )


class _Exchange:
    """Requests for the server that has a key."""

    __slots__ = ("commands", "key")

    def __init__(self, key: str, commands: list[Command]) -> None:
        self.key = key
        self.commands = commands


# What is sent into a generator after an _Exchange; None after a pause.
_Outcome = list[Any] | WakeqError | None
_Steps = Generator[_Exchange | float, _Outcome, Any]


class _GivenClient:
    """Stands for the servers when the caller has a client already, whose it stays."""

    url = "the client given to the publisher"
    cluster = False

    def __init__(self, client: Any) -> None:
        if type(client).__name__ == "RedisCluster":
            raise TypeError("client must not be a RedisCluster: give redis_url, redis+cluster://")
        self._client = client

    def client(self, _key: str) -> Any:
        return self._client

    def redirected(self, _error: BaseException) -> bool:
        return False

    def lost(self, _key: str) -> None:
        pass

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class _Core:
    """Decides what is sent, and what the replies mean."""

    def __init__(self, servers: Any) -> None:
        self.servers = servers
        self._registered: set[str] = set()
        self._once = Script("publish_once")

    def publish(self, message: Publish, dedup: str | None, window_seconds: float) -> _Steps:
        """Publish one message; returns its id."""
        stream = message.stream
        add, whole = self._requests(message, dedup, window_seconds)
        backoff = Backoff(base=0.2, cap=2.0)
        redirects = 0
        while True:
            joined = not self.servers.cluster and stream not in self._registered
            requests = [add, _register([stream])] if joined else [add]
            outcome = yield _Exchange(stream, requests)
            reply: Any = outcome[0] if isinstance(outcome, list) else outcome
            if not isinstance(reply, Exception):
                break
            if self.servers.redirected(reply) and redirects < _MAX_REDIRECTS:
                redirects += 1
                continue
            if _code(reply) == "NOSCRIPT" and add is not whole:
                add = whole
                continue
            error = self._explained(reply, stream)
            if dedup is None or backoff.tries + 1 >= _TRIES or not _may_pass(error):
                raise error
            yield backoff.next()
        yield from self._note_registered({stream})
        return _text(reply[0] if dedup is not None else reply)

    def publish_many(self, messages: Iterable[Publish], batch: int) -> _Steps:
        """Publish messages in batches; returns their ids in the same order."""
        ids: list[str | None] = []
        for chunk in _chunks(messages, batch):
            first = len(ids)
            ids += [None] * len(chunk)
            yield from self._publish_batch(list(enumerate(chunk, first)), ids)
        return ids

    def _publish_batch(self, todo: list[tuple[int, Publish]], ids: list[str | None]) -> _Steps:
        for _ in range(_MAX_REDIRECTS):
            redirected: list[tuple[int, Publish]] = []
            for group in self._by_server(todo):
                outcome = yield self._exchange(group)
                if not isinstance(outcome, list):
                    assert outcome is not None
                    if isinstance(outcome, UnavailableError):
                        raise UnconfirmedError(str(outcome), ids)
                    raise _with_count(outcome, ids)
                failure: WakeqError | None = None
                for (index, message), reply in zip(group, outcome, strict=False):
                    if not isinstance(reply, Exception):
                        ids[index] = _text(reply)
                    elif self.servers.redirected(reply):
                        redirected.append((index, message))
                    else:
                        failure = failure or self._explained(reply, message.stream)
                if failure is not None:
                    raise _with_count(failure, ids)
            yield from self._note_registered({message.stream for _, message in todo})
            if not redirected:
                return
            todo = redirected
        raise UnconfirmedError(f"Redis at {self.servers.url} moves the keys around", ids)

    def _exchange(self, group: list[tuple[int, Publish]]) -> _Exchange:
        commands = [_add(message) for _, message in group]
        if not self.servers.cluster:
            new = {message.stream for _, message in group} - self._registered
            commands += [_register(sorted(new))] if new else []
        return _Exchange(group[0][1].stream, commands)

    def _by_server(self, todo: list[tuple[int, Publish]]) -> list[list[tuple[int, Publish]]]:
        if not self.servers.cluster:
            return [todo]
        groups: dict[int, list[tuple[int, Publish]]] = {}
        for item in todo:
            groups.setdefault(id(self.servers.client(item[1].stream)), []).append(item)
        return list(groups.values())

    def _requests(
        self, message: Publish, dedup: str | None, window_seconds: float
    ) -> tuple[Command, Command]:
        """Return the request, and the one to send if the server lacks the script."""
        if dedup is None:
            add = _add(message)
            return add, add
        milliseconds = round(window_seconds * 1000)
        if milliseconds < 1:
            raise ValueError(f"dedup_window must be at least 0.001 seconds, not {window_seconds}")
        script_keys: list[Argument] = [message.stream, keys.dedup(message.stream, dedup)]
        arguments: list[Argument] = [milliseconds, *message.items]
        whole = self._once.whole(script_keys, arguments)
        return self._once.command(script_keys, arguments), whole

    def _note_registered(self, streams: set[str]) -> _Steps:
        # Whether it worked does not matter here: the message is in its stream, and a user who
        # may only publish cannot add to the registry.
        new = streams - self._registered
        if new and self.servers.cluster:
            for _ in range(_MAX_REDIRECTS):
                outcome = yield _Exchange(keys.STREAMS, [_register(sorted(new))])
                reply = outcome[0] if isinstance(outcome, list) else None
                if not isinstance(reply, Exception) or not self.servers.redirected(reply):
                    break
        self._registered |= new

    def _explained(self, error: Exception, stream: str) -> WakeqError:
        if isinstance(error, WakeqError):
            return error
        meaning = explained(error, self.servers.url)
        return type(meaning)(f"stream {stream}: {meaning}")


class _Publisher:
    """What both publishers are made of."""

    def __init__(self, redis_url: str | RedisURL | None, client: Any, asynchronous: bool) -> None:
        if client is not None:
            if redis_url is not None:
                raise TypeError("give redis_url or client, not both")
            self._servers: Any = _GivenClient(client)
        else:
            url = redis_url or Config().common().redis_url
            url = url if isinstance(url, RedisURL) else RedisURL(url)
            self._servers = Servers(url, _NAME, asynchronous)
        self._core = _Core(self._servers)

    def _pipeline(self, exchange: _Exchange) -> Any:
        pipeline = self._servers.client(exchange.key).pipeline(transaction=False)
        for command in exchange.commands:
            pipeline.execute_command(*command)
        return pipeline

    def _failed(self, exchange: _Exchange, error: Exception) -> WakeqError:
        self._servers.lost(exchange.key)
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

    def publish(
        self,
        stream: str,
        body: object = None,
        *,
        fields: Mapping[str | bytes, Value] | None = None,
        key: str | bytes | None = None,
        dedup: str | None = None,
        dedup_window: float = 86400.0,
    ) -> str:
        """Publish one message and return its id.

        Args:
            stream: where it goes.
            body: bytes or text as they are, anything else as JSON; None for no body.
            fields: further fields; names may not begin with `wakeq.`.
            key: messages with the same key are handled in order (`order = "key"`).
            dedup: of publishes with the same key only the first is carried out; the others
                return its id.
            dedup_window: how long `dedup` is remembered, in seconds.

        Raises:
            UnavailableError: Redis cannot be reached; the message may have been published.
            WakeqError: Redis refuses it; it was not published.
            ValueError, TypeError: it is no message.
        """
        message = _message(stream, body, fields, key)
        return str(self._drive(self._core.publish(message, dedup, dedup_window)))

    def publish_many(self, messages: Iterable[Publish], batch: int = 1000) -> list[str]:
        """Publish messages in order, so many at a time, and return their ids.

        The messages of one stream stay in order. A batch is no transaction: other messages may
        come in between, and if one is refused, the others of its batch are published.

        Raises:
            UnconfirmedError: the connection was lost; its `ids` say what is known.
            WakeqError: Redis refuses one; the text says how many were published.
        """
        return list(self._drive(self._core.publish_many(messages, batch)))

    def _drive(self, steps: _Steps) -> Any:
        outcome: _Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as stop:
                return stop.value
            if isinstance(step, _Exchange):
                outcome = self._send(step)
            else:
                time.sleep(step)
                outcome = None

    def _send(self, exchange: _Exchange) -> _Outcome:
        try:
            return list(self._pipeline(exchange).execute(raise_on_error=False))
        except (redis.exceptions.RedisError, OSError) as error:
            return self._failed(exchange, error)


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

    async def publish(
        self,
        stream: str,
        body: object = None,
        *,
        fields: Mapping[str | bytes, Value] | None = None,
        key: str | bytes | None = None,
        dedup: str | None = None,
        dedup_window: float = 86400.0,
    ) -> str:
        """Publish one message and return its id; see `Publisher.publish`."""
        message = _message(stream, body, fields, key)
        return str(await self._drive(self._core.publish(message, dedup, dedup_window)))

    async def publish_many(self, messages: Iterable[Publish], batch: int = 1000) -> list[str]:
        """Publish messages and return their ids; see `Publisher.publish_many`."""
        return list(await self._drive(self._core.publish_many(messages, batch)))

    async def _drive(self, steps: _Steps) -> Any:
        outcome: _Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as stop:
                return stop.value
            if isinstance(step, _Exchange):
                outcome = await self._send(step)
            else:
                await asyncio.sleep(step)
                outcome = None

    async def _send(self, exchange: _Exchange) -> _Outcome:
        try:
            return list(await self._pipeline(exchange).execute(raise_on_error=False))
        except (redis.exceptions.RedisError, OSError) as error:
            return self._failed(exchange, error)


def _message(
    stream: str,
    body: object,
    fields: Mapping[str | bytes, Value] | None,
    key: str | bytes | None,
) -> Publish:
    if not stream:
        raise ValueError("a stream must have a name")
    return Publish(stream, body, fields=fields, key=key)


def _chunks(messages: Iterable[Publish], batch: int) -> Iterator[list[Publish]]:
    chunk: list[Publish] = []
    size = 0
    for message in messages:
        chunk.append(message)
        size += sum(map(len, message.items))
        if len(chunk) >= batch or size >= _BATCH_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _add(message: Publish) -> Command:
    return ("XADD", message.stream, "*", *message.items)


def _register(streams: list[str]) -> Command:
    return ("SADD", keys.STREAMS, *streams)


def _code(error: Exception) -> str:
    reply = server_error(error)
    return reply.code if reply is not None else ""


def _may_pass(error: WakeqError) -> bool:
    return isinstance(error, UnavailableError)


def _text(message_id: bytes | str) -> str:
    return message_id if isinstance(message_id, str) else message_id.decode("ascii")


def _with_count(error: WakeqError, ids: list[str | None]) -> WakeqError:
    """Return the same error with how many messages were published all the same."""
    published = sum(known is not None for known in ids)
    return type(error)(f"{error}; {published} messages were published")
