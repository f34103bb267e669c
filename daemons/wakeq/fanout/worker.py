"""Receiving the messages of rooms, for blocking code: `FanoutWorker`.

    def handle(message):
        print(message.room, message.client, message.text())

    with FanoutWorker(handle) as worker:
        worker.subscribe("auction-7", worker.create_client_id())

One thread listens, pings and keeps the times; others, the lanes, ask and call handlers. A room has
at most one lane for its rounds and one for its log, so a slow handler holds up its own room alone.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Self

from wakeq import keys
from wakeq.errors import WakeqError
from wakeq.fanout.calling import call, drive, servers
from wakeq.fanout.core import Core
from wakeq.fanout.delivery import Ask, RoomMessage
from wakeq.fanout.desk import Desk
from wakeq.fanout.lanes import Lanes
from wakeq.fanout.lines import Lines
from wakeq.fanout.listener import Listener
from wakeq.fanout.office import FanoutTerms, Office, log
from wakeq.fanout.tally import WorkerMetrics
from wakeq.redis_url import RedisURL

__all__ = ["FanoutWorker"]

_NAME = "wakeq-fanout-worker"

Handler = Callable[[RoomMessage], object]
OfClient = Callable[..., object]


class FanoutWorker:
    """Receives the messages of its clients, and calls handlers.

    Args:
        on_message: called with each RoomMessage. When it returns, the message is acknowledged;
            when it raises, it is called again after a while, `terms.max_attempts` times in all
            (`Retry` says after what time, `Reject` that it is pointless), and then the message
            counts as acknowledged. Out-of-band messages, and those of async clients, are given
            once.
        redis_url: where Redis is; by default what WAKEQ_REDIS_URL or wakeq.toml says.
        terms: see `FanoutTerms`.
        on_timeout: called with room and client when anybody was timed out in a room in which this
            worker has clients, or had; each time-out is told to one worker.
        on_ejected: called with room, client and reason when a client of this worker is one no
            longer: `timed-out`, `taken-over`, or `not-subscribed` if it was unsubscribed by others.
        concurrency: how many lanes there may be, so of how many rooms handlers run at once.

    Terms:
        name: workers of the same name share its clients (see `FanoutClient.subscribe`); each room
            is delivered by one of them at a time, and by another when that has died. By default
            the name is the worker's own, and what it has subscribed is unsubscribed at its end.
        timeout: clients are timed out that are silent for so many seconds; also how long a process
            that has died has its rooms.
        auto_ping: the worker pings for its clients; else the application does.
        auto_ack: acknowledge when the handler returns; else the application calls `message.ack()`,
            or `FanoutClient.ack`.
        max_attempts: see on_message.

    Raises:
        ConfigError: the URL or wakeq.toml is wrong.
    """

    def __init__(
        self,
        on_message: Handler,
        redis_url: str | RedisURL | None = None,
        terms: FanoutTerms | None = None,
        *,
        on_timeout: OfClient | None = None,
        on_ejected: OfClient | None = None,
        concurrency: int = 32,
    ) -> None:
        terms = terms or FanoutTerms()
        self._servers = servers(redis_url, None, _NAME, False)
        core = Core(self._servers, terms.timeout, 0)
        self._office = Office(core, terms, on_timeout is not None)
        self._handlers = on_message, on_timeout, on_ejected
        self._lock = threading.RLock()
        self._lanes = Lanes(concurrency)
        self._lines = Lines(self._servers)
        self._carry_out = self._lines.carry_out if self._lines.usable else None
        self._listener = Listener(self._office, self._servers, self._lock, self._serve)
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    @property
    def name(self) -> str:
        """The name under which its clients are subscribed."""
        return self._office.name

    def __enter__(self) -> Self:
        """Begin to receive, in a thread of its own; return when it listens.

        Raises:
            WakeqError: Redis refuses.
        """
        self._thread = threading.Thread(target=self._run_in_thread, name=_NAME, daemon=True)
        self._thread.start()
        self._listener.ready.wait()
        if self._listener.stopping:
            self._thread.join()
            self._check()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Stop, and wait until handlers have returned.

        Raises:
            WakeqError: it had ended by itself; see `wait`.
        """
        self.stop()
        if self._thread is not None:
            self._thread.join()
        if error is None:
            self._check()

    def stop(self) -> None:
        """Receive no more; `run` returns when the handlers have."""
        self._listener.stop()

    def wait(self) -> None:
        """Wait until the worker, begun by `with`, has ended and its handlers have returned.

        Raises:
            ConfigError, RefusedError: it has ended by itself, because trying again does not help:
                the password or the user's rights are others now, for instance. That is logged,
                and `subscribe`, `unsubscribe` and the end of `with` raise it, too.
        """
        if self._thread is not None:
            self._thread.join()
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    @staticmethod
    def create_client_id() -> str:
        """Return a client id that nobody else has."""
        return os.urandom(16).hex()

    def subscribe(
        self, room: str, client_id: str, *, mode: str = "sync", backlog: str = "keep"
    ) -> None:
        """Make somebody a client whose messages come here; see `FanoutClient.subscribe`."""
        self._check()
        core, index = self._office.core, not self._office.is_alone
        steps = core.subscribe(room, client_id, self.name, mode, backlog, index)
        reply = drive(self._servers, steps)
        with self._lock:
            self._office.desk(room).take_joined(client_id, mode, reply)
        self._serve(room)

    def unsubscribe(self, room: str, client_id: str) -> None:
        """Let a client leave; see `FanoutClient.unsubscribe`."""
        self._check()
        core = self._office.core
        with self._lock:
            desk = self._office.desk(room)
            desk.begin_leave(client_id)
            unanswered, has_left = desk.unanswered(client_id), False
        try:
            if unanswered:
                # Behind the leave they would not count, and the message might be back in line.
                steps = core.ack_ahead(room, client_id, unanswered)
                counted = drive(self._servers, steps)
                unanswered = []
                with self._lock:
                    self._office.tally.acknowledged += counted
            drive(self._servers, core.unsubscribe(room, client_id))
            has_left = True
        finally:
            with self._lock:
                for message_id in unanswered:
                    desk.acknowledge(client_id, message_id)
                desk.end_leave(client_id, has_left)
            self._serve(room)

    def metrics(self) -> WorkerMetrics:
        """Return what was counted."""
        return self._office.tally.metrics()

    def run(self) -> None:
        """Receive until `stop` is called; Redis may come and go.

        Raises:
            ConfigError, RefusedError: it will not work by trying again.
        """
        try:
            self._listener.run()
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._end()

    def _run_in_thread(self) -> None:
        try:
            self.run()
        except WakeqError as error:  # `wait` raises it
            if self._listener.has_listened:
                log.error("the worker of rooms has ended: %s", error)

    def _end(self) -> None:
        self._lanes.close()
        self._lines.close()
        with contextlib.suppress(WakeqError):
            # Others do not wait for a time-out, for its clients or its rooms.
            for request in self._office.farewell():
                drive(self._servers, call(self._servers, request, tries=1))
            if self._office.is_alone:
                # Nobody has this name again; a FanoutClient may have subscribed clients for it.
                key = keys.worker_rooms(self.name)
                self._servers.call(key, "DEL", key)
        self._servers.close()
        self._listener.close()

    # -- the lanes ---------------------------------------------------------------------------

    def _serve(self, room: str) -> None:
        """See that somebody does what there is to do in a room."""
        with self._lock:
            desk = self._office.desks.get(room)
            if desk is None or self._listener.stopping:
                return
            if desk.has_step and not desk.is_served:
                desk.is_served = True
                self._lanes.submit(partial(self._serve_rounds, desk))
            if desk.has_read and not desk.is_read:
                desk.is_read = True
                self._lanes.submit(partial(self._serve_log, desk))

    def _serve_rounds(self, desk: Desk) -> None:
        forgotten = False
        try:
            while step := self._next(desk.next_step):
                if isinstance(step, RoomMessage):
                    if not self._listener.stopping:
                        self._handle(desk, step)
                elif not self._ask(desk, step):
                    break
                if desk.ejected or desk.reports:
                    self._tell(desk)
        finally:
            with self._lock:
                desk.is_served = False
                forgotten = self._office.forget(desk)
        if forgotten and not self._office.is_alone:
            self._leave_index(desk.room)
        self._serve(desk.room)

    def _serve_log(self, desk: Desk) -> None:
        try:
            while not self._listener.stopping and (step := self._next(desk.next_read)):
                if isinstance(step, RoomMessage):
                    self._handle(desk, step)
                elif not self._ask(desk, step):
                    break
        finally:
            with self._lock:
                desk.is_read = False
        self._serve(desk.room)

    def _next(self, choose: Callable[[], Ask | RoomMessage | None]) -> Ask | RoomMessage | None:
        with self._lock:
            return choose()

    def _leave_index(self, room: str) -> None:
        """Take a room out of those of the worker, unless somebody has joined just now."""
        key = keys.worker_rooms(self.name)
        try:
            self._servers.call(key, "SREM", key, room)
            request = self._office.whether_known(room)
            if drive(self._servers, call(self._servers, request))[1]:
                self._servers.call(key, "SADD", key, room)
                with self._lock:
                    self._office.desk(room)
        except WakeqError as error:
            self._listener.trouble(error)

    def _ask(self, desk: Desk, ask: Ask) -> bool:
        with self._lock:
            request = self._office.request(desk, ask)
        try:
            reply = drive(self._servers, call(self._servers, request), self._carry_out)
        except Exception as error:  # whatever it is, what was asked must be asked again
            self._listener.trouble(error)
            with self._lock:
                self._office.put_back(desk, ask)
            self._listener.wake()
            return False
        with self._lock:
            if self._office.take(desk, ask, request, reply):
                self._listener.wake()
        return True

    def _handle(self, desk: Desk, message: RoomMessage) -> None:
        if not self._office.terms.auto_ack and message.awaits:
            message.on_ack(lambda: self._acknowledge(desk, message))
        failure: BaseException | None = None
        try:
            self._handlers[0](message)
        except BaseException as error:  # also SystemExit, which would end this lane alone
            failure = error
        with self._lock:
            self._office.handled(desk, message, failure)
            if desk.retries:
                self._office.schedule_retries(desk)
                self._listener.wake()

    def _acknowledge(self, desk: Desk, message: RoomMessage) -> None:
        with self._lock:
            desk.acknowledge(message.client, message.id)
        self._serve(desk.room)

    def _tell(self, desk: Desk) -> None:
        """Tell the application who was removed."""
        _, on_timeout, on_ejected = self._handlers
        with self._lock:
            ejected, desk.ejected = desk.ejected, []
            reports, desk.reports = desk.reports, []
            self._office.tally.ejected += len(ejected)
            self._office.tally.timeouts += len(reports)
        for client, known in ejected:
            with _logged(f"on_ejected, room {desk.room}, client {client}"):
                if on_ejected is not None:
                    on_ejected(desk.room, client, known or self._reason(desk.room, client))
        for client in reports:
            with _logged(f"on_timeout, room {desk.room}, client {client}"):
                if on_timeout is not None:
                    on_timeout(desk.room, client)

    def _reason(self, room: str, client: str) -> str:
        request = self._office.why_ejected(room, client)
        try:
            reply = drive(self._servers, call(self._servers, request))
        except WakeqError as error:
            self._listener.trouble(error)
            return "not-subscribed"
        return reply[0][1].decode() if reply[0] else "taken-over"


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        log.error("%s: %s: %s", what, type(error).__name__, error)
