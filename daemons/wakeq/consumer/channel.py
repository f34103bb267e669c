"""Requests over a connection whose replies are awaited one after another, not at once."""

from collections import deque
from collections.abc import Callable

from wakeq.scripts import Script
from wakeq.wire import Argument, Command, Connection, Lost, Reply, ServerError

OnReply = Callable[[Reply], None]

# A server that does not answer within this time is as good as gone (seconds).
ANSWER_SECONDS = 15.0


class Channel:
    """Collects requests, sends them together, and hands each reply to who asked.

    Args:
        connection: the connection; the channel alone uses it once it is open.
        clock: the monotonic clock.
    """

    def __init__(self, connection: Connection, clock: Callable[[], float]) -> None:
        self.connection = connection
        self._clock = clock
        self._unsent: list[Command] = []
        self._waiting: deque[OnReply] = deque()
        self._answer_by = 0.0

    @property
    def idle(self) -> bool:
        """Tell whether no reply is awaited and nothing waits to be sent."""
        return not self._waiting

    @property
    def answer_by(self) -> float:
        """When the next reply is overdue; infinite if none is awaited."""
        return self._answer_by if self._waiting else float("inf")

    def ask(self, command: Command, on_reply: OnReply, patience: float = 0.0) -> None:
        """Queue a request; `patience` is how long, in seconds, the server may block on it."""
        self._unsent.append(command)
        self._waiting.append(on_reply)
        self._answer_by = self._clock() + patience + ANSWER_SECONDS

    def run(
        self,
        script: Script,
        keys: list[Argument],
        arguments: list[Argument],
        on_reply: OnReply,
    ) -> None:
        """Queue the run of a script."""

        def check(reply: Reply) -> None:
            if isinstance(reply, ServerError) and reply.code == "NOSCRIPT":
                self.ask(script.whole(keys, arguments), on_reply)
                self.flush()
            else:
                on_reply(reply)

        self.ask(script.command(keys, arguments), check)

    def flush(self) -> None:
        """Send what is queued.

        Raises:
            Lost: the connection broke.
        """
        if self._unsent:
            unsent, self._unsent = self._unsent, []
            self.connection.send(unsent)

    def receive(self) -> None:
        """Take what came and call those who asked for it.

        Raises:
            Lost: the connection broke, or what came is not a reply.
        """
        while True:
            for reply in self.connection.receive():
                self._answer_by = max(self._answer_by, self._clock() + ANSWER_SECONDS)
                self._waiting.popleft()(reply)
            if not self.connection.has_buffered():
                break

    def check(self, now: float) -> None:
        """Notice a server that has stopped answering.

        Raises:
            Lost: a reply is overdue.
        """
        if now > self.answer_by:
            self.close()
            raise Lost(f"Redis at {self.connection.url} does not answer")

    def close(self) -> None:
        """Close the connection and forget who waits for replies."""
        self.connection.close()
        self._unsent.clear()
        self._waiting.clear()
