"""The rooms of wakeq-fanout: which connection is which client, and what is delivered to it.

A gateway is a worker (see `rooms`) without handlers: what a desk hands out is written to the
connection whose client it is for, and the acknowledgement comes over that. The worker's name is the
process's own. If it dies, its clients have nobody who pings for them, and are timed out as others;
whoever comes to another gateway with the same client id before that is given what is outstanding.
"""

import time
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

from wakeq.backoff import Backoff
from wakeq.errors import RoomError, WakeqError
from wakeq.fanout import protocol
from wakeq.fanout.bell import Bell
from wakeq.fanout.calling import call
from wakeq.fanout.core import Core
from wakeq.fanout.delivery import Ask, Handout, RoomMessage
from wakeq.fanout.desk import Desk
from wakeq.fanout.door import Door
from wakeq.fanout.gatherer import Gatherer
from wakeq.fanout.leaver import Leaver, Told
from wakeq.fanout.link import NAME, Link
from wakeq.fanout.office import FanoutTerms, Office
from wakeq.fanout.patience import Patience
from wakeq.fanout.peer import Peer
from wakeq.fanout.records import Queued
from wakeq.fanout.rooms import Request
from wakeq.fanout.trouble import BELL
from wakeq.loop import Loop, Timer

_AGAIN_SECONDS = 1.0
_GONE_MOST = 10_000


