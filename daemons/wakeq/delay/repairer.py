"""Has failed messages repaired before they are delivered again, if there is a repair.

One message at a time: `hand_out.lua` gives it, and keeps it from other daemons for as long as a
repair may take; a process of its own repairs it; `finish_repair.lua` delivers it, or makes it a
dead letter. If this daemon dies in between, the message is handed out again after that time. A
message that was handed out twice is finished once, because the second one does not find it as it
was. Messages that need no repair do not wait for any of this.
"""

import os
import select
import time
from typing import Any

from wakeq import failpoint, journal, keys
from wakeq.backoff import Backoff
from wakeq.delay.agenda import Agenda, Clock
from wakeq.delay.failed import BAD, CHANGED, FAILED, READY, FailedMessage
from wakeq.delay.link import Link
from wakeq.delay.stream import Stream
from wakeq.delay.worker import Worker
from wakeq.errors import ConfigError, TimedOut, UnavailableError
from wakeq.loop import Loop, Timer
from wakeq.message import (
    ATTEMPT,
    CONSUMER,
    ERROR,
    FAILED_AT,
    FIRST_ID,
    HOST,
    REPAIR_ERROR,
    TRACEBACK,
    carry,
)
from wakeq.scripts import Script
from wakeq.sections import Delay
from wakeq.service import NOW, Service
from wakeq.wire import TRANSIENT, Argument, ServerError, explain

_NAME = b"wakeq-delay"
# So that a repair that has timed out is over before its message is handed out again.
_MARGIN_MS = 1000
_TRY_AGAIN_MS = 1000.0
# A timer that is cancelled stays with the loop until its time: not for long.
_SLEEP_SECONDS = 10.0
_KEPT = (ATTEMPT, FIRST_ID, ERROR, FAILED_AT)


class Job:
    """A message that is being repaired."""

    def __init__(self, stream: Stream, reply: list[Any]) -> None:
        self.stream = stream
        self.member, self.token, self.due, (raw, first_id, *self.items) = reply
        self.group = raw.decode(errors="backslashreplace")
        self.message = FailedMessage(stream.name, self.group, first_id, self.items)


