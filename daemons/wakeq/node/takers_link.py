"""The link of a taker to Redis: a pair of connections; each script may be sent twice."""

from collections.abc import Callable

from wakeq.consumer.pair import Pair
from wakeq.errors import ConfigError, WakeqError
from wakeq.node.takers_keeper import GONE
from wakeq.node.takers_reporter import Reporter
from wakeq.selector import Selector
from wakeq.service import Service
from wakeq.wire import ServerError


class Link(Pair):
    """Both connections, and what comes with them.

    Args:
        service: says where Redis is, and how long to try at the start.
        names: the list and the error list; the first one says which slot matters.
        selector: calls what is registered when there is something to receive.
        report: tells people.

    Attributes:
        on_up: called after each connect, while nothing is outstanding.
    """

    def __init__(
        self, service: Service, names: tuple[str, str], selector: Selector, report: Reporter
    ) -> None:
        super().__init__(service, f"wakeq-node/{service.name}", names[0], selector, report)
        self.on_up: Callable[[], None]
        self._names = " and ".join(names)

    def begin(self) -> None:
        """Take up work."""
        self.on_up()

    def refuse(self, error: ServerError) -> None:
        """Do what an error reply asks for.

        Raises:
            WakeqError: what it says does not get better by trying again.
        """
        if error.code == GONE:
            self.renew()  # connecting joins under another name
        else:
            super().refuse(error)

    def explain(self, error: ServerError) -> WakeqError:
        """Return what to tell people of an error reply."""
        if error.code == "WRONGTYPE":
            return ConfigError(
                f"Redis at {self.url}: one of the keys {self._names} is no list:"
                " delete or rename it, or name another one"
            )
        if error.code == "CROSSSLOT":
            return ConfigError(
                f"Redis at {self.url} is a Cluster that has the keys {self._names}"
                " in different slots: leave error_list out, or give both the same {hash tag}"
            )
        return super().explain(error)
