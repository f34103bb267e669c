"""Lanes: where handlers run, beside the loop that speaks to Redis.

A lane handles one message (or batch) at a time. Handlers that block run in threads, a lane
each; coroutines run as tasks of one event loop, in a thread of its own. What a lane is done
with it appends to `done` and rings `bell`, so that acknowledgements, heartbeats and the
watchdog never wait for a handler.

The bell costs a system call, so a lane rings at most every 2 ms while it has more to do. That
may leave finished messages unannounced when the next handler is slow; whoever is rung looks
again 3 ms later, and since a lane is silent only within 2 ms of a ring, that look finds all.
"""

from __future__ import annotations

import os
import threading
from _queue import Empty, SimpleQueue
from collections import deque
from collections.abc import Iterable
from time import monotonic

from wakeq import failpoint
from wakeq.consumer.handler import Handler
from wakeq.errors import TimedOut
from wakeq.message import Message, Publish

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    from typing import Any


QUIET_SECONDS = 0.002
LOOK_AGAIN_SECONDS = 0.003

# A message that was handled, or messages with what came of them: what to publish, or why they
# failed.
Done = Message | tuple[list[Message], list[Publish] | BaseException]


class Lanes:
    """Runs a handler in `concurrency` threads.

    Args:
        handler: what to call.
        concurrency: how many at once.
        keyed: whether messages with one key go to one lane, in order.

    Attributes:
        done: what the lanes are done with, oldest first; another thread takes from its left.
        bell: an eventfd, readable when there may be something in `done`.
        current: what each lane is at.
    """

    # Whether `interrupt` can end a handler. A thread cannot be ended from outside, and an
    # exception sent to it arrives only after the call that it is stuck in.
    interruptible = False

    def __init__(self, handler: Handler, concurrency: int, keyed: bool) -> None:
        self.handler = handler
        self.concurrency = concurrency
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.done: deque[Done] = deque()
        self.current: list[list[Message]] = [[] for _ in range(concurrency)]
        self._queues = [self._new_queue() for _ in range(concurrency if keyed else 1)]
        self._turn = 0

    def start(self) -> None:
        """Start the lanes."""
        for number in range(self.concurrency):
            # Daemons, because a handler that never returns must not hold up the exit.
            threading.Thread(
                target=self._run, args=(number,), name=f"lane-{number}", daemon=True
            ).start()

    def hear(self) -> None:
        """Silence the bell, having heard it."""
        try:
            os.eventfd_read(self.bell)
        except BlockingIOError:
            return  # heard before

    def put(self, messages: Iterable[Message]) -> None:
        """Give messages to the lanes."""
        if len(self._queues) == 1:
            put = self._queues[0].put
            for message in messages:
                put(message)
            return
        from zlib import crc32  # only keyed lanes pay for it

        for message in messages:
            key = message.key
            if key:
                lane = crc32(key)
            else:
                lane = self._turn = self._turn + 1
            self._queues[lane % self.concurrency].put(message)

    def take_back(self) -> list[Message]:
        """Return the messages that no lane has begun; they will not be handled."""
        back: list[Message] = []
        for queue in self._queues:
            _take(queue, back, 1_000_000)
        return back

    def overdue(self, before: float) -> list[tuple[int, list[Message]]]:
        """Return the lanes, with their messages, that began before a time and are at it yet."""
        return [
            (number, messages)
            for number, messages in enumerate(self.current)
            if messages and 0 < messages[0].started < before
        ]

    def interrupt(self, number: int, messages: list[Message]) -> None:
        """End what a lane is doing with these messages, if it is `interruptible`."""

    @property
    def is_busy(self) -> bool:
        """Tell whether a handler is running."""
        return any(self.current)

    def close(self) -> None:
        """End the lanes, as far as they can be ended; nothing is put any more."""
        if self.handler.stop is not None:
            self.handler.stop()

    def _new_queue(self) -> Any:
        return SimpleQueue()

    def _run(self, number: int) -> None:
        queue = self._queues[number % len(self._queues)]
        call, most = self.handler.call, self.handler.batch
        done, bell = self.done.append, self.bell
        rung = 0.0
        while True:
            message = queue.get()
            if message.finished:
                continue  # another consumer has it now
            messages = self.current[number] = [message]
            if most:
                _take(queue, messages, most)
                messages[1:] = [message for message in messages[1:] if not message.finished]
            message.started = monotonic()
            try:
                failpoint.hit("before_handle")
                result = call(messages if most else message)
                failpoint.hit("after_handle")
                done(message if result is None and not most else outcome(messages, result))
            except BaseException as error:
                done((messages, error))
            self.current[number] = []
            now = monotonic()
            if now - rung > QUIET_SECONDS or queue.empty():
                rung = now
                os.eventfd_write(bell, 1)


