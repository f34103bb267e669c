"""What a worker hands out, to whom, and what it asks Redis."""

from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, NamedTuple

from wakeq.fanout.records import Queued


class RoomMessage:
    """A message for one client.

    Attributes:
        room, client: who gets it, and where.
        id: names it; in microseconds since 1970, when it was sent.
        data: what was sent, as bytes; see `text` and `json`.
        producer: who sent it, as the sender says.
        oob: it is out-of-band.
        awaits: the next message waits until it is acknowledged.
        attempt: 1, and one more after each failure of the handler here.
        latency: how many seconds after it was sent it was received, by the clock of Redis.
    """

    __slots__ = ("_ack", "attempt", "awaits", "client", "latency", "message", "oob", "room")

    def __init__(self, room: str, client: str, message: Queued, oob: bool, awaits: bool) -> None:
        self.room = room
        self.client = client
        self.message = message
        self.oob = oob
        self.awaits = awaits
        self.attempt = 1
        self.latency = 0.0
        self._ack: Callable[[], None] = _no_ack

    def __repr__(self) -> str:
        return f"<RoomMessage {self.id} of {self.room} for {self.client}>"

    @property
    def id(self) -> str:
        return self.message.id

    @property
    def data(self) -> bytes:
        return self.message.data

    @property
    def producer(self) -> str:
        return self.message.producer

    def text(self) -> str:
        """Return the data as text; see Queued."""
        return self.message.text()

    def json(self) -> Any:
        """Return what the data, which is JSON, stands for; see Queued."""
        return self.message.json()

    def ack(self) -> None:
        """Acknowledge it, where the worker does not; from any thread. It is sent a moment later."""
        self._ack()

    def on_ack(self, callback: Callable[[], None]) -> None:
        """Have somebody told of `ack`."""
        self._ack = callback


class Handout:
    """A message of a round for some clients, who get it one by one or all at once.

    Attributes:
        clients: those that have not got it yet.
        attempt, latency: as those of RoomMessage.
    """

    __slots__ = ("attempt", "clients", "latency", "message")

    def __init__(
        self, message: Queued, clients: Iterable[str], latency: float, attempt: int = 1
    ) -> None:
        self.message = message
        self.clients = deque(clients)
        self.latency = latency
        self.attempt = attempt

    def keep(self, wanted: Container[str]) -> bool:
        """Leave out who is not among some; tell whether anybody is left."""
        self.clients = deque(client for client in self.clients if client in wanted)
        return bool(self.clients)

    def next(self, room: str) -> RoomMessage:
        """Return it for the next client."""
        found = RoomMessage(room, self.clients.popleft(), self.message, False, True)
        found.latency, found.attempt = self.latency, self.attempt
        return found


class Seat:
    """One client in a room.

    Attributes:
        since: later numbers in the log are for it.
        joined: later rounds are for it.
        in_hand: the id that was given out and is not acknowledged, or empty.
        acked: the last id that was acknowledged.
    """

    __slots__ = ("acked", "in_hand", "joined", "mode", "since")

    def __init__(self, mode: str, since: int, joined: int) -> None:
        self.mode = mode
        self.since = since
        self.joined = joined
        self.in_hand = ""
        self.acked = ""

    def takes(self, number: int, oob: bool) -> bool:
        """Tell whether something in the log is for the client."""
        return number > self.since and (self.mode != "sync" or oob)


class Ask(NamedTuple):
    """What to ask Redis: `ack`, `look` or `read`."""

    what: str
    message_id: str = ""
    clients: Sequence[str] = ()
    edits: int = 0  # how often clients had joined and left here by then
    turn: int = 0  # of reading; see LogReader


def _no_ack() -> None:
    raise RuntimeError("this message is not acknowledged, or by the worker itself")
