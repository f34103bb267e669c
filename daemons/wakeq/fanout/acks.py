"""The acknowledgements of one room: those to be sent, and those that no reply has come to."""

import time
from collections.abc import Iterable

from wakeq.fanout.delivery import Ask
from wakeq.fanout.rooms import CLIENTS_MOST

# One waits at most so long for others to go with.
_LATE_SECONDS = 0.003


class Acks:
    """Gathers them by message, to be asked for in the order in which the first of each came.

    It is true if there are any to be sent.

    Attributes:
        asked: those that no reply has come to.
    """

    def __init__(self) -> None:
        self.asked: list[Ask] = []
        self._clients: dict[str, dict[str, None]] = {}  # of each message, in order
        self._since = 0.0

    def __bool__(self) -> bool:
        """Tell whether there are any to be sent."""
        return bool(self._clients)

    @property
    def are_late(self) -> bool:
        """Whether they have waited for long enough for others to go with."""
        return bool(self._clients) and time.monotonic() - self._since >= _LATE_SECONDS

    def add(self, clients: Iterable[str], message_id: str) -> None:
        """Have those of some clients sent."""
        if not self._clients:
            self._since = time.monotonic()
        self._clients.setdefault(message_id, {}).update(dict.fromkeys(clients))

    def next(self) -> Ask:
        """Return what to ask first."""
        message_id = next(iter(self._clients))
        clients = list(self._clients.pop(message_id))
        if rest := clients[CLIENTS_MOST:]:
            self._clients[message_id] = dict.fromkeys(rest)
        ask = Ask("ack", message_id, clients[:CLIENTS_MOST])
        self.asked.append(ask)
        return ask

    def take(self, ask: Ask) -> None:
        """Learn that a reply has come."""
        if ask in self.asked:
            self.asked.remove(ask)

    def put_back(self, ask: Ask) -> None:
        """Have them sent again: there was no reply."""
        self.take(ask)
        later = self._clients.get(ask.message_id, {})
        self._clients[ask.message_id] = dict.fromkeys([*ask.clients, *later])

    def unanswered(self, client: str) -> list[str]:
        """Return the messages that a client has acknowledged, and Redis not confirmed.

        Those that are to be sent are the caller's to send then.
        """
        found = [ask.message_id for ask in self.asked if client in ask.clients]
        for message_id in [each for each, some in self._clients.items() if client in some]:
            found.append(message_id)
            del self._clients[message_id][client]
            if not self._clients[message_id]:
                del self._clients[message_id]
        return found
