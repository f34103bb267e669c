"""What one process of a worker knows of one room: its clients there, and what is to be done next.

A `Desk` decides and does no I/O: `next` says what to ask Redis or which handler to call, and the
replies are told to it. So blocking code, asyncio and a daemon's loop share every decision. Rounds
and the log are two lines of work beside each other, so that what is out-of-band does not wait for a
handler of a round; each of them is for one caller at a time.
"""

from collections import deque
from collections.abc import Container, Iterable, Sequence
from math import inf
from typing import Any

from wakeq.backoff import Growth
from wakeq.fanout.acks import Acks
from wakeq.fanout.delivery import Ask, Handout, RoomMessage, Seat
from wakeq.fanout.log_reader import LogReader
from wakeq.fanout.records import Queued
from wakeq.fanout.rooms import failures
from wakeq.fanout.tally import Tally

_GONE = {"not-subscribed", "timed-out", "taken-over"}
GROWTH = Growth(0.1, 2.0, 30.0)


class Desk:
    """One room, as one process of a worker sees it.

    Attributes:
        version: of the worker's list of clients, as far as it is known whole; else -1.
        listed: up to which version of it all who have joined are known.
        is_ours: another process of the worker does not have the room.
        is_served, is_read: somebody does what `next_step`, `next_read` say; the caller's to set.
        ejected: (client, reason) that are to be told; the reason may be empty: ask.
        reports: clients that were timed out and are to be told.
        check_in: seconds after which to look again, or None.
        checked_at: when the next such look is due, monotonic; the caller's to set.
        retries: messages whose handlers failed, and after how many seconds to hand them out again.
    """

    def __init__(self, room: str, tally: Tally, reports: bool) -> None:
        self.room = room
        self.version = self.listed = -1
        self.seats: dict[str, Seat] = {}
        self.is_ours = True
        self.is_served = self.is_read = False
        self.ejected: list[tuple[str, str]] = []
        self.reports: list[str] = []
        self.check_in: float | None = None
        self.checked_at = inf
        self.retries: list[tuple[RoomMessage, float]] = []
        self._tally = tally
        self._wants_reports = reports
        self._wants_look = True
        self._round = self._timeouts = -1
        self._todo: deque[Handout] = deque()
        self._log = LogReader(room, tally, self.seats)
        self._acks = Acks()
        self._reasons: dict[str, str] = {}
        self._leaving: set[str] = set()
        self._seen = 0  # the version of the list that was taken last
        self._left_at: dict[str, int] = {}  # at which edit, since the log was read
        self._edits = 0

    # -- what there is to do -----------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Tell whether the worker has no clients there, and nothing to do."""
        busy = self.is_served or self.is_read or self.has_step or self.has_read
        told = self.ejected or self.reports
        return self.is_ours and not (busy or self.seats or self.retries or told or self._acks.asked)

    @property
    def has_step(self) -> bool:
        """Tell whether `next_step` would say something."""
        return bool(self._acks or self._todo or self._wants_look)

    @property
    def has_message(self) -> bool:
        """Tell whether there is a message of a round to be handed out."""
        return bool(self._todo)

    @property
    def has_read(self) -> bool:
        """Tell whether `next_read` would say something."""
        return self._log.has_message or (self.is_ours and self._log.has_ask)

    def next_step(self) -> Ask | RoomMessage | None:
        """Return what to do next for the rounds."""
        if not self._todo or self._acks.are_late:
            return self._next_ask()
        found = self._todo[0].next(self.room)
        if not self._todo[0].clients:
            self._todo.popleft()
        return found

    def next_steps(self) -> Ask | Handout | None:
        """Return what to do next for the rounds, for who hands a message out to all at once."""
        return self._todo.popleft() if self._todo else self._next_ask()

    def _next_ask(self) -> Ask | None:
        if self._acks:
            return self._acks.next()
        if self._wants_look:
            self._wants_look = False
            names = [client for client, seat in self.seats.items() if seat.mode == "sync"]
            return Ask("look", "", names, self._edits)
        return None

    def next_read(self) -> Ask | RoomMessage | None:
        """Return what to do next for the log."""
        if message := self._log.next_message():
            return message
        return self._log.ask(self._edits) if self.is_ours and self._log.has_ask else None

    @property
    def has_untold(self) -> bool:
        """Tell whether more of the log is done than Redis knows."""
        return self.is_ours and self._log.has_untold

    @property
    def read_from(self) -> tuple[int | None, int | None]:
        """After which number to read on, and up to which all is done."""
        return self._log.place

    # -- what Redis says ---------------------------------------------------------------------

    def hear(
        self, rounds: int, logged: int, timeouts: int, version: int, is_free: bool = False
    ) -> None:
        """Take the figures of the room, from a ring or a reply; `is_free`: nobody has it."""
        if version == -1:
            self._let_go()
            self._wants_look = True
            return
        if version < self.listed:
            self.listed = -1  # it may be that of another server
        if not self.is_ours:
            # Who has it hears it, too.
            self._wants_look = self._wants_look or is_free
            return
        if version != self.version or rounds != self._round:
            self._wants_look = True
        if timeouts != self._timeouts:
            self._timeouts = timeouts
            self._wants_look = self._wants_look or self._wants_reports
        self._log.hear(logged)

    def doubt(self) -> None:
        """Believe nothing that was heard: something may have been missed."""
        self._wants_look = True
        self._log.doubt()

    def doubt_look(self) -> None:
        """Look again: somebody may have to be timed out."""
        self._wants_look = True

    def take_failures(self, failed: Iterable[Any]) -> list[tuple[str, str]]:
        """Take what a ping or acknowledgement says of clients; return them."""
        found = list(failures(list(failed)))
        for client, code in found:
            if code in _GONE and client in self.seats:
                self._reasons[client] = code
                self._wants_look, self.version = True, -1
        return found

    def take_joined(self, client: str, mode: str, reply: Sequence[Any]) -> None:
        """Take the reply to subscribing; see room_join.lua."""
        _, version, since, joined = reply
        self._leaving.discard(client)
        self._edits += 1
        known = self.seats.get(client)
        if known is None or known.mode != mode:
            self.seats[client] = Seat(mode, since, joined)
            self._log.join(client, since)
        # Else others have joined or left, too; a look tells, also if this one is out again.
        is_this = known is None and version == self.version + 1
        self.version = version if is_this else -1
        self.listed = version if is_this else self.listed
        self._seen = version if is_this else self._seen
        self._wants_look = self._log.is_wanted = True

    def begin_leave(self, client: str) -> None:
        """Have no client any more that is being unsubscribed here."""
        self._leaving.add(client)
        self._edits += 1
        if self.seats.pop(client, None):
            self._log.begin_leave(client)
        self._hand_out_only_to(self.seats)

    def end_leave(self, client: str, has_left: bool = True) -> None:
        """Believe again what Redis says of a client; it has left, or that failed."""
        self._leaving.discard(client)
        self._edits += 1
        if has_left:
            self._log.leave(client)
            self._left_at[client] = self._edits
        self.version, self._wants_look = -1, True

    def take_look(self, ask: Ask, reply: Sequence[Any]) -> None:
        """Take the reply to a look; see room_look.lua."""
        elsewhere, version, members, rounds, raw, waiting, logged, late = reply[:8]
        self._timeouts = late
        self.reports += [name.decode() for name in reply[8]]
        if elsewhere:
            self._let_go()
            self.check_in = elsewhere / 1000 + 0.001
            return
        self.is_ours = True
        overdue = reply[9]
        self.check_in = None if overdue < 0 else overdue / 1000 + 0.001
        if ask.edits != self._edits:
            self.version, self._wants_look = -1, True  # what it says may be older than what we did
        elif version != self.version:
            self._take_members(members, reply[11])
            self.version = self.listed = version
            # A list that is made anew has the time as its version.
            self._seen = version or reply[10]
            self._log.is_wanted = True
        self._round = rounds
        self._log.hear(logged)
        if raw and (message := self._tally.read(raw)):
            # Who has joined anew since that was asked had it before.
            some = [(name, self.seats.get(name)) for name in map(bytes.decode, waiting)]
            waiting = [name for name, seat in some if seat is None or seat.joined < rounds]
            self._hand_out(waiting, message, reply[10])

    def _let_go(self) -> None:
        """Begin nothing that another process is given now."""
        self.is_ours = False
        for client in [client for each in self._todo for client in each.clients]:
            if seat := self.seats.get(client):
                seat.in_hand = ""
        self._todo.clear()
        self._log.let_go()

    def _take_members(self, members: Sequence[Any], done: int) -> None:
        rows = iter(members)
        found: dict[str, Seat] = {}
        came: list[str] = []
        for raw, mode, since, joined in zip(rows, rows, rows, rows, strict=True):
            client = raw.decode()
            if client in self._leaving:
                continue
            known = self.seats.get(client)
            seat = found[client] = known or Seat("", since, joined)
            if seat.mode != mode.decode():
                came.append(client)
            seat.mode, seat.since, seat.joined = mode.decode(), since, joined
        for client in self.seats.keys() - found.keys():
            reason = self._reasons.get(client, "")
            self.ejected.append((client, reason))
            self._log.leave(client)  # another worker has what is not done
        self._reasons.clear()
        self.seats.clear()
        self.seats.update(found)
        for client in came:
            self._log.join(client, max(found[client].since, done))
        self._log.keep_leaving(self._leaving)
        self._hand_out_only_to(found)

    def take_ack(
        self, ask: Ask, reply: Sequence[Any], repeated: bool = False
    ) -> list[tuple[str, str]]:
        """Take the reply to acknowledgements; see room_acknowledge.lua. Return what failed.

        `repeated`: they were sent again, so what says that it was done may be from the first time.
        """
        failed, version, rounds, logged, late, raw, now_us = reply
        self._acks.take(ask)
        found = self.take_failures(failed) if failed else []
        known = ("doubled", "not-outstanding") if repeated else ("doubled",)
        in_vain = [client for client, code in found if code not in known]
        for client in ask.clients:
            if seat := self.seats.get(client):
                if client not in in_vain:
                    seat.acked = ask.message_id
                if seat.in_hand == ask.message_id:
                    seat.in_hand = ""
        self._tally.acknowledged += len(ask.clients) - len(found)
        if raw and version == self.version and self.is_ours:
            self._round = rounds
            if message := self._tally.read(raw):
                some = self.seats.items()
                waiting = [c for c, s in some if s.joined < rounds and s.mode == "sync"]
                self._hand_out(waiting, message, now_us)
        self.hear(rounds, logged, late, version)
        return found

    def put_back(self, ask: Ask) -> None:
        """Ask that again: there was no reply."""
        if ask.what == "ack":
            self._acks.put_back(ask)
        else:
            self.doubt()

    def take_read(self, ask: Ask, reply: Sequence[Any]) -> None:
        """Take the reply to reading; see room_read.lua."""
        logged, version, members, done = reply[0], *reply[4:]
        if logged < 0:
            self.version, self._wants_look = -1, True
        elif version >= self._seen:  # else a look has told already what was later
            self._add_members(ask, members, done)
            self.listed = version
        self._log.take(ask, reply)

    def _add_members(self, ask: Ask, members: Sequence[Any], done: int) -> None:
        """Know who has joined; a look tells who has left."""
        self._left_at = {client: edit for client, edit in self._left_at.items() if edit > ask.edits}
        rows = iter(members)
        for raw, mode, since, joined in zip(rows, rows, rows, rows, strict=True):
            client = raw.decode()
            gone = client in self._leaving or client in self._left_at
            if client not in self.seats and not gone:
                self.seats[client] = Seat(mode.decode(), since, joined)
                self._log.join(client, max(since, done))

    def _hand_out(self, clients: Iterable[str], message: Queued, now_us: int) -> None:
        given = []
        for client in clients:
            seat = self.seats.get(client)
            if client in self._leaving:
                continue
            if seat is None:
                self.version, self._wants_look = -1, True
            elif seat.acked == message.id:
                self.acknowledge(client, message.id)  # the first one was lost, with who had it
            elif seat.in_hand != message.id:
                seat.in_hand = message.id
                given.append(client)
        if given:
            latency = self._tally.receive(now_us, message, len(given))
            self._todo.append(Handout(message, given, latency))

    def _hand_out_only_to(self, clients: Container[str]) -> None:
        self._todo = deque(each for each in self._todo if each.keep(clients))

    # -- what handlers did -------------------------------------------------------------------

    def acknowledge(self, client: str, message_id: str) -> None:
        """Have an acknowledgement sent."""
        self.acknowledge_all([client], message_id)

    def acknowledge_all(self, clients: Iterable[str], message_id: str) -> None:
        """Have the acknowledgements of some clients sent."""
        self._acks.add(clients, message_id)

    def unanswered(self, client: str) -> list[str]:
        """Return what a client has acknowledged, and Redis not confirmed: the caller's to send."""
        return self._acks.unanswered(client)

    def finish(self, message: RoomMessage) -> None:
        """Have one of the log done, whatever became of it."""
        self._log.finish(message)

    def fail(self, message: RoomMessage, delay: float | None) -> None:
        """Have a message handed out again after a failure, in so many seconds."""
        self._tally.failed += 1
        wait = GROWTH.wait(message.attempt) if delay is None else delay
        self.retries.append((message, wait))

    def again(self, message: RoomMessage) -> None:
        """Hand a message out again, unless that has become pointless."""
        seat = self.seats.get(message.client)
        if seat is not None and seat.in_hand == message.id:
            message.attempt += 1
            some = Handout(message.message, [message.client], message.latency, message.attempt)
            self._todo.append(some)
