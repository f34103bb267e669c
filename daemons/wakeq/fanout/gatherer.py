"""Has the acknowledgements of one message, by all clients that are here, sent in one request, and
answers them.

Gathering holds up nobody, because the round waits for them all anyway. When nobody is missing any
more they go at once; else when no more come, so that Redis can tell who is missing. Nobody leaves a
room before its acknowledgements are answered (see `unanswered`), or the message would be back in
line, as one that nobody has acknowledged.
"""

import time
from collections.abc import Collection, Iterable

from wakeq.fanout import protocol, rooms
from wakeq.fanout.delivery import Ask
from wakeq.fanout.door import Door
from wakeq.fanout.office import Office
from wakeq.fanout.peer import Peer
from wakeq.loop import Loop

_PATIENCE_SECONDS = 0.003
_PATIENCE_MOST_SECONDS = 0.05
# A repeated acknowledgement's answers to what its first sending has done.
_DONE_BEFORE = {"doubled", "not-outstanding"}


class _Round:
    """A message that was given to some clients.

    Attributes:
        missing: those that have not acknowledged it.
        gathered: those that have, and for whom that was not sent yet.
        acks: whom to answer what is not answered yet, with which ref, by client.
        since, seen: since when something is gathered, monotonic, and how much at the last look.
    """

    __slots__ = ("acks", "gathered", "message_id", "missing", "room", "seen", "since")

    def __init__(self, room: str, message_id: str) -> None:
        self.room = room
        self.message_id = message_id
        self.missing: set[str] = set()
        self.gathered: list[str] = []
        self.acks: dict[str, list[tuple[Peer, object]]] = {}
        self.since = 0.0
        self.seen = 0


class Gatherer:
    """Gathers acknowledgements.

    Args:
        loop: says when to wait no longer.
        office: has the rooms.
        door: takes the answers.
    """

    def __init__(self, loop: Loop, office: Office, door: Door) -> None:
        self._loop = loop
        self._office = office
        self._door = door
        self._rounds: dict[str, dict[str, _Round]] = {}  # by room and message
        self._late: dict[_Round, None] = {}  # those that wait for somebody
        self._is_timed = False

    def give(self, room: str, message_id: str, clients: Iterable[str]) -> None:
        """Hear that a message was given to clients."""
        self._round(room, message_id).missing.update(clients)

    def _round(self, room: str, message_id: str) -> _Round:
        some = self._rounds.get(room)
        if some is None:
            some = self._rounds[room] = {}
        found = some.get(message_id)
        if found is None:
            for before in [each for each in some.values() if not each.acks]:
                del some[before.message_id]
            found = some[message_id] = _Round(room, message_id)
        return found

    def acknowledge(self, peer: Peer, room: str, message_id: str, ref: object) -> bool:
        """Have what a client has in hand acknowledged, and answered; False: it has not that."""
        client = peer.rooms[room]
        desk = self._office.desks.get(room)
        seat = desk.seats.get(client) if desk else None
        if seat is None or seat.in_hand != message_id:
            return False
        peer.acks += 1
        some = self._rounds.get(room)
        found = some.get(message_id) if some else None
        if found is None:
            found = self._round(room, message_id)
        before = found.acks.get(client)
        if before is not None:
            before.append((peer, ref))
            return True
        found.acks[client] = [(peer, ref)]
        found.gathered.append(client)
        found.missing.discard(client)
        if not found.missing:
            self._send(found)
        elif len(found.gathered) == 1:
            found.since, found.seen = time.monotonic(), 0
            self._late[found] = None
            self._look_soon()
        return True

    def _look_soon(self) -> None:
        if not self._is_timed:
            self._is_timed = True
            self._loop.after(_PATIENCE_SECONDS, self._send_late)

    def _send_late(self) -> None:
        """Send what is gathered of each round to which nothing has come since the last look."""
        self._is_timed = False
        before = time.monotonic() - _PATIENCE_MOST_SECONDS
        for found in list(self._late):
            if len(found.gathered) == found.seen or found.since < before:
                self._send(found)
            found.seen = len(found.gathered)
        if self._late:
            self._look_soon()

    def _send(self, found: _Round) -> None:
        self._late.pop(found, None)
        if found.gathered:
            gathered, found.gathered = found.gathered, []
            self._office.desk(found.room).acknowledge_all(gathered, found.message_id)

    def leave(self, room: str, client: str) -> None:
        """Wait for a client no more, and have sent at once what has come of its room."""
        for found in list(self._rounds.get(room, {}).values()):
            found.missing.discard(client)
            self._send(found)

    def unanswered(self, room: str) -> Collection[str]:
        """Return the clients whose acknowledgements are not answered."""
        return {client for each in self._rounds.get(room, {}).values() for client in each.acks}

    def answer(self, room: str, ask: Ask, failed: list[tuple[str, str]], repeated: bool) -> None:
        """Answer those that Redis has replied to."""
        codes = {c: code for c, code in failed if not (repeated and code in _DONE_BEFORE)}
        some = self._rounds.get(room, {})
        found = some.get(ask.message_id)
        if found is None:
            return
        for client in ask.clients:
            code = codes.get(client, "")
            for peer, ref in found.acks.pop(client, ()):
                peer.acks -= 1
                error = code and rooms.refused(room, [client.encode(), code.encode()])
                if error:
                    line = protocol.refused(ref, error.code, str(error))
                else:
                    line = protocol.granted(ref)
                self._door.put(peer, line)
                code = code or "doubled"  # of several, the first one counts
        if not (found.acks or found.missing):
            del some[ask.message_id]

    def forget(self, room: str) -> bool:
        """Forget a room, unless something there is not answered; tell whether it was."""
        if any(each.acks for each in self._rounds.get(room, {}).values()):
            return False
        self._rounds.pop(room, None)
        return True
