"""The taker's loop: what is taken from the list, handled, finished and put back, and when it ends.

One thread runs it and alone speaks to Redis; the lanes run the handlers. At rest it waits in Redis
for a message (BLMOVE), which goes first to a list of its own, `taking`; from there, and from the
list itself, take.lua takes messages in hand, into the hash `taken`, by numbers in their order. They
are out of it in one step with what their outcome asks for, in whatever order they are done. A hash,
because from the list that LMOVE makes each would have to be searched for.

A process that is killed leaves all it had in these two; see `takers_keeper` for who puts it back. A
lost connection is the same on a small scale: what is in hand stays, what was sent and not confirmed
is sent again, and what is in `taken` and not in hand is taken in hand.
"""

from time import monotonic

from wakeq import failpoint
from wakeq.consumer.handler import Handler
from wakeq.consumer.lanes import LOOK_AGAIN_SECONDS, make_lanes
from wakeq.consumer.limiter import Limiter
from wakeq.consumer.wakesocket import WakeSocket
from wakeq.errors import EX_TEMPFAIL, UnavailableError
from wakeq.message import Message
from wakeq.node.takers_drainer import Drainer
from wakeq.node.takers_finisher import Finisher
from wakeq.node.takers_hand import Hand, Line, Pace
from wakeq.node.takers_keeper import Keeper, clock
from wakeq.node.takers_link import Link
from wakeq.node.takers_reporter import Reporter
from wakeq.scripts import Script
from wakeq.sections import Node
from wakeq.selector import Selector
from wakeq.service import DRAIN, Service
from wakeq.wire import Argument, Reply, ServerError

NEVER = float("inf")
# A wait is no longer, so that a server that is gone without a word is noticed.
_BLOCK_SECONDS = 10
# After the time that a wait takes, it has ended after this.
_GHOST_SECONDS = 1.0
# While Redis is full it lets nobody wait.
_FULL_SECONDS = 1.0
_TAKE_BYTES = 8 * 1024 * 1024
_READ_AT_ONCE = 100