class AsyncLanes(Lanes):
    """Runs a coroutine handler as `concurrency` tasks of one event loop, in one thread."""

    interruptible = True

    def start(self) -> None:
        """Start the event loop in its thread."""
        import asyncio  # only coroutines pay for it

        self._asyncio = asyncio
        self._loop = asyncio.new_event_loop()
        self._sleeping: dict[int, asyncio.Future[None]] = {}
        self._interrupted: set[int] = set()
        self._closing = False
        self._tasks = [self._loop.create_task(self._lane(n)) for n in range(self.concurrency)]
        self._thread = threading.Thread(target=self._serve, name="lanes", daemon=True)
        self._thread.start()

    def put(self, messages: Iterable[Message]) -> None:
        """Give messages to the lanes."""
        super().put(messages)
        self._loop.call_soon_threadsafe(self._wake)

    def interrupt(self, number: int, messages: list[Message]) -> None:
        """End what a lane is doing with these messages."""

        def cancel() -> None:
            if self.current[number] is messages:
                self._interrupted.add(number)
                self._tasks[number].cancel()

        self._loop.call_soon_threadsafe(cancel)

    def close(self) -> None:
        """Cancel all tasks, the application's own too, and give them a second to end."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=1.0)

    def _serve(self) -> None:
        self._loop.run_forever()
        self._closing = True
        tasks = self._asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(self._asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _new_queue(self) -> Any:
        return _LoopQueue()

    def _wake(self) -> None:
        for number, future in list(self._sleeping.items()):
            if self._queues[number % len(self._queues)]:
                del self._sleeping[number]
                future.set_result(None)

    async def _lane(self, number: int) -> None:
        queue = self._queues[number % len(self._queues)]
        call, most = self.handler.call, self.handler.batch
        done, bell = self.done.append, self.bell
        rung = yielded = 0.0
        while True:
            if not queue:
                future = self._sleeping[number] = self._loop.create_future()
                await future
                continue
            message = queue.popleft()
            if message.finished:
                continue  # another consumer has it now
            messages = self.current[number] = [message]
            if most:
                _take(queue, messages, most)
                messages[1:] = [message for message in messages[1:] if not message.finished]
            message.started = monotonic()
            try:
                failpoint.hit("before_handle")
                result = await call(messages if most else message)
                failpoint.hit("after_handle")
                done(message if result is None and not most else outcome(messages, result))
            except BaseException as error:
                if self._closing:
                    raise
                if number in self._interrupted:
                    self._tasks[number].uncancel()
                    done((messages, TimedOut()))
                else:
                    done((messages, error))
            self.current[number] = []
            self._interrupted.discard(number)
            now = monotonic()
            if now - rung > QUIET_SECONDS or not queue:
                rung = now
                os.eventfd_write(bell, 1)
            if now - yielded > QUIET_SECONDS:
                # A handler that never waits must not starve the application's other tasks.
                yielded = now
                await self._asyncio.sleep(0)


class _LoopQueue(deque[Message]):
    """A queue that one event loop takes from and another thread fills."""

    put = deque.append
    get_nowait = deque.popleft


def _take(queue: Any, messages: list[Message], most: int) -> None:
    """Move messages from a queue to the end of a list until the list has `most`."""
    try:
        while len(messages) < most:
            messages.append(queue.get_nowait())
    except (Empty, IndexError):
        return


def outcome(messages: list[Message], result: Any) -> Done:
    """Return what came of messages whose handler returned this result."""
    if isinstance(result, Publish):
        return messages, [result]
    wrong = ""
    if isinstance(result, list | tuple):
        publishes = [r for r in result if isinstance(r, Publish)]
        if not publishes or len(publishes) == len(result):
            return messages, publishes
        wrong = "a list in which not everything is to be published"
    elif hasattr(result, "__await__"):
        wrong = "something to be awaited: declare it with async def"
    elif hasattr(result, "__next__") or hasattr(result, "__anext__"):
        wrong = "an iterator, of which nothing has run: return a list instead"
    return messages, TypeError(f"the handler returned {wrong}") if wrong else []


def make_lanes(handler: Handler, concurrency: int, keyed: bool) -> Lanes:
    """Return the lanes that fit a handler."""
    kind = AsyncLanes if handler.is_async else Lanes
    return kind(handler, concurrency, keyed)
