"""The consumer's loop: what is read, handled, acknowledged and kept, and when it ends.

One thread runs this loop and alone speaks to Redis; the lanes run the handlers. States:

    starting     connect, take the name, make the group, recover what is pending
    handling     read as much as there is room for, acknowledge what is done
    idle         nothing in hand; a read blocks in Redis until there is something
    draining     a stop, a reload or a stuck handler: see `drainer`

A process that is killed leaves everything in Redis: what it had is pending under its name, and
its successor reads that first. A lost connection is the same on a small scale: what was sent
and not confirmed is sent again, pending messages that are not in hand are read again.
"""

from time import monotonic

from wakeq import failpoint
from wakeq.config import Consumer as Settings
from wakeq.consumer.acknowledger import Acknowledger
from wakeq.consumer.claimer import Claimer
from wakeq.consumer.drainer import Drainer
from wakeq.consumer.hand import RETRY, Hand, Member
from wakeq.consumer.handler import Handler
from wakeq.consumer.idler import Idler
from wakeq.consumer.keeper import LIFETIME_SECONDS, Keeper
from wakeq.consumer.lanes import LOOK_AGAIN_SECONDS
from wakeq.consumer.limiter import Limiter
from wakeq.consumer.link import Link
from wakeq.consumer.order import arrange
from wakeq.consumer.outcomes import Outcomes
from wakeq.consumer.reader import Reader
from wakeq.consumer.reporter import Reporter
from wakeq.consumer.resumer import Resumer
from wakeq.consumer.wakesocket import WakeSocket
from wakeq.errors import EX_TEMPFAIL, ConfigError, UnavailableError
from wakeq.message import Message
from wakeq.selector import Selector
from wakeq.service import DRAIN, Service
from wakeq.wire import ServerError

NEVER = float("inf")
# A read blocks no longer, so that a dead connection is noticed and the watchdog fed.
_BLOCK_SECONDS = 5.0