class Taker:
    """Handles the messages of a list until it is stopped.

    Args:
        service: the process around it.
        settings: the node's.
        handler: what to call for each message.
        wake: the wake socket, over which its figures are asked for.
    """

    def __init__(
        self, service: Service, settings: Node, handler: Handler, wake: WakeSocket
    ) -> None:
        self.service = service
        self.source = settings.list_
        self.wake = wake
        self.selector = Selector()
        self.hand = Hand(self.source)
        self.pace = Pace(settings.workers)
        self.report = Reporter(service, self.source)
        self.keeper = Keeper(self.source)
        self.lanes = make_lanes(self.keeper.guard(handler), settings.workers, keyed=False)
        self.line = Line(self.hand, self.lanes, settings.max_crashes)
        self.finisher = Finisher(service.name, settings, self.hand, self.keeper, self.report)
        self.limiter = Limiter(self.lanes, 0.0 if settings.exec_ else settings.timeout)
        self.drainer = Drainer(self.source, self.hand, self.line, self.lanes, self.keeper)
        self.drainer.timeout = settings.drain_timeout
        names = (self.source, self.finisher.error_list)
        self.link = Link(service, names, self.selector, self.report)
        self._take = Script("take")
        self._asked = 0  # how many messages take.lua is asked for, 0 if it is not
        self._waits = False  # a take or a wait for a message is under way
        self._is_full = True  # the last take brought as many as it was asked for
        self._is_brisk = False  # the last wait brought a message
        self._held: list[Message] = []
        self._take_at = 0.0
        self._turned_at = monotonic()
        self._flush_at = self._look_at = self._search_at = NEVER
        self._was_up = False
        self._exit_code = 0
        self._ended = False

    def run(self) -> int:
        """Handle messages until stopped; return the exit code.

        Raises:
            WakeqError: Redis does not answer in time, refuses, or holds something else.
        """
        self._put_together()
        if not self.link.connect_at_start():
            return 0
        self.lanes.start()
        self.report.ready()
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
            self.link.close()
        return self._exit_code

    def _put_together(self) -> None:
        self.line.on_crashed = self.finisher.fail
        self.limiter.on_timeout = self.finisher.fail
        self.limiter.on_stuck = self._on_stuck
        self.finisher.on_held = self._held.extend
        self.finisher.on_confirmed = self.link.hold
        self.keeper.on_put_back = self.report.put_back
        self.link.on_up = self._on_up
        self.link.on_down = self._on_down
        self.report.in_hand = lambda: self.hand.unfinished
        self.report.busy = lambda: sum(map(bool, self.lanes.current))
        self.report.connections = lambda: self.link.count
        self.report.state = self._state
        self.wake.watch(self.selector, self.report.figures)
        self.selector.register(self.lanes.bell, self._on_rung)
        self.selector.register(self.service.signal_fd, self.service.clear_signal)

    # -- the loop ------------------------------------------------------------------------

    def _turn(self) -> None:
        """Do what there is to do, and wait for something to happen."""
        now = self._turned_at = monotonic()
        self._collect()
        if self.service.stop >= DRAIN and not self.drainer.draining:
            self.report.stopping()
            self.drainer.begin()
        if self.link.is_up:
            self.link.check(now)
            if clock() >= self.keeper.next_at:
                self.keeper.tick(self.link.writing)
            if self._held and clock() < self.keeper.until:
                self._go_on()
            self.line.move(self.link.writing, self.keeper.taken)
            self._finish_and_take(now)
        elif now >= self.link.reconnect_at:
            self.link.reconnect()
        self.limiter.tick(now)
        if self.drainer.draining:
            self.drainer.tick(now, self.link, self._waits, self.service)
            if self.drainer.is_over(now, self.link, self.finisher, self._waits):
                self._leave()
        self.report.tick(now)
        if not self._ended:
            self._wait()

    def _wait(self) -> None:
        """Wait until something can be received or is due."""
        now = monotonic()
        deadline = min(
            self._turned_at + _BLOCK_SECONDS, self._look_at, self.limiter.next_at,
            self.drainer.next_at, self.report.next_at, self.link.reconnect_at,
        )  # fmt: skip
        if self.link.is_up:
            kept = now + self.keeper.next_at - clock()
            deadline = min(deadline, self._flush_at, kept)
            if self._take_at > now:
                deadline = min(deadline, self._take_at)
            if not self._waits and self.link.reading.idle:
                deadline = min(deadline, self._search_at)
        for fd in self.selector.wait(max(0.0, deadline - now)):
            # A callback before this one may have given its connection up.
            self.selector.call(fd)

    def _collect(self) -> None:
        """Take what the lanes are done with."""
        if self._turned_at >= self._look_at:
            self._look_at = NEVER
        done = self.lanes.done
        while done:
            self.finisher.take(done.popleft())

    def _finish_and_take(self, now: float) -> None:
        """Say what is finished, in one send with the next take if there is room for one."""
        ready = self.finisher.has_ready
        room = 0
        if now >= self._search_at and not self._waits:
            if not self.link.reading.idle:
                return  # once what it was asked is answered
            self._search()
        if not (self._waits or self.drainer.draining) and now >= self._take_at:
            self.pace.learn_rate(now, self.report.handled + self.report.failed)
            room = self.pace.room(self.hand.unfinished) if clock() < self.keeper.until else 0
        if room:
            self._send_finished(ready)
            self._ask(room)
        elif ready and (now >= self._flush_at or not self.hand.unfinished):
            self._send_finished(ready)
        elif ready and self._flush_at == NEVER:
            self._flush_at = now + LOOK_AGAIN_SECONDS

    def _send_finished(self, ready: bool) -> None:
        if ready:
            channel = self.link.writing if self._waits else self.link.reading
            self.finisher.send(channel)
            channel.flush()
        self._flush_at = NEVER

    # -- taking --------------------------------------------------------------------------

    def _ask(self, room: int) -> None:
        """Take messages; wait for one if there were none left the last time."""
        failpoint.hit("before_take")
        channel = self.link.reading
        self._waits = True
        if self._is_full:
            self._ask_take(room)
        else:
            until_search = max(1.0, self._search_at - self._turned_at)
            seconds = int(min(_BLOCK_SECONDS, until_search))
            command = ("BLMOVE", self.source, self.keeper.taking, "RIGHT", "LEFT", seconds)
            if self._is_brisk:  # else a take for nothing follows each wait in vain
                channel.ask(command, self._on_waited, seconds)
                self._ask_take(room)
            else:
                channel.ask(command, lambda reply: self._on_waited(reply, room), seconds)
        channel.flush()

    def _ask_take(self, room: int) -> None:
        keeper = self.keeper
        self._asked = room
        first = self.hand.first
        self.hand.first += room
        names: list[Argument] = [self.source, keeper.taken, keeper.taking, *keeper.others]
        arguments: list[Argument] = [keeper.taker, first, room, _TAKE_BYTES]
        self.link.reading.run(
            self._take, names, arguments, lambda reply: self._on_taken(first, reply)
        )

    def _on_waited(self, reply: Reply, room: int = 0) -> None:
        """Hear that there is a message, or none; with `room`, nobody has asked to take it yet."""
        if isinstance(reply, ServerError):
            if reply.code != "OOM":
                raise reply
            self._take_at = self._turned_at + _FULL_SECONDS
        failpoint.hit("after_wait")
        if room and reply is not None:
            self._ask_take(room)
            self.link.reading.flush()
        elif room:
            self._waits = False

    def _on_taken(self, first: int, reply: Reply) -> None:
        if isinstance(reply, ServerError):
            raise reply
        failpoint.hit("after_take")
        bodies, marks = reply[::2], reply[1::2]
        self._is_full = len(bodies) >= self._asked
        self._is_brisk = bool(bodies)
        self._asked = 0
        self._waits = False
        self.link.hold()
        if not bodies:
            return
        self.report.stir(self._turned_at)
        self.pace.learn_size(len(bodies), sum(map(len, bodies)))
        messages, alone = [], {}
        for number, (body, mark) in enumerate(zip(bodies, marks, strict=True), first):
            times, solo = map(int, mark.split()) if mark else (0, 0)
            messages.append(self.hand.take(number, body, times))
            if solo:
                alone[number] = solo
        self._put(messages, alone)

    def _put(self, messages: list[Message], alone: dict[int, int]) -> None:
        if self.drainer.draining:
            self.drainer.give_up(messages)
        else:
            self.line.put(messages, alone)

    # -- what comes in between -----------------------------------------------------------

    def _leave(self) -> None:
        """Put the rest back and end the loop; who is cut off from Redis leaves that to others."""
        if self.link.is_up and not self._waits and self.finisher.is_settled:
            try:
                self.drainer.leave(self.link)
            except (UnavailableError, ServerError):
                pass  # it is put back when the time of this taker is over
        failpoint.hit("after_leave")
        self._ended = True
        self.report.ended(self.drainer.put_back)

    def _on_rung(self) -> None:
        """Hear a lane, and look again when lanes that are silent since must be done."""
        self.lanes.hear()
        self._look_at = monotonic() + LOOK_AGAIN_SECONDS

    def _on_stuck(self, messages: list[Message]) -> None:
        if not self.drainer.draining:
            self.report.stuck(messages[0])
            self._exit_code = EX_TEMPFAIL
            self.drainer.begin()

    def _go_on(self) -> None:
        """Go on with what was held up because it might have been somebody else's."""
        held, self._held[:] = list(self._held), []
        ours = [message for message in held if not message.finished]
        if ours:
            self._put(sorted(ours, key=lambda message: message.place), {})

    def _on_up(self) -> None:
        """Join the takers over new connections, and find out what is in hand."""
        connection = self.link.reading.connection
        if not self.keeper.join(connection):
            self._disown()
        self.hand.begin(int(self.keeper.now_seconds * 1000))
        self._search()
        if self._was_up:
            # Redis may take the old connection for alive yet, and answer what waits over it.
            self._search_at = monotonic() + _BLOCK_SECONDS + _GHOST_SECONDS
        self._was_up = True

    def _search(self) -> None:
        """Take in hand what was taken for this process and did not reach it."""
        self._search_at = NEVER
        self._is_full = True  # what a wait has moved is there for the next take
        connection = self.link.reading.connection
        names = connection.call("HKEYS", self.keeper.taken)
        known = self.hand.messages
        lost = sorted(n for n in map(int, filter(bytes.isdigit, names)) if n not in known)
        for start in range(0, len(lost), _READ_AT_ONCE):
            some = lost[start : start + _READ_AT_ONCE]
            bodies = connection.call("HMGET", self.keeper.taken, *some)
            self._put([self.hand.take(*pair) for pair in zip(some, bodies, strict=True)], {})

    def _disown(self) -> None:
        """Forget what is in hand, because other processes have it now."""
        ours = self.hand.disown()
        self.finisher.disown()
        self.line.take_back()
        self._held.clear()
        if ours:
            self.report.disowned(len(ours))

    def _on_down(self) -> None:
        self.finisher.lost()
        self.line.restart()
        self._asked = 0
        self._waits = False
        self._is_full = True
        self._flush_at = NEVER

    def _state(self) -> str:
        if self.drainer.draining:
            return "draining"
        if not self.report.is_ready:
            return "starting"
        return "handling" if self.hand.unfinished else "idle"
