"""What one process of a worker reads of a room's log, and hands out of it.

It reads for all clients of the worker at once, and hears with each reply who has joined. Who comes
from a worker that was slower is behind: then the process goes back to his place once all that it
has read is done, and hands that out to nobody else. Redis still has it: it believes what is done
from who knows of him, and not before.
"""

from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from wakeq.fanout.delivery import Ask, RoomMessage, Seat
from wakeq.fanout.tally import Tally


class LogReader:
    """The log of one room, as one process of a worker sees it; it does no I/O.

    Args:
        seats: the clients of the worker.

    Attributes:
        logged: the last number in it that was heard of.
        is_wanted: there may be something to read.
    """

    def __init__(self, room: str, tally: Tally, seats: Mapping[str, Seat]) -> None:
        self.logged = 0
        self.is_wanted = True
        self._room = room
        self._tally = tally
        self._seats = seats
        self._todo: deque[tuple[int, RoomMessage]] = deque()
        self._left: set[str] = set()  # since it was read
        self._read: int | None = None  # after which number to read on; None: where the worker was
        self._most = 0  # up to here, all have it who are not behind
        self._behind: dict[str, int] = {}  # client -> up to where it has it
        self._leaving: dict[str, int] = {}  # the same, of who may stay
        self._done: int | None = None
        self._told_done: int | None = None
        self._is_asked = False
        self._turn = 0  # replies to what was asked in another one come too late

    # -- what there is to do -----------------------------------------------------------------

    @property
    def has_message(self) -> bool:
        """Tell whether something that was read is not done."""
        return bool(self._todo)

    @property
    def has_ask(self) -> bool:
        """Tell whether to read on."""
        wanted = self.is_wanted or self.has_untold
        return wanted and bool(self._seats) and not self._is_asked

    @property
    def has_untold(self) -> bool:
        """Tell whether something else is done than Redis was told."""
        return self._told_done != self._done

    @property
    def place(self) -> tuple[int | None, int | None]:
        """After which number to read on, and up to which all is done."""
        return self._read, self._done

    def next_message(self) -> RoomMessage | None:
        """Return what is to be handed out next; it stays that until it is done."""
        while self._todo:
            number, message = self._todo[0]
            client = message.client
            seat = self._seats.get(client)
            if seat is None:
                is_for = client not in self._left  # as long as he may stay
            else:  # he may have left and joined anew, or is to be given it when it is read again
                is_for = number <= self._behind.get(client, number)
                is_for = is_for and seat.takes(number, message.oob)
            if is_for:
                return message
            self.finish(message)
        return None

    def ask(self, edits: int = 0) -> Ask:
        """Read on; see Ask for `edits`."""
        self.is_wanted, self._is_asked = False, True
        return Ask("read", edits=edits, turn=self._turn)

    def finish(self, message: RoomMessage) -> None:
        """Have a message done, whatever became of it."""
        if self._todo and self._todo[0][1] is message:
            number, _ = self._todo.popleft()
            if self._todo and self._todo[0][0] == number:
                return  # it is not done
        self._settle()

    # -- what was heard ----------------------------------------------------------------------

    def hear(self, logged: int) -> None:
        """Take the last number that there is."""
        if logged != self.logged:
            self.logged, self.is_wanted = logged, True

    def doubt(self) -> None:
        """Read again: there may have been no reply."""
        self.is_wanted, self._is_asked = True, False
        self._turn += 1
        self._settle()

    def let_go(self) -> None:
        """Hand out nothing that another process may read now."""
        self._todo.clear()
        self._behind.clear()
        self._leaving.clear()
        self._read, self._most, self._told_done = None, 0, None
        self.doubt()

    def join(self, client: str, place: int) -> None:
        """Read for somebody else, too, who is to get what comes after a number."""
        self._behind.pop(client, None)
        place = max(place, self._leaving.pop(client, 0))
        # While it is asked where the worker was, it is not known yet who is behind.
        if self._read is None:
            if self._is_asked:
                self._behind[client] = place
        elif place < self._most:
            self._behind[client] = place
            self._done = min(self._done or 0, place)
            self._go_back(place)

    def begin_leave(self, client: str) -> None:
        """Read no more for somebody, who may stay."""
        self._leaving[client] = self._behind.pop(client, self._most)

    def leave(self, client: str) -> None:
        """Hand out nothing more of what was read to who has left."""
        if self._leaving.pop(client, self._most) < self._most:
            self.is_wanted = True  # then what is done is found again
        if self._todo:
            self._left.add(client)

    def keep_leaving(self, clients: Container[str]) -> None:
        """Forget who is not about to leave any more, and is not there."""
        for client in [client for client in self._leaving if client not in clients]:
            self.leave(client)

    def take(self, ask: Ask, reply: Sequence[Any]) -> None:
        """Take the reply to reading; see room_read.lua."""
        if ask.turn != self._turn:
            return
        logged, now_us, after, entries = reply[:4]
        self._is_asked = False
        if logged < 0:
            self.logged = -1  # whatever is heard next is news
            return
        self._told_done = self._done
        self._left.clear()
        if self._read is None:
            self._most = after
        elif logged < self._most:  # Redis has lost the others, and gives them to other messages
            self._most = after
            self._behind = {client: min(n, after) for client, n in self._behind.items()}
            self._leaving.clear()
        read = after
        rows = iter(entries)
        for number, rounds, raw in zip(rows, rows, rows, strict=True):
            self._miss(after, read, number - 1)
            read = number
            if message := self._tally.read(raw):
                for client in self._receivers(after, number, not rounds):
                    each = RoomMessage(self._room, client, message, not rounds, False)
                    each.latency = self._tally.receive(now_us, message)
                    self._todo.append((number, each))
        if not entries:
            # What is not there any more was removed before it was read.
            self._miss(after, read, logged)
            read = max(read, logged)
        self._read, self._most = read, max(read, self._most)
        self.logged = logged
        places = [(c, read if after <= n < read else n) for c, n in self._behind.items()]
        self._behind = {c: n for c, n in places if n < self._most and c in self._seats}
        # It may have rung since that was asked.
        self.is_wanted = self.is_wanted or read < logged
        self._settle()
        if not entries:
            self._told_done = self._done

    def _receivers(self, after: int, number: int, oob: bool) -> Iterable[str]:
        """Yield who is to get what has a number, and was read after another."""
        for client in self._seats if number > self._most else self._behind:
            seat, place = self._seats.get(client), self._behind.get(client, self._most)
            if seat is not None and after <= place < number and seat.takes(number, oob):
                yield client

    def _miss(self, after: int, first: int, last: int) -> None:
        """Count what is not there any more: who has not got what comes after one number."""
        if last > first:
            for client, seat in self._seats.items():
                place = self._behind.get(client, self._most)
                if place >= after:
                    self._tally.missed += max(0, last - max(first, place, seat.since))

    def _go_back(self, place: int) -> None:
        if self._read is not None and place < self._read and not self._todo and not self._is_asked:
            self._read, self.is_wanted = place, True

    def _settle(self) -> None:
        """Go back if somebody is behind and nothing is under way; find up to which all is done."""
        least = min(self._behind.values(), default=self._most)
        self._go_back(least)
        if self._read is None:
            self._done = None
        else:
            done = self._todo[0][0] - 1 if self._todo else self._read
            self._done = min(done, least, *self._leaving.values())
