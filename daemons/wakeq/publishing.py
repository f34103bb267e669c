"""What publishing sends, and what the replies mean; `publisher` does the sending.

A publish is a generator. It yields an `Exchange` and gets the replies, or the error that took
their place; or it yields a number of seconds to wait, and gets nothing. So blocking code and
asyncio share every decision.
"""

from collections.abc import Generator, Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

from wakeq import keys
from wakeq.backoff import Backoff
from wakeq.errors import UnavailableError, WakeqError
from wakeq.message import Publish
from wakeq.redis_client import explained, server_error
from wakeq.scripts import Script
from wakeq.wire import Argument, Command

_MAX_REDIRECTS = 5
# A batch of large messages is sent before it is full.
_BATCH_BYTES = 8 * 1024 * 1024
# So many fill a Lua script's stack, when the message is delivered.
_DELAYED_FIELDS_MOST = 3900
_LONGEST_DELAY_SECONDS = 100 * 366 * 86400.0
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


class Terms(NamedTuple):
    """On what terms a message is published: once, and not before it is due."""

    dedup: str | None = None
    window_seconds: float = 86400.0
    due: tuple[str, int] | None = None  # `in` or `at`, and ms, as schedule.lua takes it


def due(delay: float | None, at: datetime | float | None) -> tuple[str, int] | None:
    """Return when a message is due, for `Terms`; None: at once.

    Args:
        delay: in so many seconds.
        at: a time with a zone, or seconds since 1970.

    Raises:
        ValueError: both are given, or one is out of range.
    """
    if delay is not None and at is not None:
        raise ValueError("give delay or at, not both")
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise ValueError(f"at must have a time zone, as datetime.now(UTC) has: {at!r}")
        at = at.timestamp()
    if at is not None:
        if not 0 <= at < 1e11:
            raise ValueError(f"at must be a datetime, or seconds since 1970, not {at!r}")
        return "at", round(at * 1000)
    if delay is None or delay == 0:
        return None
    if not 0 <= delay <= _LONGEST_DELAY_SECONDS:
        raise ValueError(f"delay must be seconds, 0 or more, not {delay!r}")
    return "in", max(1, round(delay * 1000))


class Exchange:
    """Requests for the server that has a key."""

    __slots__ = ("commands", "key")

    def __init__(self, key: str, commands: list[Command]) -> None:
        self.key = key
        self.commands = commands


# What is sent into a generator after an Exchange; None after a pause.
Outcome = list[Any] | WakeqError | None
Steps = Generator[Exchange | float, Outcome, Any]


class Core:
    """Decides what is sent, and what the replies mean."""

    def __init__(self, servers: Any) -> None:
        self.servers = servers
        self._registered: set[str] = set()
        self._once = Script("publish_once")
        self._schedule = Script("schedule")

    def publish(self, message: Publish, terms: Terms) -> Steps:
        """Publish one message, or have it published when it is due; returns its id."""
        stream = message.stream
        add, whole = self._requests(message, terms)
        if terms.due is not None:
            yield from self._register_first(stream)
        backoff = Backoff(base=0.2, cap=2.0)
        redirects = 0
        while True:
            # Once more with each that is delayed: without the registry it might not be found.
            new = stream not in self._registered or terms.due is not None
            joined = not self.servers.cluster and new
            requests = [add, _register([stream])] if joined else [add]
            outcome = yield Exchange(stream, requests)
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
            if terms.dedup is None or backoff.tries + 1 >= _TRIES or not _may_pass(error):
                raise error
            yield backoff.next()
        yield from self._note_registered({stream})
        return _text(reply[0] if isinstance(reply, list) else reply)

    def publish_many(self, messages: Iterable[Publish], batch: int) -> Steps:
        """Publish messages in batches; returns their ids in the same order."""
        ids: list[str | None] = []
        for chunk in _chunks(messages, batch):
            first = len(ids)
            ids += [None] * len(chunk)
            yield from self._publish_batch(list(enumerate(chunk, first)), ids)
        return ids

    def _publish_batch(self, todo: list[tuple[int, Publish]], ids: list[str | None]) -> Steps:
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

    def _exchange(self, group: list[tuple[int, Publish]]) -> Exchange:
        commands = [_add(message) for _, message in group]
        if not self.servers.cluster:
            new = {message.stream for _, message in group} - self._registered
            commands += [_register(sorted(new))] if new else []
        return Exchange(group[0][1].stream, commands)

    def _by_server(self, todo: list[tuple[int, Publish]]) -> list[list[tuple[int, Publish]]]:
        if not self.servers.cluster:
            return [todo]
        groups: dict[int, list[tuple[int, Publish]]] = {}
        for item in todo:
            groups.setdefault(id(self.servers.client(item[1].stream)), []).append(item)
        return list(groups.values())

    def _requests(self, message: Publish, terms: Terms) -> tuple[Command, Command]:
        """Return the request, and the one to send if the server lacks the script."""
        if terms.dedup is None and terms.due is None:
            add = _add(message)
            return add, add
        if not 0.001 <= terms.window_seconds <= _LONGEST_DELAY_SECONDS:
            raise ValueError(
                "dedup_window must be at least 0.001 seconds and at most"
                f" {_LONGEST_DELAY_SECONDS:.0f}, not {terms.window_seconds}"
            )
        stream, window_ms = message.stream, round(terms.window_seconds * 1000)
        script, script_keys = self._once, [stream]
        arguments: list[Argument] = [window_ms, *message.items]
        if terms.due is not None:
            if (fields := len(message.items) // 2) > _DELAYED_FIELDS_MOST:
                raise ValueError(
                    f"a delayed message has at most {_DELAYED_FIELDS_MOST} fields, not {fields}"
                )
            script = self._schedule
            script_keys += [keys.delayed(stream), keys.delayed_data(stream)]
            arguments = [keys.DOORBELL, stream, *terms.due, window_ms, *message.items]
        if terms.dedup is not None:
            script_keys.append(keys.dedup(stream, terms.dedup))
        return script.command(script_keys, arguments), script.whole(script_keys, arguments)

    def _register_first(self, stream: str) -> Steps:
        """Put a stream into the registry: else a message could lie there and nobody look."""
        if stream in self._registered:
            return
        backoff = Backoff(base=0.2, cap=2.0)
        redirects = 0
        while True:
            outcome = yield Exchange(keys.STREAMS, [_register([stream])])
            reply: Any = outcome[0] if isinstance(outcome, list) else outcome
            if not isinstance(reply, Exception):
                break
            if self.servers.redirected(reply) and redirects < _MAX_REDIRECTS:
                redirects += 1
                continue
            error = self._explained(reply, stream)
            if backoff.tries + 1 >= _TRIES or not _may_pass(error):
                raise error
            yield backoff.next()
        self._registered.add(stream)

    def _note_registered(self, streams: set[str]) -> Steps:
        # Whether it worked does not matter here: the message is in its stream, and a user who
        # may only publish cannot add to the registry.
        new = streams - self._registered
        if new and self.servers.cluster:
            for _ in range(_MAX_REDIRECTS):
                outcome = yield Exchange(keys.STREAMS, [_register(sorted(new))])
                reply = outcome[0] if isinstance(outcome, list) else None
                if not isinstance(reply, Exception) or not self.servers.redirected(reply):
                    break
        self._registered |= new

    def _explained(self, error: Exception, stream: str) -> WakeqError:
        if isinstance(error, WakeqError):
            return error
        meaning = explained(error, self.servers.url)
        return type(meaning)(f"stream {stream}: {meaning}")


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
