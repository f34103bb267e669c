"""Receiving the messages of rooms, for asyncio: `AsyncFanoutWorker`."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Self

from wakeq import keys
from wakeq.backoff import Backoff
from wakeq.errors import ConfigError, RefusedError, WakeqError
from wakeq.fanout.bell import Bell
from wakeq.fanout.calling import Steps, call, call_each, drive_async, servers
from wakeq.fanout.core import Core
from wakeq.fanout.delivery import Ask, RoomMessage
from wakeq.fanout.desk import Desk
from wakeq.fanout.lines import AsyncLine
from wakeq.fanout.office import FanoutTerms, Office, log
from wakeq.fanout.raised import cancellations, logged
from wakeq.fanout.rooms import Request, decoded
from wakeq.fanout.tally import WorkerMetrics
from wakeq.redis_url import RedisURL

__all__ = ["AsyncFanoutWorker"]

_NAME = "wakeq-fanout-worker"

AsyncHandler = Callable[[RoomMessage], Awaitable[object]]
AsyncOfClient = Callable[..., Awaitable[object]]


class AsyncFanoutWorker:
    """Receives the messages of its clients, for asyncio; arguments are those of `FanoutWorker`.

    The handlers are coroutine functions. Those of several clients run at once, also in one room;
    those of the log of a room (out-of-band messages, async clients) one after the other.
    """

    def __init__(
        self,
        on_message: AsyncHandler,
        redis_url: str | RedisURL | None = None,
        terms: FanoutTerms | None = None,
        *,
        on_timeout: AsyncOfClient | None = None,
        on_ejected: AsyncOfClient | None = None,
    ) -> None:
        terms = terms or FanoutTerms()
        self._servers = servers(redis_url, None, _NAME, True)
        core = Core(self._servers, terms.timeout, 0)
        self._office = Office(core, terms, on_timeout is not None)
        self._handlers = on_message, on_timeout, on_ejected
        self._bell = Bell(self._servers.url, self._office.channel, _NAME)
        self._bell_fd = -1
        self._line = AsyncLine(self._servers)
        self._carry_out = self._line.carry_out if self._line.usable else None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._news = asyncio.Event()
        self._stopping = asyncio.Event()
        self._ready = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._trouble = False
        self._refusal: WakeqError | None = None
        self._failure: Exception | None = None
        self._backoff = Backoff(0.1, 5.0)

    @property
    def name(self) -> str:
        """The name under which its clients are subscribed."""
        return self._office.name

    async def __aenter__(self) -> Self:
        """Begin to receive, in a task of its own; return when it listens.

        Raises:
            WakeqError: Redis refuses.
        """
        self._running = asyncio.create_task(self._run_in_task())
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait((self._running, ready), return_when=asyncio.FIRST_COMPLETED)
        if not self._ready.is_set():
            ready.cancel()
            await self._running
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        """Stop, and wait until handlers have returned; see `FanoutWorker.__exit__`."""
        self.stop()
        if self._running is not None:
            # What ended the body is not to be hidden.
            with contextlib.suppress(*((WakeqError,) if error is not None else ())):
                await self._running

    def stop(self) -> None:
        """Receive no more; `run` returns when the handlers have."""
        self._stopping.set()
        self._news.set()

    async def wait(self) -> None:
        """Wait until the worker, begun by `async with`, has ended; see `FanoutWorker.wait`."""
        if self._running is not None:
            await asyncio.shield(self._running)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    @staticmethod
    def create_client_id() -> str:
        """Return a client id that nobody else has."""
        return os.urandom(16).hex()

    async def subscribe(
        self, room: str, client_id: str, *, mode: str = "sync", backlog: str = "keep"
    ) -> None:
        """Make somebody a client whose messages come here; see `FanoutClient.subscribe`."""
        self._check()
        core, index = self._office.core, not self._office.is_alone
        reply = await self._drive(core.subscribe(room, client_id, self.name, mode, backlog, index))
        self._office.desk(room).take_joined(client_id, mode, reply)
        self._serve(room)

    async def unsubscribe(self, room: str, client_id: str) -> None:
        """Let a client leave; see `FanoutClient.unsubscribe`."""
        self._check()
        core = self._office.core
        await asyncio.sleep(0)  # what was acknowledged just now is known by then
        desk = self._office.desk(room)
        desk.begin_leave(client_id)
        unanswered, has_left = desk.unanswered(client_id), False
        try:
            if unanswered:
                # Behind the leave they would not count, and the message might be back in line.
                steps = core.ack_ahead(room, client_id, unanswered)
                counted = await self._drive(steps)
                unanswered = []
                self._office.tally.acknowledged += counted
            await self._drive(core.unsubscribe(room, client_id))
            has_left = True
        finally:
            for message_id in unanswered:
                desk.acknowledge(client_id, message_id)
            desk.end_leave(client_id, has_left)
            self._serve(room)

    def metrics(self) -> WorkerMetrics:
        """Return what was counted."""
        return self._office.tally.metrics()

    # -- hearing -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Receive until `stop` is called; Redis may come and go.

        Raises:
            ConfigError, RefusedError: it will not work by trying again.
        """
        try:
            while not self._stopping.is_set():
                if self._refusal is not None:
                    raise self._refusal
                await self._turn()
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._stopping.set()
            await self._end()

    async def _run_in_task(self) -> None:
        try:
            await self.run()
        except WakeqError as error:  # `wait` raises it
            if self._ready.is_set():
                log.error("the worker of rooms has ended: %s", error)
            raise

    async def _turn(self) -> None:
        try:
            if not self._bell.connected:
                await self._listen()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), self._office.pause)
            self._news.clear()
            while due := self._office.due_pings():
                requests = [request for _, request in due]
                replies = await self._drive(call_each(self._servers, requests, tries=1))
                for (desk, _), reply in zip(due, replies, strict=True):
                    self._office.take_ping(desk, reply)
            self._office.run_timers()
            self._serve_touched()
        except (ConfigError, RefusedError):
            raise
        except WakeqError as error:
            self._fail(error)
            self._hang_up()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._backoff.next())

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._bell.connect)
        self._bell_fd = self._bell.fileno()
        loop.add_reader(self._bell_fd, self._hear)
        if not self._office.is_alone:
            key = keys.worker_rooms(self.name)
            request = Request(key, ("SMEMBERS", key))
            for room in decoded(await self._drive(call(self._servers, request))):
                self._office.desk(room)
        self._office.doubt()  # nothing rang while nobody listened
        self._serve_touched()
        self._backoff.reset()
        if self._trouble:
            log.warning("Redis at %s answers again", self._servers.url)
            self._trouble = False
        self._ready.set()

    def _hear(self) -> None:
        try:
            for payload in self._bell.receive():
                self._office.hear(payload)
        except WakeqError as error:
            self._fail(error)
            self._hang_up()
        self._news.set()

    def _hang_up(self) -> None:
        # By its number, because a connection that breaks has no descriptor any more.
        if self._bell_fd >= 0:
            asyncio.get_running_loop().remove_reader(self._bell_fd)
        self._bell_fd = -1
        self._bell.close()

    def _fail(self, error: Exception) -> None:
        if isinstance(error, RefusedError):
            self._refusal = error  # the next turn raises it
            self._news.set()
            return
        if not self._trouble:
            log.warning("%s; trying again", error)
        self._trouble = True

    async def _end(self) -> None:
        self._hang_up()
        while self._tasks:
            await asyncio.wait(self._tasks)
        with contextlib.suppress(WakeqError):
            for request in self._office.farewell():
                await self._drive(call(self._servers, request, tries=1))
            if self._office.is_alone:
                # Nobody has this name again; a FanoutClient may have subscribed clients for it.
                key = keys.worker_rooms(self.name)
                await self._drive(call(self._servers, Request(key, ("DEL", key)), tries=1))
        self._line.close()
        await self._servers.aclose()

    # -- serving -----------------------------------------------------------------------------

    def _serve_touched(self) -> None:
        rooms, self._office.touched = self._office.touched, set()
        for room in rooms:
            self._serve(room)

    def _serve(self, room: str) -> None:
        """See that somebody does what there is to do in a room."""
        desk = self._office.desks.get(room)
        if desk is None or self._stopping.is_set():
            return
        if desk.has_step and not desk.is_served:
            desk.is_served = True
            self._begin(self._serve_rounds(desk))
        if desk.has_read and not desk.is_read:
            desk.is_read = True
            self._begin(self._serve_log(desk))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_rounds(self, desk: Desk) -> None:
        forgotten = begun = False
        try:
            while True:
                if begun and not desk.has_message:
                    begun = False
                    await asyncio.sleep(0)  # those that are quick acknowledge together
                step = desk.next_step()
                if step is None:
                    break
                if isinstance(step, RoomMessage):
                    if not self._stopping.is_set():
                        self._begin(self._handle(desk, step))
                        begun = True
                elif not await self._ask(desk, step):
                    break
                if desk.ejected or desk.reports:
                    await self._tell(desk)
        finally:
            desk.is_served = False
            forgotten = self._office.forget(desk)
        if forgotten and not self._office.is_alone:
            await self._leave_index(desk.room)
        self._serve(desk.room)

    async def _leave_index(self, room: str) -> None:
        """Take a room out of those of the worker, unless somebody has joined just now."""
        key = keys.worker_rooms(self.name)
        try:
            await self._drive(call(self._servers, Request(key, ("SREM", key, room))))
            reply = await self._drive(call(self._servers, self._office.whether_known(room)))
            if reply[1]:
                await self._drive(call(self._servers, Request(key, ("SADD", key, room))))
                self._office.desk(room)
        except WakeqError as error:
            self._fail(error)

    async def _serve_log(self, desk: Desk) -> None:
        try:
            while not self._stopping.is_set() and (step := desk.next_read()) is not None:
                if isinstance(step, RoomMessage):
                    await self._handle(desk, step)
                elif not await self._ask(desk, step):
                    break
        finally:
            desk.is_read = False
        self._serve(desk.room)

    async def _ask(self, desk: Desk, ask: Ask) -> bool:
        request = self._office.request(desk, ask)
        try:
            steps = call(self._servers, request)
            reply = await drive_async(self._servers, steps, self._carry_out)
        except Exception as error:  # whatever it is, what was asked must be asked again
            self._fail(error)
            self._office.put_back(desk, ask)
            self._news.set()
            return False
        if self._office.take(desk, ask, request, reply):
            self._news.set()
        return True

    async def _handle(self, desk: Desk, message: RoomMessage) -> None:
        if not self._office.terms.auto_ack and message.awaits:
            message.on_ack(partial(self._ack, asyncio.get_running_loop(), desk, message))
        failure: BaseException | None = None
        before = cancellations()
        try:
            await self._handlers[0](message)
        except (Exception, asyncio.CancelledError) as error:
            failure = error
        self._office.handled(desk, message, failure)
        if desk.retries:
            self._office.schedule_retries(desk)
            self._news.set()
        if isinstance(failure, asyncio.CancelledError) and cancellations() > before:
            # Else what the handler awaited was cancelled, which is a failure as others.
            self._office.touched.add(desk.room)
            self._news.set()
            raise failure
        self._serve(desk.room)

    def _ack(self, loop: asyncio.AbstractEventLoop, desk: Desk, message: RoomMessage) -> None:
        loop.call_soon_threadsafe(self._acknowledge, desk, message)

    def _acknowledge(self, desk: Desk, message: RoomMessage) -> None:
        desk.acknowledge(message.client, message.id)
        self._serve(desk.room)

    async def _tell(self, desk: Desk) -> None:
        """Tell the application who was removed."""
        _, on_timeout, on_ejected = self._handlers
        ejected, desk.ejected = desk.ejected, []
        reports, desk.reports = desk.reports, []
        self._office.tally.ejected += len(ejected)
        self._office.tally.timeouts += len(reports)
        for client, known in ejected:
            if on_ejected is not None:
                reason = known or await self._reason(desk.room, client)
                with logged(f"on_ejected, room {desk.room}, client {client}"):
                    await on_ejected(desk.room, client, reason)
        for client in reports:
            if on_timeout is not None:
                with logged(f"on_timeout, room {desk.room}, client {client}"):
                    await on_timeout(desk.room, client)

    async def _reason(self, room: str, client: str) -> str:
        request = self._office.why_ejected(room, client)
        try:
            reply = await self._drive(call(self._servers, request))
        except WakeqError as error:
            self._fail(error)
            return "not-subscribed"
        return reply[0][1].decode() if reply[0] else "taken-over"

    async def _drive(self, steps: Steps) -> Any:
        return await drive_async(self._servers, steps)
