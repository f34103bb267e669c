"""Has the acknowledgements of one message, by all clients that are here, sent in one request.

It holds up nobody, because the round waits for them all anyway. What does not come soon is not
waited for: others, elsewhere, may be in the same round.
"""

from functools import partial

from wakeq.fanout.desk import Desk
from wakeq.fanout.office import Office
from wakeq.wakeup.loop import Loop

_PATIENCE_SECONDS = 0.003


class _Round:
    """A message that was given to some clients.

    Attributes:
        given: to how many.
        acked: those that have acknowledged it, and for whom that was not sent yet.
        is_timed: that is sent after a while even if others are missing.
    """

    __slots__ = ("acked", "given", "is_timed", "message_id")

    def __init__(self, message_id: str) -> None:
        self.message_id = message_id
        self.given = 0
        self.acked: list[str] = []
        self.is_timed = False


class Gatherer:
    """Gathers acknowledgements.

    Args:
        loop: says when to wait no longer.
        office: has the rooms.
    """

    def __init__(self, loop: Loop, office: Office) -> None:
        self._loop = loop
        self._office = office
        self._rounds: dict[str, _Round] = {}

    def give(self, room: str, message_id: str) -> None:
        """Hear that a message was given to one more client."""
        found = self._rounds.get(room)
        if found is None or found.message_id != message_id:
            found = self._rounds[room] = _Round(message_id)
        found.given += 1

    def acknowledge(self, desk: Desk, client: str, message_id: str) -> None:
        """Have an acknowledgement sent, with those of others if these come soon."""
        found = self._rounds.get(desk.room)
        if found is None or found.message_id != message_id:
            desk.acknowledge(client, message_id)
            self._office.touched.add(desk.room)
            return
        found.acked.append(client)
        if len(found.acked) >= found.given:
            self._send(desk, found)
        elif not found.is_timed:
            found.is_timed = True
            self._loop.after(_PATIENCE_SECONDS, partial(self._send, desk, found))

    def forget(self, room: str) -> None:
        """Forget a room."""
        self._rounds.pop(room, None)

    def _send(self, desk: Desk, found: _Round) -> None:
        if self._rounds.get(desk.room) is found:
            del self._rounds[desk.room]
        for client in found.acked:
            desk.acknowledge(client, found.message_id)
        if found.acked:
            found.acked = []
            self._office.touched.add(desk.room)