class Gateway:
    """Connects rooms with connections.

    Args:
        loop: what calls when there is something to do.
        link: where Redis is asked.
        door: where the connections are.
        timeout: clients of a gateway that is gone are timed out after so many seconds.
        queue_limit: a send to a room where so many messages wait is refused; 0: no limit.

    Attributes:
        gatherer: has messages acknowledged.
        leaver: takes out of their rooms who has left.
        delivered: how many messages were, one for each client.
        clients: how many its connections are, in all rooms together.
    """

    def __init__(
        self, loop: Loop, link: Link, door: Door, timeout: float, queue_limit: int
    ) -> None:
        self.delivered = 0
        self._loop = loop
        self._link = link
        self._trouble = link.trouble
        self._door = door
        self.core = Core(link, timeout, queue_limit)
        terms = FanoutTerms(timeout=timeout, auto_ping=True, auto_ack=False)
        self.office = Office(self.core, terms, reports=False)
        self.clients = 0
        self._members: dict[str, dict[str, Peer]] = {}  # by room and client
        self.gatherer = Gatherer(loop, self.office, door)
        self._joining: dict[tuple[str, str], list[bytes]] = {}
        self.leaver = Leaver(link, self.office, self.leave, self.gatherer.unanswered)
        self._patience = Patience(loop, self._time_out)
        self._bell = Bell(link.url, self.office.channel, NAME)
        self._bell_fd = -1
        self._backoff = Backoff(0.1, 5.0)
        self._timer: Timer | None = None
        self._wakes_at = inf  # monotonic
        self._event: tuple[Queued | None, bytes] = (None, b"")

    # -- what Redis says by itself -----------------------------------------------------------

    def listen(self) -> None:
        """Hear of news from now on; Redis may come and go."""
        try:
            self._bell.connect()
        except WakeqError as error:
            self._deafened(error)
            return
        self._bell_fd = self._bell.fileno()
        self._loop.watch(self._bell_fd, self._hear)
        self._backoff.reset()
        # Nothing rang while nobody listened.
        self.office.doubt()
        self._trouble.end(BELL)
        self._link.believe()

    def _hear(self) -> None:
        try:
            for payload in self._bell.receive():
                self.office.touched.add(self.office.hear(payload).room)
        except WakeqError as error:
            self._deafened(error)

    def _deafened(self, error: WakeqError) -> None:
        self.close()
        self._loop.after(self._backoff.next(), self.listen)
        self._trouble.begin(BELL, error)

    def turn(self) -> None:
        """Do what there is to do, at the end of each turn of the loop."""
        office = self.office
        if office.due_at <= time.monotonic():
            self._tick()
        if self.leaver.is_busy:
            self.leaver.send()
        while office.touched:
            touched, office.touched = office.touched, set()
            for room in touched:
                self._serve(room)
        if office.due_at < self._wakes_at - 0.001:
            if self._timer is not None:
                self._timer.cancel()
            self._wakes_at = office.due_at
            self._timer = self._loop.after(self._wakes_at - time.monotonic(), self._woken)

    def _woken(self) -> None:
        self._timer, self._wakes_at = None, inf

    def _tick(self) -> None:
        while due := self.office.due_pings():
            for desk, request in due:
                self._link.run(call(self._link, request, tries=1), partial(self._pinged, desk))
        self.office.run_timers()

    def _pinged(self, desk: Desk, reply: Any, error: Exception | None) -> None:
        if error is None:
            self.office.take_ping(desk, reply)

    # -- what a desk wants done --------------------------------------------------------------

    def _serve(self, room: str) -> None:
        desk = self.office.desks.get(room)
        if desk is None:
            return
        while not desk.is_served and (work := desk.next_steps()) is not None:
            if isinstance(work, Handout):
                self._hand_out(room, work)
            else:
                desk.is_served = True
                self._ask(desk, work)
        while not desk.is_read and not self._is_held_up(desk):
            step = desk.next_read()
            if isinstance(step, RoomMessage):
                peer = self._member(room, step.client)
                if peer is None and step.client not in desk.seats:
                    desk.finish(step)  # it has hung up since, and may be on its way back
                    continue
                if peer is not None and not self._door.has_room(peer, len(step.data)):
                    break  # until it has read what waits for it, or is ejected
                self._deliver(room, step.client, self._line(room, step.message, step.oob))
                desk.finish(step)
            elif step is not None:
                desk.is_read = True
                self._ask(desk, step)
            else:
                break
        if desk.ejected:
            self._tell_ejected(desk)
        if desk.is_idle and not self.leaver.is_about(room) and self.gatherer.forget(room):
            self.office.forget(desk)
            self._trouble.end(f"room {room}")

    def _is_held_up(self, desk: Desk) -> bool:
        """Tell whether to read no more for now: a client there has not taken what was read."""
        if not self._door.behind:
            return False
        return any(desk.room in peer.rooms for peer in self._door.behind)

    def resume(self, peer: Peer) -> None:
        """Go on with the rooms of a connection that is not behind any more."""
        self.office.touched |= peer.rooms.keys()

    def _ask(self, desk: Desk, ask: Ask) -> None:
        request = self.office.request(desk, ask)

        def done(reply: Any, error: Exception | None) -> None:
            if ask.what == "read":
                desk.is_read = False
            else:
                desk.is_served = False
            if error is not None:
                self._trouble.begin(f"room {desk.room}", error)
                self.office.after(_AGAIN_SECONDS, desk, partial(desk.put_back, ask))
            else:
                if self._trouble:
                    self._trouble.end(f"room {desk.room}")
                self._take(desk, ask, request, reply)
            self.office.touched.add(desk.room)

        self._link.carry_out(request, done)

    def _take(self, desk: Desk, ask: Ask, request: Request, reply: Any) -> None:
        if ask.what == "ack":
            failed = desk.take_ack(ask, reply, request.repeated)
            self.gatherer.answer(desk.room, ask, failed, request.repeated)
        else:
            self.office.take(desk, ask, request, reply)

    def _line(self, room: str, message: Queued, oob: bool) -> bytes:
        if self._event[0] is not message:
            self._event = message, protocol.delivery(room, message, oob)
        return self._event[1]

    def _hand_out(self, room: str, handout: Handout) -> None:
        """Deliver a message of a round."""
        line = self._line(room, handout.message, False)
        self.gatherer.give(room, handout.message.id, handout.clients)
        members = self._members.get(room, {})
        for client in handout.clients:
            peer = members.get(client)
            if peer is None or self._joining:
                self._deliver(room, client, line)
            else:  # by far the most frequent
                self.delivered += 1
                self._door.deliver(peer, line)

    def _deliver(self, room: str, client: str, line: bytes) -> None:
        peer = self._member(room, client)
        if peer is None:
            self.leave(room, client)
            return
        self.delivered += 1
        held = self._joining.get((room, client)) if self._joining else None
        if held is not None:
            held.append(line)
        else:
            self._door.deliver(peer, line)

    def hear(self, room: str, reply: Any) -> None:
        """Take the figures in the reply to an acknowledgement that a desk did not ask for."""
        _, version, begun, logged, timeouts, *_ = reply
        self.office.desk(room).hear(begun, logged, timeouts, version)

    # -- joining and leaving -----------------------------------------------------------------

    def join(
        self, peer: Peer, room: str, client: str, mode: str, backlog: str,
        done: Callable[[Exception | None], None],
    ) -> None:  # fmt: skip
        """Make a connection a client of a room; it is told when that is done, or why not."""
        here = (room, client)
        desk = self.office.desk(room)
        other = self._member(room, client)
        if other is not None and other is not peer:
            self._eject(other, room, "taken-over")
            self.gatherer.leave(room, client)
            desk.begin_leave(client)  # what it had in hand is given out again
        self.clients += other is not peer
        self._members.setdefault(room, {})[client] = peer
        # What Redis has for it before its answer is here, because that was lost, comes behind.
        held = self._joining[here] = []
        peer.rooms[room] = client
        peer.gone.pop(room, None)

        def joined(reply: Any, error: Exception | None) -> None:
            desk = self.office.desk(room)
            if self._joining.get(here) is held:
                del self._joining[here]
            if self._member(room, client) is not peer:
                self.leave(room, client)  # it has hung up meanwhile, or another one has come
                if error is None:
                    code = peer.gone.get(room, "not-subscribed")
                    error = RoomError(code, f"this connection was ejected from room {room}")
            elif error is not None:
                self._forget(peer, room)
                self.leave(room, client)  # the reply may have been lost
            else:
                desk.take_joined(client, mode, reply)
                if client not in desk.seats:
                    desk.end_leave(client)
            done(error)
            for line in held if error is None else ():
                self._door.deliver(peer, line)

        steps = self.core.subscribe(room, client, self.office.name, mode, backlog, index=False)
        self._link.run(steps, joined)

    def expect(self, peer: Peer, room: str, timeout: float | None) -> None:
        """Have a connection taken out of a room when it has been silent for so many seconds."""
        self._patience.forget(peer, room)
        if timeout is not None and room in peer.rooms:
            self._patience.expect(peer, room, timeout)

    def _time_out(self, peer: Peer, room: str) -> None:
        client = peer.rooms[room]
        self._eject(peer, room, "timed-out")
        self.leave(room, client)

    def leave(self, room: str, client: str, told: Told | None = None) -> None:
        """Take a client out of a room, unless it has come back."""
        if self._member(room, client) is None:
            self.gatherer.leave(room, client)
            self.leaver.leave(room, client, told)

    def unsubscribe(self, peer: Peer, room: str, told: Told) -> None:
        """Let a connection leave a room."""
        client = peer.rooms[room]
        self._forget(peer, room)
        self.leave(room, client, told)

    def part(self, peer: Peer) -> None:
        """Let a connection leave all rooms."""
        for room in list(peer.rooms):
            client = peer.rooms[room]
            self._forget(peer, room)
            self.leave(room, client)

    def _forget(self, peer: Peer, room: str) -> None:
        client = peer.rooms.pop(room)
        self._patience.forget(peer, room)
        some = self._members.get(room, {})
        if some.get(client) is peer:
            self.clients -= 1
            del some[client]
            if not some:
                del self._members[room]

    def _member(self, room: str, client: str) -> Peer | None:
        some = self._members.get(room)
        return some.get(client) if some else None

    @property
    def has_work(self) -> bool:
        """Tell whether `turn` has something to do at once."""
        return bool(self.office.touched or self.leaver.has_work)

    def eject(self, peer: Peer, reason: str) -> None:
        """Take a connection out of all rooms, and tell it instead of messages it has not read."""
        peer.drop_unsent(protocol.DELIVERY)
        peer.moved_at = time.monotonic()  # it may read this now
        for room, client in list(peer.rooms.items()):
            self._eject(peer, room, reason)
            self.leave(room, client)

    def _eject(self, peer: Peer, room: str, reason: str) -> None:
        self._forget(peer, room)
        if len(peer.gone) >= _GONE_MOST:
            peer.gone.clear()
        peer.gone[room] = reason
        self._door.put(peer, protocol.ejection(room, reason))

    def _tell_ejected(self, desk: Desk) -> None:
        ejected, desk.ejected = desk.ejected, []
        for client, reason in ejected:
            if reason:
                self._ejected(desk.room, client, reason)
            else:
                # It may have come back meanwhile; then Redis has nothing against it.
                request = self.office.rooms.ping(desk.room, [client])
                then = partial(self._found_out, desk.room, client)
                self._link.run(call(self._link, request), then)

    def _found_out(self, room: str, client: str, reply: Any, error: Exception | None) -> None:
        if error is not None:
            self._ejected(room, client, "not-subscribed")
        elif reply[0]:
            self._ejected(room, client, reply[0][1].decode())

    def _ejected(self, room: str, client: str, reason: str) -> None:
        self.office.touched.add(room)  # the log may have waited for it to read
        desk = self.office.desks.get(room)
        if (room, client) in self._joining or (desk is not None and client in desk.seats):
            return  # it has come back since; if it is out again, a look tells
        if (peer := self._member(room, client)) is not None:
            self._eject(peer, room, reason)

    def close(self) -> None:
        """Hear no more."""
        self._loop.forget(self._bell_fd)
        self._bell_fd = -1  # the number may be another file's by the next time
        self._bell.close()
