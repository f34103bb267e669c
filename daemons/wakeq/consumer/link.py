"""The link to Redis: one connection that reads and may block, one for all the rest.

The second one is opened when it is first needed, which is after the first message has been
given to its handler. Both are given up together, and what was under way is sent again over
new ones; the parts that sent it know what that means.
"""

import selectors
from time import monotonic

from wakeq.consumer.channel import Channel
from wakeq.consumer.hand import Member
from wakeq.consumer.keeper import Keeper
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Connection, ServerError, explain


class Link:
    """Both connections, registered with a selector for as long as they are open.

    Args:
        url: where Redis is.
        member: who the consumer is.
        start: where a group that never was begins.
        keeper: takes the name after each connect.
        selector: calls what is registered when there is something to receive.
    """

    def __init__(
        self,
        url: str,
        member: Member,
        start: str,
        keeper: Keeper,
        selector: selectors.BaseSelector,
    ) -> None:
        self._url = RedisURL(url)
        self._member = member
        self._start = start
        self._keeper = keeper
        self._selector = selector
        name = f"wakeq-consumer/{member.group}@{member.consumer}".replace(" ", "_")
        self._ensure_group = Script("ensure_group")
        self.reading, self._writing = (
            Channel(Connection(self._url, name, member.stream), monotonic) for _ in range(2)
        )

    def __str__(self) -> str:
        """Return where Redis is, as it may be shown."""
        return str(self._url)

    @property
    def is_up(self) -> bool:
        """Tell whether the link stands, as far as known."""
        return self.reading.connection.connected

    @property
    def writing(self) -> Channel:
        """The connection that never blocks.

        Raises:
            UnavailableError: it had to be opened and could not be.
        """
        if not self._writing.connection.connected:
            self._writing.connection.connect()
            self._register(self._writing)
        return self._writing

    @property
    def answer_by(self) -> float:
        """When the server must have answered what it was asked."""
        return min(self.reading.answer_by, self._writing.answer_by)

    def connect(self, position: bytes) -> str:
        """Connect, take the name, and make the group if it is missing.

        Args:
            position: up to where the stream was handled, empty if not known.

        Returns:
            The id at which the group was made, empty if it was there.

        Raises:
            WakeqError: see `Connection.connect` and `Keeper.join`.
        """
        connection = self.reading.connection
        connection.connect()
        member = self._member
        try:
            self._keeper.join(connection)
            made: bytes = self._ensure_group.call(
                connection,
                [*member.sources, member.stats],
                [member.group, self._start, position],
            )
        except ServerError as error:
            connection.close()
            raise explain(error, self._url) from None
        self._register(self.reading)
        return made.decode()

    def check(self, now: float) -> None:
        """Notice a server that has stopped answering.

        Raises:
            Lost: a reply is overdue.
        """
        self.reading.check(now)
        self._writing.check(now)

    def close(self) -> None:
        """Give both connections up."""
        for channel in (self.reading, self._writing):
            for key in list(self._selector.get_map().values()):
                if key.data == channel.receive:
                    self._selector.unregister(key.fd)
            channel.close()

    def _register(self, channel: Channel) -> None:
        fd = channel.connection.fileno()
        self._selector.register(fd, selectors.EVENT_READ, channel.receive)