class Consumer:
    """Handles the messages of one stream for one group until it is idle or stopped.

    Args:
        service: the process around it.
        settings: the consumer's.
        handler: what to call for each message.
        wake: the wake socket.
        name: the consumer's, in the group.
    """

    def __init__(
        self, service: Service, settings: Settings, handler: Handler, wake: WakeSocket, name: str
    ) -> None:
        self.service = service
        self.settings = settings
        self.wake = wake
        is_strict = settings.order == "strict"
        self.member = Member(settings.stream, settings.group, name, is_strict)
        self.hand = Hand()
        lifetime = settings.lease if is_strict else LIFETIME_SECONDS
        self.keeper = Keeper(self.member, self.hand, settings.claim_after, lifetime)
        self.report = Reporter(service, self.member)
        self.owner, self.lanes, self.line = arrange(
            settings, handler, self.member, self.hand, self.keeper, self.report
        )
        self.reader = Reader(self.member, settings, self.hand)
        self.acknowledger = Acknowledger(self.member, self.hand)
        self.claimer = Claimer(self.member, settings)
        self.resumer = Resumer(self.hand, self.line, self.keeper)
        self.limiter = Limiter(self.lanes, 0.0 if settings.exec_ else settings.timeout)
        self.drainer = Drainer(
            self.hand, self.lanes, self.line, self.keeper, settings.drain_timeout
        )
        self.outcomes = Outcomes(self.member, settings, self.hand, self.acknowledger, self.report)
        self.selector = Selector()
        self.link = Link(
            service, self.member, settings.start, self.keeper, self.selector, self.report
        )
        exits_idle = bool(wake.listeners) or "idle_timeout" in service.options
        self.idler = Idler(settings.idle_timeout if exits_idle else None, self.hand, self.reader)
        self.block_seconds = _BLOCK_SECONDS
        self._turned_at = monotonic()
        self._flush_at = self._look_at = NEVER
        self._end_as = "stopped"
        self._exit_code: int | None = None
        self._ended = False
        self.reload_wanted = False

    # -- starting ------------------------------------------------------------------------

    def run(self) -> int | None:
        """Handle messages until idle or stopped; return the exit code.

        Raises:
            WakeqError: Redis does not answer in time, refuses, or holds something else.
        """
        self._put_together()
        if not self.link.connect_at_start():
            return None
        self.lanes.start()
        try:
            while not self._ended:
                try:
                    self._turn()
                except UnavailableError as error:
                    self.link.lose(error)
                except ServerError as error:
                    self.link.refuse(error)
        finally:
            self.lanes.close()
        return self._exit_code

    def _put_together(self) -> None:
        self.reader.on_messages = self._take
        self.reader.on_deleted = self.acknowledger.discard
        self.reader.on_bell = self._on_bell
        self.reader.on_paused = self.link.unblock
        self.claimer.on_messages = self._on_claimed
        self.keeper.on_gone = self._on_gone
        self.resumer.on_ours = self.line.put
        self.acknowledger.is_sure = lambda: self.keeper.is_sure
        self.acknowledger.on_confirmed = self.link.hold
        self.acknowledger.on_refused = self.outcomes.fail
        self.limiter.on_timeout = self.outcomes.fail
        self.line.on_crashed = self.outcomes.fail
        self.outcomes.on_hold = self._hold_up
        self.outcomes.on_turned_back = lambda messages: self.line.hold(messages, 0.0)
        self.line.is_paused = lambda: self.reader.paused
        self.owner.on_owner = self._on_owner
        self.owner.on_forgotten = lambda: self.resumer.check(self.link)
        self.owner.attach(self.selector, self.link.unblock)
        self.line.on_late = self.drainer.give_up
        self.limiter.on_stuck = self._on_stuck
        self.report.in_hand = lambda: self.hand.unfinished
        self.report.state = self._state
        self.link.position = lambda: self.reader.position(self.acknowledger.unsettled)
        self.link.on_up = self._on_up
        self.link.on_down = self._on_down
        self.wake.watch(self.selector, self.report.figures)
        self.selector.register(self.lanes.bell, self._on_rung)
        self.selector.register(self.service.signal_fd, self.service.clear_signal)

    # -- the loop ------------------------------------------------------------------------

    def _turn(self) -> None:
        """Do what there is to do, and wait for something to happen."""
        now = monotonic()
        slept, self._turned_at = now - self._turned_at, now
        self._collect()
        self._obey_signals()
        if slept > self.keeper.lifetime / 2:
            self._after_pause()
        if self.link.is_up:
            if not self.line.is_empty:
                self.line.move(self.link.writing)
            self._keep(now)
            self._acknowledge_and_read(now)
            self._sleep_if_idle(now)
        elif now >= self.link.reconnect_at:
            self.link.reconnect()
        self.limiter.tick(now)
        if self.drainer.draining:
            self._drain(now)
        self.report.tick(now)
        if not self._ended:
            self._wait()

    def _wait(self) -> None:
        """Wait until something can be received or is due."""
        ready = self.selector.wait(max(0.0, self._next_deadline() - monotonic()))
        if monotonic() - self._turned_at > self.keeper.lifetime / 2:
            return  # first see to the pause; what is ready stays so
        for fd in ready:
            # A callback before this one may have given its connection up.
            self.selector.call(fd)

    def _next_deadline(self) -> float:
        deadline = min(
            self._turned_at + min(self.block_seconds, self.keeper.lifetime / 3),
            self._look_at, self.limiter.next_at,
            self.drainer.next_at, self.report.next_at, self.link.next_at,
        )  # fmt: skip
        if not self.link.is_up:
            return deadline
        return min(
            deadline, self._flush_at, self.keeper.next_at, self.claimer.next_at,
            self.line.next_at, self.owner.next_at, self.reader.next_at,
        )  # fmt: skip

    def _collect(self) -> None:
        """Take what the lanes are done with."""
        if self._turned_at >= self._look_at:
            self._look_at = NEVER
        done = self.lanes.done
        if not done:
            return
        ready, handled = self.acknowledger.ready, 0
        while done:
            item = done.popleft()
            # By far the most frequent case, so kept short.
            if type(item) is Message and not item.finished:
                item.finished = True
                ready[item.source].append(item.entry_id)
                handled += 1
            else:
                self.outcomes.take(item)
        self.hand.unfinished -= handled
        self.report.handled += handled
        self.idler.put_off()

    def _take(self, messages: list[Message]) -> None:
        """Take messages that were read or claimed."""
        self.report.ready()
        new = self.hand.take(messages)
        if not new:
            return
        self.idler.put_off()
        self.owner.recall(new)
        if not self.resumer.hold_back(new):
            self.line.put(new)

    def _acknowledge_and_read(self, now: float) -> None:
        """Send acknowledgements, in one breath with the next read if there is room for one."""
        ready = self.acknowledger.has_ready
        count = 0
        may_read = self.owner.is_owner and not self.drainer.draining and now < self.idler.at
        if may_read and not self.reader.waiting and not self.reader.paused:
            count = self.reader.pace.room(self.hand.unfinished)
        if count:
            if ready:
                self._send_acknowledgements(now)
            block = min(self.block_seconds, self.idler.at - now)
            self.reader.ask(self.link.reading, now, count, max(1, int(block * 1000)))
            self.link.reading.flush()
        elif ready and (now >= self._flush_at or not self.hand.unfinished):
            self._send_acknowledgements(now)
        elif ready and self._flush_at == NEVER:
            self._flush_at = now + LOOK_AGAIN_SECONDS

    def _send_acknowledgements(self, now: float) -> None:
        channel = self.link.writing if self.reader.waiting else self.link.reading
        self.acknowledger.send(channel, self.reader.position())
        channel.flush()
        self._flush_at = NEVER

    def _keep(self, now: float) -> None:
        """Keep name and messages, claim those of others, notice a silent server."""
        self.link.check(now)
        if now >= self.reader.next_at:
            self.reader.look_again(now, self.link.reading)
        if now >= self.owner.next_at:
            self.owner.tick(now, self.link.writing if self.owner.is_owner else self.link.reading)
        if now >= self.keeper.next_at:
            self.keeper.tick(now, self.link.writing)
            self.link.writing.flush()
        if self.claimer.more or now >= self.claimer.next_at:
            room = 0 if self.drainer.draining else self.reader.room_for_claims
            self.claimer.tick(now, self.link.writing, room)
            self.link.writing.flush()

    # -- sleeping and ending -------------------------------------------------------------

    def _sleep_if_idle(self, now: float) -> None:
        """End if nothing came for long enough and a last look finds nothing."""
        if self.drainer.draining or self.claimer.busy or not self.acknowledger.is_settled:
            return
        if not self.owner.is_owner:
            self.idler.put_off()  # it is another one's turn
        elif self.link.reading.idle and self.idler.is_over(now, self.link):
            failpoint.hit("before_exit")
            self.report.stopping()
            self._end_as = "went to sleep"
            self._leave()

    def _obey_signals(self) -> None:
        if self.service.reload and not self.drainer.draining:
            self.service.reload = False
            self._reload()
        if self.service.stop >= DRAIN and not self.drainer.draining:
            self._exit_code = 0
            self.report.stopping("draining")
            self.drainer.begin()

    def _reload(self) -> None:
        """Read the configuration anew; if it is right, drain and begin again with it."""
        try:
            self.service.read_config().consumer(self.service.name)
        except ConfigError as error:
            self.report.reload_refused(error)
            return
        self.service.notifier.reloading()
        self._end_as = "restarted for a reload"
        self.reload_wanted = True
        self.drainer.begin()

    def _drain(self, now: float) -> None:
        self.drainer.tick(now, self.link, self.reader, self.service)
        if self.link.is_up and not (self.owner.is_owner or self.owner.stands_by):
            return  # to give the group up, it must be known whose it is
        if self.drainer.is_over(self.acknowledger, self.reader, self.link):
            self._leave()

    def _leave(self) -> None:
        """Give the name up and end the loop; what happens to Redis now is of no matter."""
        if self.link.is_up:
            try:
                # Who stands by waits over one of them. A handler that is at it yet ends before
                # anybody else begins.
                channel = self.link.reading if self.link.reading.idle else self.link.writing
                token = b"" if self.lanes.is_busy else self.owner.token
                ring = self.drainer.handed_back > 0 or (self.drainer.draining and self.claimer.left)
                self.keeper.leave(channel.connection, ring, token)
            except (UnavailableError, ServerError):
                pass  # the name runs out by itself, and its next owner need not wait for that
        failpoint.hit("after_leave")
        self.link.close()
        self._ended = True
        self.report.ended(self._end_as, self.drainer.handed_back)

    # -- what comes in between -----------------------------------------------------------

    def _on_rung(self) -> None:
        """Hear a lane, and look again when lanes that are silent since must be done."""
        self.lanes.hear()
        self._look_at = monotonic() + LOOK_AGAIN_SECONDS

    def _on_bell(self, entry_ids: list[bytes]) -> None:
        """Look for what another consumer says that it handed back."""
        self.acknowledger.discard(RETRY, entry_ids)
        self.claimer.look_now()

    def _on_claimed(self, messages: list[Message]) -> None:
        self.report.claimed(len(messages))
        self._take(messages)

    def _on_gone(self, messages: list[Message]) -> None:
        """Disown messages that another consumer has now."""
        ours = [message for message in messages if not message.finished]
        if ours:
            self.hand.finish(ours)
            self.hand.drop(ours)
            self.report.gone(len(ours))

    def _hold_up(self, messages: list[Message], seconds: float) -> None:
        """Hold the line up after a failure, in strict order."""
        self.line.hold(messages, seconds)
        if self.link.is_up:
            self.owner.record(self.link.writing, messages)
            self.reader.look_again(monotonic(), self.link.writing)

    def _on_owner(self) -> None:
        self.idler.put_off()
        self.report.ready()

    def _on_stuck(self, messages: list[Message]) -> None:
        if not self.drainer.draining:
            self.report.stuck(messages)
            self._exit_code = EX_TEMPFAIL
            self.drainer.begin()

    def _after_pause(self) -> None:
        """Make sure, after a long pause of this process, that what it has is still its own.

        What Redis has sent meanwhile may be another consumer's by now, so it is left unread.
        What is not is read again, over new connections.
        """
        self.resumer.begin()
        if self.link.is_up:
            self.link.close()
            self._on_down()
            self.link.reconnect()

    def _on_up(self, paused: bool, has_pending: bool) -> None:
        self.reader.restart(has_pending)
        self.reader.paused = paused
        self.owner.restart()
        self.resumer.ask(self.link)

    def _on_down(self) -> None:
        self.acknowledger.lost()
        self.reader.restart()
        self.claimer.restart()
        self.line.restart()
        self._flush_at = NEVER

    def _state(self) -> str:
        if self.drainer.draining:
            return "draining"
        if not self.report.is_ready:
            return "starting"
        if self.owner.stands_by or self.hand.unfinished:
            return "standing by" if self.owner.stands_by else "handling"
        return "paused" if self.reader.paused else "idle"
