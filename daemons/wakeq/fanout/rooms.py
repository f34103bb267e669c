"""Rooms: the design, and what each step sends to Redis.

A message sent to a room is delivered to all its clients, and the next one only when all have
acknowledged it: that is a round. Redis holds all there is of a room, in one slot, and each step is
one script (lua/room_*.lua, with lua/room.lua ahead of it), so that no step ever sees half of
another, and one room has nothing to do with another.

States of a room: *idle* (no message is outstanding), *outstanding* (one is, and `waiting` names the
clients that have not acknowledged it). Each step that may end a round looks whether anybody is
still waited for, ends it, and begins the next one with who is a client then: the first in line by
priority, and by id within it. Ids are microseconds of Redis's clock, counted up where that stands
still or goes back; so they stand for the order of sending, and none is given twice even if Redis
loses the room.

Who decides: Redis alone, by its own clock. An acknowledgement names message and client, and counts
if exactly that is waited for; everything else is an error to its sender and changes nothing.
Clients have a deadline, which pings and acknowledgements put off. Whatever step comes along after
it finds who is overdue, and removes them: what they had not acknowledged is no longer waited for,
their names are kept for an hour, so that they hear of it, and stand in a list of which each is
taken once, to be reported. A round that nobody has acknowledged before all have gone waits again
in its old place. Somebody who joins is waited for from the next round on.

Modes: a `sync` client is waited for; an `async` one has each message too, and is not; where only
async ones are, messages are given to them one after the other, as quickly as the slowest of them
reads. An `observer` sees what others get, and nothing is ever sent for its sake.

How a message gets to a client: each client belongs to a *worker*, which is one process (its name is
its own) or several that share a name; then one of them has the room, by a lease in Redis, until it
leaves or has not renewed it. Nothing is handed over in flight, so nothing is lost with who carried
it: the outstanding message and who has not acknowledged it stand in the room, and a worker asks for
that (`look`). Out-of-band messages, and all messages while not only sync clients are there, stand
in the room's log besides, numbered; a worker reads on from where it was (`read`), hears with it who
has joined, and Redis knows how far it was done. The log is kept until all have done it, but of more
than a thousand numbers the oldest are removed. For those who are waited for (sync clients, async
ones where there are no others) that does not happen: what waits in line stays there as long as one
of them has so much before it, and an out-of-band message is refused as `full`. Others miss what was
removed before they have read it: observers, async clients beside sync ones, and sync ones what was
out of band if a thousand rounds went on meanwhile. It is counted, by the worker and in the room,
and logged.

How a worker hears of it: on a channel of its own, whatever the rooms. What is rung there are the
figures of the room (rounds, numbers in the log, time-outs, version of the worker's list of
clients), so that who has seen them need not ask. A ring is a hint and may be lost, with the
connection or without; so each ping answers the same figures, and whoever waits for a round that
somebody may be timed out of looks when that is due. Who calls is told by the reply and not rung:
the reply to the acknowledgement that ends a round carries the next message.

What each failure does:
- A client is silent: its deadline passes, and the round goes on without it.
- A process dies that has its clients with it: the same. Of several with one name: the lease runs
  out, another takes the room and is given what is outstanding; clients that are kept alive by
  somebody else's pings do not notice. A message may then be handled twice, as nobody knows whether
  it was.
- A process is paused: others take its room, its clients are timed out or not. Its acknowledgements
  count if they are still waited for, and are errors if not.
- A client is subscribed again under another worker: it is taken over with what it has not
  acknowledged, and with what the old one has not done of the log. The old worker's calls for it are
  refused from there on.
- A reply is lost: acknowledgements, pings, looks, subscribing and leaving may be repeated; the
  second acknowledgement says `doubled` or `not-outstanding`, which then means that the first one
  counted. Only a send is not repeated by itself.
- Redis is lost: everybody tries again. Restarted with what it had: deadlines have passed meanwhile,
  so clients may be timed out, and hear it. Restarted empty: all hear that they are not subscribed.
- A replica is promoted that lacks the last steps: what was acknowledged is outstanding again;
  workers see that they have done it, and say so once more. What was out of band may be seen again.
- Redis is out of memory: sending and joining are refused, rounds in flight go on.
- The last client leaves: what waits is kept, without any time limit, or dropped if the last one who
  subscribed asked for that (`backlog="drop"`). The counters are kept for a day.

This module knows what is sent, and how replies are read; `client` and the workers do the sending,
and so may a daemon of its own, over `wakeq.wire`.
"""

import contextlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from wakeq import keys
from wakeq.errors import RoomError
from wakeq.fanout.records import NUMBER_MOST
from wakeq.scripts import Script
from wakeq.wire import Argument, Command

MODES = ("sync", "async", "observer")
CLIENTS_MOST = 1000  # that one request names
_NAME_BYTES_MOST = 1000

_WHY = {
    "not-subscribed": "client {client} is not subscribed to room {room}",
    "timed-out": "client {client} of room {room} was timed out: it was silent for too long",
    "taken-over": "client {client} of room {room} was subscribed by another worker since",
    "not-outstanding": "room {room} does not wait for an acknowledgement of this message: it is"
    " too late, or too early",
    "doubled": "client {client} of room {room} has acknowledged this message before",
    "not-waited-for": "room {room} does not wait for client {client} in this round",
}


class Request:
    """One command for the server that has a key; or a script there.

    Attributes:
        repeated: it was sent again, so it may have been carried out before.
    """

    __slots__ = ("_arguments", "_keys", "_script", "command", "key", "repeated")

    def __init__(
        self,
        key: str,
        command: Command,
        script: Script | None = None,
        names: Sequence[Argument] = (),
        arguments: Sequence[Argument] = (),
    ) -> None:
        self.key = key
        self.command = command
        self.repeated = False
        self._script, self._keys, self._arguments = script, names, arguments

    def send_whole(self) -> bool:
        """Have the script itself sent, which the server lacks; False: that is no help."""
        if self._script is None or self.command[0] == b"EVAL":
            return False
        self.command = self._script.whole(self._keys, self._arguments)
        return True


class Rooms:
    """Makes the requests of one caller.

    Args:
        worker: its name, if it is a worker.
        process: which process of the worker, if there may be several.
    """

    def __init__(self, worker: str = "", process: str = "") -> None:
        self.worker = worker
        self.process = process
        self._scripts: dict[str, Script] = {}
        self._heads: dict[str, tuple[list[bytes], list[bytes]]] = {}

    def join(
        self, room: str, client: str, worker: str, mode: str, timeout_ms: int, drop: bool
    ) -> Request:
        """Make somebody a client; see room_join.lua."""
        return self._request("join", room, client, worker, mode, timeout_ms, int(drop))

    def leave(self, room: str, clients: Sequence[str]) -> Request:
        """Let clients leave; see room_leave.lua."""
        return self._request("leave", room, *clients)

    def send(self, room: str, data: bytes, producer: str, priority: int, limit: int) -> Request:
        """Put a message in line; see room_send.lua."""
        return self._request("send", room, data, producer, priority, limit)

    def send_out_of_band(self, room: str, data: bytes, producer: str) -> Request:
        """Deliver a message to all at once; see room_send_out_of_band.lua."""
        return self._request("send_out_of_band", room, data, producer)

    def acknowledge(
        self, room: str, message_id: str, clients: Sequence[str], timeout_ms: int = 0
    ) -> Request:
        """Acknowledge a message for clients; see room_acknowledge.lua."""
        return self._request("acknowledge", room, timeout_ms, message_id, *clients)

    def ping(
        self, room: str, clients: Sequence[str], timeout_ms: int = 0, lease_ms: int = 0
    ) -> Request:
        """Say that clients are alive; see room_ping.lua."""
        return self._request("ping", room, timeout_ms, lease_ms, *clients)

    def look(
        self, room: str, lease_ms: int, version: int, reports: bool, clients: Sequence[str]
    ) -> Request:
        """Ask what there is for the worker; see room_look.lua."""
        return self._request("look", room, lease_ms, version, int(reports), *clients)

    def read(self, room: str, after: int | None, done: int | None, listed: int) -> Request:
        """Read on in the log; see room_read.lua."""
        numbers = ("" if number is None else number for number in (after, done))
        return self._request("read", room, *numbers, listed)

    def state(self, room: str, with_clients: bool) -> Request:
        """Ask for the figures of a room; see room_state.lua."""
        return self._request("state", room, int(with_clients))

    def peek(self, room: str, offset: int, limit: int | None) -> Request:
        """Ask which messages wait, in the order in which they will be delivered."""
        key = keys.room(room)[1]
        last = -1 if limit is None else offset + limit - 1
        return Request(key, ("ZRANGE", key, offset, last, "WITHSCORES"))

    def _request(self, step: str, room: str, *arguments: Argument) -> Request:
        script = self._scripts.get(step)
        if script is None:
            script = self._scripts[step] = Script(f"room_{step}", ahead="room")
        head = self._heads.get(room)
        if head is None:
            if len(self._heads) >= 10_000:
                self._heads.clear()
            names = [key.encode() for key in keys.room(checked("room", room))]
            caller = (room, keys.BELL, self.worker, self.process)
            head = self._heads[room] = names, [text.encode() for text in caller]
        names, common = head
        every = [*common, *arguments]
        return Request(names[0].decode(), script.command(names, every), script, names, every)


