"""What the clients of rooms send, and what the replies mean; `client` and the workers send it."""

import contextlib
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from wakeq import keys
from wakeq.errors import RoomError, WakeqError
from wakeq.fanout import rooms
from wakeq.fanout.calling import Steps, call, call_all, call_each
from wakeq.fanout.records import (
    NUMBER_MOST,
    RoomMetrics,
    add_up,
    read_metrics,
    read_peek,
    read_state,
    unused_seconds,
)
from wakeq.fanout.rooms import Request, Rooms, checked, checked_worker

# How often a room that is used is put into the registry again. Others may take it from there when
# they find it empty, and unused for so long that whoever uses it then would put it there again.
_REGISTER_SECONDS = 60.0
_FORGET_SECONDS = 2 * _REGISTER_SECONDS
_REGISTERED_MOST = 100_000
_JOINED_MOST = 100_000
_SCANNED = 500
_BROKEN_MOST = 100
_BY = ("backlog", "delay", "clients", "waiting", "round_age", "rounds", "timeouts")
# A repeated request's answers to what its first sending has done.
_DONE_BEFORE = {"doubled", "not-outstanding"}


class Core:
    """Decides what is sent, and what the replies mean, for both kinds of clients.

    Args:
        servers: where to.
        timeout: of the clients, in seconds.
        queue_limit: a send to a room where so many messages wait is an error; 0: no limit.
        remembers: who joins which rooms is remembered, for `ping`.
    """

    def __init__(
        self, servers: Any, timeout: float, queue_limit: int, remembers: bool = False
    ) -> None:
        if not isinstance(queue_limit, int) or queue_limit < 0:
            raise ValueError(f"queue_limit must be 0 or more, not {queue_limit!r}")
        self.servers = servers
        self.timeout_ms = rooms.seconds_as_ms("timeout", timeout)
        self.queue_limit = queue_limit
        self.rooms = Rooms()
        self._registered: dict[str, float] = {}
        self._remembers = remembers
        # client -> room -> number of the joining, of those who joined here; who was not heard of
        # for longest comes first. Threads share it.
        self._joined: dict[str, dict[str, int]] = {}
        self._joinings = itertools.count(1)
        self._lock = threading.Lock()

    def subscribe(
        self, room: str, client: str, worker: str, mode: str, backlog: str, index: bool = True
    ) -> Steps:
        """Make somebody a client; `index`: other processes of the worker are to find the room."""
        checked_worker(worker)
        checked("client_id", client)
        if mode not in rooms.MODES:
            raise ValueError(f"mode must be {', '.join(rooms.MODES)}, not {mode!r}")
        if backlog not in ("keep", "drop"):
            raise ValueError(f"backlog must be keep or drop, not {backlog!r}")
        drop = backlog == "drop"
        join = self.rooms.join(room, client, worker, mode, self.timeout_ms, drop)
        began = time.monotonic()
        # Before, so that no room is ever without it; after, because it may have been removed as
        # empty just then.
        key = keys.worker_rooms(worker)
        if index:
            yield from call(self.servers, _add(key, room))
        reply = yield from call(self.servers, join)
        if index:
            yield from call(self.servers, _add(key, room))
        self._remember(client, room)
        yield from self._register(room, began)
        return reply

    def unsubscribe(self, room: str, client: str) -> Steps:
        request = self.rooms.leave(room, [checked("client_id", client)])
        joining = self._joining(room, client)
        failed = yield from call(self.servers, request)
        self._left(room, client, joining)
        error = rooms.refused(room, failed)
        if error is not None and not request.repeated:
            raise error

    def send(self, room: str, data: object, producer: str, priority: int) -> Steps:
        rooms.checked_priority(priority)
        limit = self.queue_limit
        producer = checked("producer", producer) if producer else ""
        request = self.rooms.send(room, rooms.encode(data), producer, priority, limit)
        began = time.monotonic()
        message_id, length = yield from call(self.servers, request, repeatable=False)
        if not message_id:
            raise rooms.is_full(room, length)
        yield from self._register(room, began)
        return message_id.decode()

    def send_out_of_band(self, room: str, data: object, producer: str) -> Steps:
        producer = checked("producer", producer) if producer else ""
        request = self.rooms.send_out_of_band(room, rooms.encode(data), producer)
        reply = yield from call(self.servers, request, repeatable=False)
        message_id, count, worker = reply
        if not message_id:
            raise rooms.is_behind(room, worker.decode(), count)
        return message_id.decode()

    def ack(self, room: str, clients: str | Iterable[str], message_id: str) -> Steps:
        names = [clients] if isinstance(clients, str) else list(clients)
        for name in names:
            checked("client_id", name)
        failed: list[bytes] = []
        for start in range(0, len(names), rooms.CLIENTS_MOST):
            some = names[start : start + rooms.CLIENTS_MOST]
            request = self.rooms.acknowledge(
                room, checked("message_id", message_id), some, self.timeout_ms
            )
            joinings = {name: self._joining(room, name) for name in some}
            reply = yield from call(self.servers, request)
            pairs = rooms.failures(reply[0])
            for client, code in pairs:
                if not (request.repeated and code in _DONE_BEFORE):
                    failed += [client.encode(), code.encode()]
                if code in ("not-subscribed", "timed-out"):
                    self._left(room, client, joinings[client])
        if error := rooms.refused(room, failed):
            raise error

    def ack_ahead(self, room: str, client: str, message_ids: Sequence[str]) -> Steps:
        """Acknowledge for who is about to leave, maybe once more; return how many have counted."""
        counted = 0
        for message_id in message_ids:
            with contextlib.suppress(RoomError):
                yield from self.ack(room, client, message_id)
                counted += 1
        return counted

    def ping(self, client: str, room: str | None) -> Steps:
        checked("client_id", client)
        joinings = self._heard_of(client)
        found = [room] if room is not None else sorted(joinings)
        if not found:
            raise RoomError(
                "not-subscribed", f"client {client} was not subscribed to any room here; say which"
            )
        requests = [self.rooms.ping(one, [client], self.timeout_ms) for one in found]
        replies = yield from call_all(self.servers, requests)
        errors: list[RoomError] = []
        for one, reply in zip(found, replies, strict=True):
            if error := rooms.refused(one, reply[0]):
                self._left(one, client, joinings.get(one, 0))
                errors.append(error)
        if errors:
            raise errors[0]

    def peek(self, room: str, offset: int, limit: int | None) -> Steps:
        checked("room", room)
        for name, value in (("offset", offset), ("limit", limit or 0)):
            if not isinstance(value, int) or not 0 <= value <= NUMBER_MOST:
                raise ValueError(f"{name} must be 0 to 2**53, not {value!r}")
        if limit == 0:
            return []
        reply = yield from call(self.servers, self.rooms.peek(room, offset, limit))
        return read_peek(reply)

    def room_state(self, room: str) -> Steps:
        reply = yield from call(self.servers, self.rooms.state(room, with_clients=True))
        return _read(read_state, room, reply)

    def room_metrics(self, room: str) -> Steps:
        reply = yield from call(self.servers, self.rooms.state(room, with_clients=False))
        return _read(read_metrics, room, reply)

    def metrics(self, top: int, by: str) -> Steps:
        if by not in _BY:
            raise ValueError(f"by must be one of {', '.join(_BY)}, not {by!r}")
        if not isinstance(top, int) or top < 0:
            raise ValueError(f"top must be 0 or more, not {top!r}")
        found: dict[str, RoomMetrics] = {}
        broken: list[str] = []
        unused: list[str] = []
        cursor: Any = 0
        while True:
            scan = Request(keys.ROOMS, ("SSCAN", keys.ROOMS, cursor, "COUNT", _SCANNED))
            cursor, raws = yield from call(self.servers, scan)
            names = [name for name in rooms.decoded(raws) if name not in found]
            figures, errors = yield from self._figures(names)
            broken += [name for name in errors if name not in broken][: _BROKEN_MOST - len(broken)]
            for one, seconds in figures:
                found[one.room] = one
                if one.is_empty and seconds > _FORGET_SECONDS:
                    unused.append(one.room)
            if not int(cursor):
                break
        yield from self._forget(unused)
        some = [one for one in found.values() if not one.is_empty]
        most = heapq.nlargest(top, some, lambda one: getattr(one, by))
        return add_up(list(found.values()), most, broken)

    def _figures(self, names: Sequence[str]) -> Steps:
        """Return the figures of rooms, each with how long it is unused; and whose are none."""
        requests = [self.rooms.state(name, with_clients=False) for name in names]
        replies = yield from call_each(self.servers, requests)
        found: list[tuple[RoomMetrics, float]] = []
        errors: list[str] = []
        for name, reply in zip(names, replies, strict=True):
            try:
                if isinstance(reply, WakeqError):
                    raise reply
                figures = _read(read_metrics, name, reply), _read(_unused_seconds, name, reply)
            except WakeqError:
                errors.append(name)
            else:
                found.append(figures)
        return found, errors

    def _forget(self, names: Sequence[str]) -> Steps:
        """Take rooms out of the registry, but not those that were used meanwhile."""
        for start in range(0, len(names), _SCANNED):
            some = names[start : start + _SCANNED]
            yield from call(self.servers, Request(keys.ROOMS, ("SREM", keys.ROOMS, *some)))
            # Who uses a room registers it afterwards, so what is not seen here comes later.
            figures, errors = yield from self._figures(some)
            used = [*errors, *(one.room for one, _ in figures if not one.is_empty)]
            if used:
                yield from call(self.servers, _add(keys.ROOMS, *used))

    def _register(self, room: str, began: float) -> Steps:
        """Put a room into the registry, after it was used; `began`: that was not before, monotonic.

        Redis says how long the room is unused, so what counts is when the use began, not when its
        reply was seen.
        """
        before = self._registered.get(room)
        if before is not None and time.monotonic() - before < _REGISTER_SECONDS:
            return
        if len(self._registered) >= _REGISTERED_MOST:
            self._registered.clear()
        try:
            yield from call(self.servers, _add(keys.ROOMS, room))
        except WakeqError:
            return  # what was asked for is done; the next one tries again
        self._registered[room] = began

    def _remember(self, client: str, room: str) -> None:
        if self._remembers:
            with self._lock:
                found = self._joined.pop(client, {})
                found[room] = next(self._joinings)
                self._joined[client] = found
                if len(self._joined) > _JOINED_MOST:
                    del self._joined[next(iter(self._joined))]

    def _heard_of(self, client: str) -> dict[str, int]:
        """Put a client last; return its rooms, each with the number of its joining."""
        with self._lock:
            if (found := self._joined.pop(client, None)) is None:
                return {}
            self._joined[client] = found
            return dict(found)

    def _joining(self, room: str, client: str) -> int:
        """Return the number of the joining that is remembered, 0 if there is none."""
        with self._lock:
            return self._joined.get(client, {}).get(room, 0)

    def _left(self, room: str, client: str, joining: int) -> None:
        """Forget a joining, but not a later one: what was asked before says nothing of that."""
        with self._lock:
            found = self._joined.get(client, {})
            if found.get(room) == joining:
                del found[room]
                if not found:
                    del self._joined[client]


def _read(how: Callable[[str, Any], Any], room: str, reply: Any) -> Any:
    """Return what a reply says of a room.

    Raises:
        WakeqError: somebody else has written there.
    """
    try:
        return how(room, reply)
    except (TypeError, ValueError) as error:
        text = f"room {room}: Redis holds something other than a room has: {error}"
        raise WakeqError(text) from None


def _unused_seconds(_: str, reply: Any) -> float:
    return unused_seconds(reply)


def _add(key: str, *rooms: str) -> Request:
    return Request(key, ("SADD", key, *rooms))
