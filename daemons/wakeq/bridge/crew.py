"""The workers of a bridge: gives them batches, starts them anew after a crash, counts what they do.

A worker asks for a batch when it has handed the one before to Redis. What it has is kept here until
it says that it is published: if its process ends before that, the next one is given the same, under
the same number, and Redis knows whether that number was published already.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from wakeq import journal
from wakeq.backoff import Backoff
from wakeq.bridge import talk
from wakeq.bridge.meter import Meter
from wakeq.bridge.talk import Run
from wakeq.bridge.worker import Batch, Worker
from wakeq.errors import ConfigError, RefusedError, UnavailableError, WakeqError
from wakeq.journal import Log
from wakeq.loop import Loop

# Redis is busy with a batch for about a millisecond.
_MOST = 250
_MOST_BYTES = 1 << 20
# So long a batch may take, so that others find their share.
_BATCH_SECONDS = 0.01
# What a worker has when it ends: one batch with Redis, and one in the making.
_CAREFUL = 2

_KINDS = {kind.exit_code: kind for kind in (RefusedError, ConfigError)}

# Messages, and of a dead letter that is tried again its id; no messages if there are none.
Supplied = tuple[list[Run], bytes]
Supply = Callable[[int, int], Supplied]


class Crew:
    """All workers.

    Args:
        loop: tells what they say.
        log: what is told to people.
        count: how many there are.
        settings: what their processes need to know, see `work`.
        supply: gives messages, at most so many and not many more than so many bytes.

    Attributes:
        on_change: called when a worker has become ready, or has ended.
        meter: the messages of the last second.
        handled, published, dead: how many messages were handled, and became how many of the stream
            and of the dead letters.
        size: how many bytes of messages they have.
    """

    def __init__(
        self, loop: Loop, log: Log, count: int, settings: dict[str, Any], supply: Supply
    ) -> None:
        self.on_change: Callable[[], None]
        self.meter = Meter()
        self.handled = self.published = self.dead = 0
        self.size = 0
        self._loop = loop
        self._log = log
        self._supply = supply
        self._workers = [Worker(loop, n, settings, self._take) for n in range(1, count + 1)]
        self._backoffs = {worker: Backoff(0.1, 10.0) for worker in self._workers}
        self._waiting: deque[Worker] = deque()
        self._lost: dict[Worker, str] = {}
        self._each = _BATCH_SECONDS / 20  # seconds for a message, as it has been lately
        self._has_begun = False
        self._finishes = False

    @property
    def ready(self) -> bool:
        """Whether all have loaded what they need."""
        return all(worker.ready for worker in self._workers)

    @property
    def ids(self) -> list[str]:
        """The ids of those that live."""
        return [worker.id for worker in self._workers if worker.ready]

    @property
    def all_ids(self) -> list[str]:
        """The ids of all, whether they live now or not."""
        return [worker.id for worker in self._workers]

    @property
    def trouble(self) -> str:
        """Why one of them cannot publish now; empty if all can."""
        return next(iter(self._lost.values()), "")

    @property
    def idle(self) -> bool:
        """Whether none of them has anything to publish."""
        return not any(worker.batches or worker.again for worker in self._workers)

    @property
    def entries(self) -> set[bytes]:
        """The ids of dead letters that they try again."""
        return {
            batch.entry for worker in self._workers for batch in (*worker.batches, *worker.again)
        }

    @property
    def in_hand(self) -> int:
        """How many messages they have."""
        batches = (b for worker in self._workers for b in (*worker.batches, *worker.again))
        return sum(batch.count for batch in batches)

    @property
    def ended(self) -> bool:
        """Whether none of them has a process."""
        return not any(worker.lives for worker in self._workers)

    def start(self) -> None:
        """Start them.

        Raises:
            UnavailableError: the host has no room for one of them.
        """
        for worker in self._workers:
            worker.start()

    def pump(self) -> None:
        """Give messages to those that wait for some: the end of a turn."""
        for worker in [worker for worker in self._waiting if worker.wants and worker.again]:
            self._waiting.remove(worker)
            worker.give(worker.again.popleft())
        while self._waiting:
            worker = self._waiting[0]
            if worker.wants:
                most = max(1, min(_MOST, int(_BATCH_SECONDS / self._each)))
                runs, entry = self._supply(most, _MOST_BYTES)
                if not runs:
                    return
                batch = Batch(worker.next_number, runs, entry)
                worker.next_number += 1
            else:
                self._waiting.popleft()  # it has ended since
                continue
            self._waiting.popleft()
            self.size += batch.size
            worker.give(batch)

    def finish(self) -> None:
        """Let them end after what they have."""
        self._finishes = True
        for worker in self._workers:
            worker.finish()

    def end(self) -> None:
        """End them at once."""
        for worker in self._workers:
            worker.end()

    def _take(self, worker: Worker, said: Any) -> None:
        """Take what a worker says."""
        if said is None:
            self._end(worker)
            return
        kind, *rest = said
        if kind == talk.MORE:
            worker.wants = True
            self._waiting.append(worker)
        elif kind == talk.DONE:
            self._done(worker, *rest)
        elif kind == talk.AT:
            worker.at = (rest[0], rest[1])
        elif kind == talk.READY:
            worker.ready = True
            self._has_begun = self._has_begun or self.ready
            self.on_change()
        elif kind == talk.LOST:
            self._lost[worker] = rest[0]
            if not self._has_begun and rest[1] != UnavailableError.exit_code:
                raise _KINDS.get(rest[1], WakeqError)(rest[0])
        elif kind == talk.BACK:
            self._lost.pop(worker, None)
        elif kind == talk.BAD:
            if not self._has_begun:
                raise ConfigError(rest[0])
            self._log.error("a worker cannot start", consumer=worker.id, error=rest[0])

    def _done(
        self,
        worker: Worker,
        number: int,
        counts: tuple[int, int, int],
        seconds: float,
        whole: bool,
    ) -> None:
        received, published, dead = counts
        self._backoffs[worker].reset()
        if whole:
            worker.at = None
            if worker.batches and worker.batches[0].number == number:
                self.size -= worker.batches.popleft().size
            for place in [place for place in worker.crashes if place[0] <= number]:
                del worker.crashes[place]
        self.handled += received
        self.published += published
        self.dead += dead
        self.meter.add(received)
        if received:
            self._each += (max(1e-6, seconds / received) - self._each) / 4

    def _end(self, worker: Worker) -> None:
        code = worker.end()
        # The next process asks anew: one that stood here twice would be given a batch twice.
        self._waiting = deque(other for other in self._waiting if other is not worker)
        self._lost.pop(worker, None)
        self.on_change()
        if self._finishes and not worker.batches and not worker.again:
            return
        if worker.at is not None:
            worker.crashes[worker.at] += 1
            worker.at = None
        worker.again.extendleft(reversed(worker.batches))
        worker.batches.clear()
        self._log.warning(
            "a worker ended, starting another one", event_id=journal.WORKER_ENDED,
            consumer=worker.id, code=code, in_hand=sum(b.count for b in worker.again),
        )  # fmt: skip
        self._loop.after(self._backoffs[worker].next(), partial(self._start_again, worker))

    def _start_again(self, worker: Worker) -> None:
        if worker.lives:
            return
        try:
            worker.start(_CAREFUL)
        except (UnavailableError, ConfigError) as error:
            self._log.error("a worker cannot start", consumer=worker.id, error=str(error))
            self._loop.after(self._backoffs[worker].next(), partial(self._start_again, worker))