def checked(what: str, name: object) -> str:
    """Return a name if it may be one.

    Raises:
        TypeError, ValueError: it may not.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a str, not {type(name).__name__}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{what} must be text that can be written as UTF-8: {name!r}") from None
    if not 0 < size <= _NAME_BYTES_MOST:
        raise ValueError(f"{what} must have 1 to {_NAME_BYTES_MOST} bytes, not {size}")
    return name


def checked_worker(name: object) -> str:
    """Return the name of a worker, which must have no NUL; see `checked`."""
    worker = checked("worker", name)
    if "\0" in worker:
        raise ValueError("worker must not have a NUL in it")
    return worker


def checked_priority(priority: object) -> int:
    """Return a priority if it is one; see `checked`."""
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise TypeError(f"priority must be an int, not {priority!r}")
    if abs(priority) > NUMBER_MOST:
        raise ValueError(f"priority must be -2**53 to 2**53, not {priority}")
    return priority


def seconds_as_ms(what: str, seconds: object) -> int:
    """Return a duration in ms; see `checked`."""
    if not isinstance(seconds, int | float) or not 0.1 <= seconds <= 86400 * 366:
        raise ValueError(f"{what} must be seconds, 0.1 or more, not {seconds!r}")
    return round(seconds * 1000)


def encode(data: object) -> bytes:
    """Return what is sent: bytes and text as they are, everything else as JSON."""
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    if isinstance(data, str):
        return data.encode()
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def decoded(raws: Iterable[bytes]) -> Iterable[str]:
    """Yield the names of rooms among those of an index; what is none, somebody else has put."""
    for raw in raws:
        with contextlib.suppress(UnicodeDecodeError):
            yield raw.decode()


def refused(room: str, failed: Sequence[Any]) -> RoomError | None:
    """Return the error that a reply means; `failed` is client, why, client, why …, as bytes."""
    pairs = dict(failures(failed))
    for client, code in pairs.items():
        error = RoomError(code, _WHY[code].format(client=client, room=room))
        error.failed = pairs
        return error
    return None


def failures(failed: Sequence[Any]) -> Iterable[tuple[str, str]]:
    """Return the clients of a reply, and why each was refused."""
    names = iter([part.decode() for part in failed])
    return zip(names, names, strict=True)


def is_full(room: str, length: int) -> RoomError:
    """Return the error that a send to a full room is."""
    return RoomError("full", f"room {room} is full: {length} messages wait")


def is_behind(room: str, worker: str, count: int) -> RoomError:
    """Return the error that an out-of-band send is of which somebody would miss others."""
    return RoomError("full", f"room {room} is full: worker {worker} has not read {count} messages")