class Repairer:
    """Hands out messages and finishes their repairs.

    Attributes:
        ready: the repair has been loaded, or there is none.
    """

    def __init__(self, loop: Loop, service: Service, link: Link, clock: Clock) -> None:
        self.ready = False
        self._loop = loop
        self._service = service
        self._log = service.log
        self._link = link
        self._clock = clock
        self._agenda = Agenda()
        self._streams: dict[str, Stream] = {}
        self._hand_out = Script("hand_out")
        self._finish_repair = Script("finish_repair")
        self._worker: Worker | None = None
        self._candidate: Worker | None = None  # with new settings, until it is ready
        self._settings = Delay()
        self._job: Job | None = None
        self._overdue: Timer | None = None
        self._wake_timer: Timer | None = None
        self._backoff = Backoff(1.0, 60.0)
        self._repaired = self._buried = 0

    def configure(self, settings: Delay) -> None:
        """Repair with these settings from now on, once they are found to work.

        Raises:
            UnavailableError, ConfigError: the process cannot be started, at the start; later, that
                is tried again.
        """
        self._settings = settings
        self._drop_candidate()
        if not has_repair(settings):
            self.ready = True
            if self._worker is not None and self._job is None:
                self._end_worker()
        elif self._worker is None or not _same(self._worker.settings, settings):
            try:
                self._candidate = Worker(self._loop, settings, self._answered)
            except (UnavailableError, ConfigError) as error:
                if not self.ready:
                    raise
                self._try_again(str(error))

    def note(self, stream: Stream, when_ms: float) -> None:
        """Have a stream looked at: a message of it may be handed out then."""
        self._streams[stream.name] = stream
        self._agenda.hasten(stream.name, when_ms)

    def forget(self) -> None:
        """Plan nothing any more: Redis is lost."""
        self._agenda.clear()

    def figures(self) -> list[str]:
        """Return what to tell the service manager."""
        if not (self._repaired or self._buried or self._worker):
            return []
        return [f"{self._repaired:,} repaired", f"{self._buried:,} could not be"]

    def send(self) -> None:
        """Hand out the next message, if it is time for one: the end of a turn."""
        while self._job is None and self._worker is not None and self._worker.ready:
            name = next(self._agenda.take(self._clock.now_ms()), None)
            if name is None:
                self._set_timer()
                return
            self._hand_out_one(self._streams[name])

    def drain(self) -> None:
        """Finish the repair that is under way: a stop; a second one ends it.

        Raises:
            UnavailableError: Redis is lost.
        """
        deadline = time.monotonic() + self._settings.repair_timeout
        if self._job is not None:
            self._service.notifier.extend(self._settings.repair_timeout + 15)
        while (job := self._job) is not None and self._worker is not None:
            poll = select.poll()
            poll.register(self._worker.fileno(), select.POLLIN)
            poll.register(self._service.signal_fd, select.POLLIN)
            rest = deadline - time.monotonic()
            events = dict(poll.poll(max(0.0, rest * 1000)))
            self._service.clear_signal()
            if self._worker.fileno() in events:
                self._worker.receive()
            elif self._service.stop == NOW or rest <= 0:
                # Whoever is there may repair it at once.
                back: list[Argument] = ["ZADD", job.stream.repairs, "XX", job.due, job.member]
                self._link.call(job.stream.name, *back)
                return

    def close(self) -> None:
        """End the process that repairs."""
        self._drop_candidate()
        self._end_worker()

    def _set_timer(self) -> None:
        """Have a turn for what was handed out and came to nothing; what is new, is noted."""
        when = self._agenda.next_ms()
        if when is None:
            return
        seconds = min(max(0.0, when - self._clock.now_ms()) / 1000, _SLEEP_SECONDS)
        if self._wake_timer is not None:
            if self._wake_timer.when <= time.monotonic() + seconds + 0.001:
                return
            self._wake_timer.cancel()
        self._wake_timer = self._loop.after(seconds, self._wake)

    def _wake(self) -> None:
        self._wake_timer = None

    def _hand_out_one(self, stream: Stream) -> None:
        lease = round(self._settings.repair_timeout * 1000) + _MARGIN_MS
        reply = self._run(stream, self._hand_out, [stream.repairs, stream.data], [lease])
        if reply is None:
            return
        now_us, following, *found = reply
        self._clock.set(now_us)
        if following:
            self._agenda.put(stream.name, float(following))
        if found and self._worker is not None:
            job = self._job = Job(stream, found)
            failpoint.hit("handed_out")
            seconds = self._settings.repair_timeout
            self._overdue = self._loop.after(seconds, self._time_out)
            self._worker.ask((stream.name, job.group, job.message.entry_id, job.items))

    def _run(
        self,
        stream: Stream,
        script: Script,
        names: list[Argument],
        arguments: list[Argument],
        job: Job | None = None,
    ) -> Any:
        """Run a script; None if the stream does not permit it now."""
        try:
            connection = self._link.connection(stream.name)
            (reply,) = self._link.run(connection, script, [(names, arguments)])
        except UnavailableError as error:
            if not self._link.cluster:
                raise
            reply = ServerError(f"CLUSTERDOWN {error}")
        if not isinstance(reply, ServerError):
            return reply
        if self._link.cluster and reply.code in TRANSIENT:
            # Its node is away, or another one now; those of the other streams are not.
            self._link.forget(stream.name)
        elif reply.code in TRANSIENT:
            raise explain(reply, self._link.url)
        else:
            self._log.warning(
                "delivery was put off", event_id=journal.DELIVERY_PUT_OFF, stream=stream.name,
                group=job.group if job else "", message_id=job.message.id if job else "",
                error=str(reply),
            )  # fmt: skip
        self._agenda.hasten(stream.name, self._clock.now_ms() + _TRY_AGAIN_MS)
        return None

    def _time_out(self) -> None:
        if self._worker is not None:
            # It is told as an answer that it has ended.
            self._worker.kill()

    def _answered(self, worker: Worker, said: Any) -> None:
        if worker is self._candidate:
            self._introduced(worker, said)
        elif said is None:
            self._ended()
        else:
            try:
                self._finish(said)
            finally:
                if self._candidate is not None:
                    self._take_up(self._candidate)
                elif not has_repair(self._settings):
                    self._end_worker()

    def _introduced(self, worker: Worker, said: Any) -> None:
        """Take up a new process, or what is wrong with it."""
        if said is not None and said[0] == READY:
            worker.ready = self.ready = True
            self._backoff.reset()
            self._take_up(worker)
            return
        self._drop_candidate()
        why = said[1] if said is not None and said[0] == BAD else "the repair ends its own process"
        if not self.ready:
            raise ConfigError(why)
        self._try_again(why)

    def _try_again(self, why: str) -> None:
        if self._worker is not None:
            self._log.error(f"the repair before goes on, this one cannot be used: {why}")
        else:
            self._log.error(f"messages cannot be repaired: {why}")
        self._loop.after(self._backoff.next() + 1.0, self._begin_again)

    def _take_up(self, worker: Worker) -> None:
        """Go on with a new process, unless it is not ready or the old one is busy."""
        if worker.ready and self._job is None:
            self._end_worker()
            self._worker, self._candidate = worker, None

    def _ended(self) -> None:
        """The process has ended: what it was repairing cannot be repaired."""
        self._worker = None
        late = self._overdue is not None and self._overdue.when <= time.monotonic()
        text = f"TimedOut: {TimedOut()}" if late else "Crashed: the repair ended its own process"
        try:
            self._finish((FAILED, text, ""))
        finally:
            self._begin_again()

    def _begin_again(self) -> None:
        if self._candidate is None:
            self.configure(self._settings)

    def _finish(self, said: Any) -> None:
        """Deliver what was repaired, or bury it."""
        job, self._job = self._job, None
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        if job is None:
            return
        failpoint.hit("repaired")
        stream, message = job.stream, job.message
        items = job.items
        dead = said[0] == FAILED
        if dead:
            items = self._dead_letter(message, said[1], said[2])
        elif said[0] == CHANGED:
            own = [(name, value) for name in _KEPT if (value := message.own(name)) is not None]
            items = carry(message, own, said[1])
        place = keys.dead if dead else keys.retry
        names: list[Argument] = [stream.repairs, stream.data, place(stream.name, job.group)]
        names.append(keys.stats(stream.name, job.group))
        arguments: list[Argument] = [job.member, job.token, int(dead), *items]
        # If it is refused, the message is handed out again in a while.
        if self._run(stream, self._finish_repair, names, arguments, job):
            self._tell(job, said, dead)

    def _dead_letter(self, message: FailedMessage, error: str, trace: str) -> list[bytes]:
        own = [
            (ATTEMPT, b"%d" % message.failures),
            (FIRST_ID, message.id.encode()),
            (ERROR, message.own(ERROR) or b""),
            (REPAIR_ERROR, error.encode(errors="backslashreplace")),
            (CONSUMER, _NAME),
            (HOST, os.uname().nodename.encode()),
        ]
        if trace:
            own.append((TRACEBACK, trace.encode(errors="backslashreplace")))
        return carry(message, own)

    def _tell(self, job: Job, said: Any, dead: bool) -> None:
        of: dict[str, object] = {"stream": job.stream.name, "group": job.group}
        of["message_id"] = job.message.id
        if dead:
            self._buried += 1
            self._log.warning(
                "message could not be repaired", event_id=journal.REPAIR_FAILED,
                stream=job.stream.name, group=job.group, message_id=job.message.id,
                error=said[1], detail=said[2] or None,
            )  # fmt: skip
        else:
            self._repaired += 1
            changed = "repaired message" if said[0] == CHANGED else "message without a repair"
            self._log.debug(f"{changed} was delivered again", **of)

    def _drop_candidate(self) -> None:
        if self._candidate is not None:
            self._candidate.end()
            self._candidate = None

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None


def has_repair(settings: Delay) -> bool:
    """Tell whether failed messages are to be repaired."""
    return bool(settings.repair or settings.repair_exec)


def _same(one: Delay, other: Delay) -> bool:
    return (one.repair, one.repair_exec) == (other.repair, other.repair_exec)
