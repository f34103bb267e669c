"""All rooms of one process of a worker: what is heard and asked. It does no I/O."""

import heapq
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from typing import Any, NamedTuple

from wakeq import keys
from wakeq.backoff import Backoff
from wakeq.errors import Reject, Retry, WakeqError
from wakeq.fanout.core import Core
from wakeq.fanout.delivery import Ask, RoomMessage
from wakeq.fanout.desk import Desk
from wakeq.fanout.rooms import CLIENTS_MOST, Request, Rooms, checked_worker
from wakeq.fanout.tally import Tally

log = logging.getLogger("wakeq.fanout")

# Where no client is to be pinged, the figures are asked for this often: rings may be lost.
_CHECK_SECONDS = 60.0
# A look that is due may come so much later, if another one is to come by then.
_CHECK_LATE_SECONDS = 0.01
# So often within a time-out is pinged: two pings may be lost.
_PINGS = 3


class FanoutTerms(NamedTuple):
    """How a worker does its work; see FanoutWorker."""

    name: str = ""
    timeout: float = 30.0
    auto_ping: bool = True
    auto_ack: bool = True
    max_attempts: int = 5


class Office:
    """Keeps the desks.

    Args:
        core: what joins and leaves.
        terms: how it is done.
        reports: it tells of clients that were timed out.

    Attributes:
        name: the worker's.
        is_alone: no other process has that name.
        desks: by room.
        touched: rooms in which there may be something to do; the caller's to empty.
        tally: what is counted.
    """

    def __init__(self, core: Core, terms: FanoutTerms, reports: bool) -> None:
        self.is_alone = not terms.name
        self.name = checked_worker(terms.name) if terms.name else secrets.token_hex(8)
        self.terms = terms
        self.core = core
        self.tally = Tally()
        self.desks: dict[str, Desk] = {}
        self.touched: set[str] = set()
        self.rooms = Rooms(self.name, "" if self.is_alone else secrets.token_hex(8))
        self._timeout_ms = core.timeout_ms
        self._reports = reports
        self._due: list[tuple[float, int, Desk]] = []  # for a ping, monotonic
        self._timers: list[tuple[float, int, str, Callable[[], None]]] = []
        self._count = 0
        self._broken: set[str] = set()  # rooms with which something is wrong
        self._pauses: dict[tuple[str, str], Backoff] = {}  # of what failed, by room and what it is
        often = self._timeout_ms / 1000 / _PINGS
        self._every = often if terms.auto_ping or not self.is_alone else _CHECK_SECONDS

    @property
    def channel(self) -> str:
        """The channel on which it hears of news."""
        return keys.BELL + self.name

    def desk(self, room: str) -> Desk:
        """Return the desk of a room; a new one has all to do."""
        self.touched.add(room)
        found = self.desks.get(room)
        if found is None:
            found = self.desks[room] = Desk(room, self.tally, self._reports)
            self._ping_in(found, self._every)
        return found

    def hear(self, payload: bytes) -> Desk:
        """Take a ring; see room.lua."""
        rounds, logged, timeouts, version, holder, room = payload.split(b" ", 5)
        desk = self.desk(room.decode())
        desk.hear(int(rounds), int(logged), int(timeouts), int(version), holder == b"-")
        return desk

    def doubt(self) -> None:
        """Believe nothing that was heard: something may have been missed."""
        for room, desk in self.desks.items():
            desk.doubt()
            self.touched.add(room)

    def farewell(self) -> Iterable[Request]:
        """Yield what is said at the end: its clients leave, or its rooms are free for others."""
        for desk in self.desks.values():
            names = list(desk.seats)
            if not self.is_alone:
                if desk.has_untold:  # or the next one hands that out once more
                    yield self.request(desk, Ask("read"))
                yield self.rooms.ping(desk.room, [], 0, 0)
            for start in range(0, len(names) if self.is_alone else 0, CLIENTS_MOST):
                yield self.rooms.leave(desk.room, names[start : start + CLIENTS_MOST])

    # -- asking ------------------------------------------------------------------------------

    def request(self, desk: Desk, ask: Ask) -> Request:
        """Return what a desk wants to ask."""
        if ask.what == "ack":
            # Its pings keep a client alive; where nobody pings here, this does.
            timeout = 0 if self.terms.auto_ping else self._timeout_ms
            return self.rooms.acknowledge(desk.room, ask.message_id, ask.clients, timeout)
        if ask.what == "look":
            return self.rooms.look(
                desk.room, self._timeout_ms, desk.version, self._reports, ask.clients
            )
        return self.rooms.read(desk.room, *desk.read_from, desk.listed)

    def take(self, desk: Desk, ask: Ask, request: Request, reply: Any) -> bool:
        """Tell a desk the reply; return whether there is something new to be done at a time."""
        self._pauses.pop((desk.room, ask.what), None)
        if ask.what == "ack":
            failed = desk.take_ack(ask, reply, request.repeated)
            for client, code in failed:
                # Of who has left here, it was sent once more, ahead of that.
                if not request.repeated and client in desk.seats:
                    log.warning("room %s, client %s: %s", desk.room, client, code)
        elif ask.what == "look":
            desk.take_look(ask, reply)
        else:
            missed = self.tally.missed
            desk.take_read(ask, reply)
            if missed := self.tally.missed - missed:
                log.warning("room %s: %d messages were removed before they were read here",
                            desk.room, missed)  # fmt: skip
        pause, desk.check_in = desk.check_in, None
        if pause is None:
            return False
        due = time.monotonic() + pause
        if desk.checked_at <= due + _CHECK_LATE_SECONDS:
            return False  # that look tells when the next one is due
        desk.checked_at = due
        self.after(pause, desk, partial(self._check, desk, due))
        return True

    def put_back(self, desk: Desk, ask: Ask) -> None:
        """Have a desk ask again what was not answered, after a pause that grows with each try."""
        backoff = self._pauses.setdefault((desk.room, ask.what), Backoff(0.1, 5.0))
        self.after(backoff.next(), desk, partial(desk.put_back, ask))

    @staticmethod
    def _check(desk: Desk, due: float) -> None:
        if desk.checked_at == due:  # else another one came first
            desk.checked_at = inf
            desk.doubt_look()

    def forget(self, desk: Desk) -> bool:
        """Forget a room without clients; tell whether it was."""
        if not desk.is_idle:
            return False
        self._broken.discard(desk.room)
        for what in ("ack", "look", "read"):
            self._pauses.pop((desk.room, what), None)
        return self.desks.pop(desk.room, None) is not None

    def whether_known(self, room: str) -> Request:
        """Return what asks for the version of the worker's list of clients, 0 if it has none.

        It names the lease, because without one the room would be given up.
        """
        return self.rooms.ping(room, [], 0, self._timeout_ms)

    def why_ejected(self, room: str, client: str) -> Request:
        """Return what asks why somebody is no client of the worker any more.

        It is asked as by nobody: the worker would give the room up with it. Nothing is wrong with
        a client, for nobody, that has another worker now.
        """
        return self.core.rooms.ping(room, [client])

    # -- pings -------------------------------------------------------------------------------

    def _ping_in(self, desk: Desk, seconds: float) -> None:
        self._count += 1
        heapq.heappush(self._due, (time.monotonic() + seconds, self._count, desk))

    def due_pings(self) -> list[tuple[Desk, Request]]:
        """Return the pings that are due, at most a hundred; they are due again after a while."""
        found: list[tuple[Desk, Request]] = []
        now = time.monotonic()
        while self._due and self._due[0][0] <= now and len(found) < 100:
            desk = heapq.heappop(self._due)[2]
            if self.desks.get(desk.room) is desk:
                self._ping_in(desk, self._every)
                found += [(desk, each) for each in self._pings(desk)]
        return found

    def _pings(self, desk: Desk) -> Iterable[Request]:
        names = list(desk.seats) if self.terms.auto_ping and desk.is_ours else []
        for start in range(0, max(1, len(names)), CLIENTS_MOST):
            some = names[start : start + CLIENTS_MOST]
            yield self.rooms.ping(desk.room, some, self._timeout_ms, self._timeout_ms)

    def take_ping(self, desk: Desk, reply: Any) -> None:
        """Tell a desk the reply to a ping, see room_ping.lua, or the error in its place."""
        if isinstance(reply, WakeqError):
            if desk.room not in self._broken:
                log.error("room %s: %s", desk.room, reply)
            self._broken.add(desk.room)
            return
        self._broken.discard(desk.room)
        self.touched.add(desk.room)
        failed, version, rounds, logged, timeouts = reply
        desk.take_failures(failed)
        desk.hear(rounds, logged, timeouts, version)

    # -- times -------------------------------------------------------------------------------

    def after(self, seconds: float, desk: Desk, callback: Callable[[], None]) -> None:
        """Have something called by `run_timers` for a room, in so many seconds."""
        self._count += 1
        due = time.monotonic() + seconds
        heapq.heappush(self._timers, (due, self._count, desk.room, callback))

    def run_timers(self) -> None:
        """Do what is due."""
        while self._timers and self._timers[0][0] <= time.monotonic():
            _, _, room, callback = heapq.heappop(self._timers)
            callback()
            self.touched.add(room)

    @property
    def due_at(self) -> float:
        """When there is a ping to be sent, or a timer to be run, monotonic."""
        ping = self._due[0][0] if self._due else inf
        return min(ping, self._timers[0][0]) if self._timers else ping

    @property
    def pause(self) -> float:
        """For how many seconds there is nothing to do."""
        if self.touched:
            return 0.0
        return min(_CHECK_SECONDS, max(0.0, self.due_at - time.monotonic()))

    # -- handlers ----------------------------------------------------------------------------

    def handled(self, desk: Desk, message: RoomMessage, error: BaseException | None) -> None:
        """Tell a desk what became of a message: its handler returned, or raised an error."""
        if error is not None:
            level = logging.INFO if isinstance(error, Retry | Reject) else logging.ERROR
            log.log(level, "room %s, client %s, message %s: %s: %s", message.room, message.client,
                    message.id, type(error).__name__, error)  # fmt: skip
        if not message.awaits:
            self.tally.failed += error is not None
            desk.finish(message)
        elif error is None:
            if self.terms.auto_ack:
                desk.acknowledge(message.client, message.id)
        elif isinstance(error, Reject) or message.attempt >= self.terms.max_attempts:
            self.tally.failed += 1
            desk.acknowledge(message.client, message.id)
        else:
            desk.fail(message, error.delay if isinstance(error, Retry) else None)

    def schedule_retries(self, desk: Desk) -> None:
        """Have failed messages handed out again when that is due."""
        retries, desk.retries = desk.retries, []
        for message, seconds in retries:
            self.after(seconds, desk, partial(desk.again, message))
