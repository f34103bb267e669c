"""What publishing sends, and what the replies mean; `publisher` does the sending.

A publish is a generator. It yields an `Exchange` and gets the replies, or the error that took
their place; or it yields a number of seconds to wait, and gets nothing. So blocking code and
asyncio share every decision.
"""

from collections.abc import Generator, Iterable, Iterator
from typing import Any

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

    def publish(self, message: Publish, dedup: str | None, window_seconds: float) -> Steps:
        """Publish one message; returns its id."""
        stream = message.stream
        add, whole = self._requests(message, dedup, window_seconds)
        backoff = Backoff(base=0.2, cap=2.0)
        redirects = 0
        while True:
            joined = not self.servers.cluster and stream not in self._registered
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
            if dedup is None or backoff.tries + 1 >= _TRIES or not _may_pass(error):
                raise error
            yield backoff.next()
        yield from self._note_registered({stream})
        return _text(reply[0] if dedup is not None else reply)

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
