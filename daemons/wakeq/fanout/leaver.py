"""Takes clients out of rooms that are not connected any more, however often that has to be tried.

Nobody pings for them meanwhile, so they would be timed out if it could not be done at all.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from wakeq.fanout import rooms
from wakeq.fanout.calling import call
from wakeq.fanout.link import Link
from wakeq.fanout.office import Office
from wakeq.fanout.rooms import CLIENTS_MOST

_AGAIN_SECONDS = 1.0

Told = Callable[[Exception | None], None]  # with what is wrong; None: it is done
_Waiting = dict[str, dict[str, list[Told]]]  # by room and client


class Leaver:
    """Lets clients leave; those of one room in one request.

    Args:
        link: where Redis is asked.
        office: has the rooms.
        again: called with room and client when it is to be tried again.
        held: returns the clients of a room that must not leave yet.
    """

    def __init__(
        self, link: Link, office: Office,
        again: Callable[[str, str], None], held: Callable[[str], Collection[str]],
    ) -> None:  # fmt: skip
        self._link = link
        self._office = office
        self._again = again
        self._held = held
        self._waiting: _Waiting = {}
        self._asked: _Waiting = {}
        self._failed: dict[str, int] = {}  # by room: how often there is to be another try

    @property
    def is_busy(self) -> bool:
        """Tell whether somebody is still to be taken out of a room."""
        return bool(self._waiting or self._asked or self._failed)

    @property
    def has_work(self) -> bool:
        """Tell whether `send` has something to do at once."""
        return any(self._free(room) for room in self._waiting)

    def is_about(self, room: str) -> bool:
        """Tell whether somebody is still to be taken out of this room."""
        return room in self._waiting or room in self._asked or room in self._failed

    def leave(self, room: str, client: str, told: Told | None) -> None:
        """Take a client out of a room; `told` is called when that is done, or was tried in vain."""
        self._office.desk(room).begin_leave(client)
        callbacks = self._waiting.setdefault(room, {}).setdefault(client, [])
        if told is not None:
            callbacks.append(told)

    def when_left(self, room: str, client: str, then: Callable[[], None]) -> None:
        """Call when a client is not leaving a room, or not any more."""
        for some in (self._waiting, self._asked):
            if (callbacks := some.get(room, {}).get(client)) is not None:
                callbacks.append(lambda _: then())
                return
        then()

    def _free(self, room: str) -> list[str]:
        """Return those who wait in a room, and may leave now."""
        if room in self._asked:
            return []
        held = self._held(room)
        return [client for client in self._waiting[room] if client not in held][:CLIENTS_MOST]

    def send(self) -> None:
        """Ask for what is not asked for."""
        for room in list(self._waiting):
            waiting = self._waiting[room]
            some = {client: waiting.pop(client) for client in self._free(room)}
            if not some:
                continue
            if not waiting:
                del self._waiting[room]
            self._asked[room] = some
            steps = call(self._link, self._office.rooms.leave(room, list(some)))
            self._link.run(steps, partial(self._left, room, some))

    def _left(
        self, room: str, some: dict[str, list[Told]], reply: Any, error: Exception | None
    ) -> None:
        del self._asked[room]
        desk = self._office.desk(room)
        failed: dict[str, Exception | None] = {}
        if error is not None:
            failed = dict.fromkeys(some, error)
            self._failed[room] = self._failed.get(room, 0) + 1
            self._office.after(_AGAIN_SECONDS, desk, partial(self._try_again, room, list(some)))
        else:
            for client, code in rooms.failures(reply):
                failed[client] = rooms.refused(room, [client.encode(), code.encode()])
            for client in some:
                desk.end_leave(client)
        for client, callbacks in some.items():
            for told in callbacks:
                told(failed.get(client))

    def _try_again(self, room: str, clients: list[str]) -> None:
        self._failed[room] -= 1
        if not self._failed[room]:
            del self._failed[room]
        for client in clients:
            self._again(room, client)
