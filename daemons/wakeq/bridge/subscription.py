"""One connection that is subscribed to channels, and what its bytes mean.

Bytes are parsed when somebody has time for the messages in them: until then they are as small as
they came. Marks (see `holder`) and replies are met in the same order as the messages.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any

import hiredis

from wakeq import keys
from wakeq.bridge.reader import Line, Memory, Reader
from wakeq.bridge.talk import Run
from wakeq.errors import WakeqError
from wakeq.redis_url import RedisURL
from wakeq.wire import Command, Lost, ServerError, explain

_NAME = "wakeq-bridge"
# hiredis moves what is left of its buffer again and again: less with less of it.
_FEED_BYTES = 16 * 1024
_OWN = keys.OWN.encode()


class Subscription:
    """A connection that is subscribed.

    Args:
        url: the Redis.
        key: in the slot whose server is meant, on Cluster.
        memory: what all have in memory.
        bell: a file descriptor (eventfd) that is written to when there is something to see.

    Attributes:
        on_mark: called with the name of a channel of marks, and the mark.
        on_reply: called with another reply: `subscribe`, the channel, a count …
        ours: the channels, or the pattern, whose messages are taken now; the others' are dropped.
        dropped: how many were.
    """

    def __init__(self, url: RedisURL, key: str, memory: Memory, bell: int) -> None:
        self.on_mark: Callable[[bytes, bytes], None]
        self.on_reply: Callable[[list[Any]], None]
        self.ours: set[bytes] = set()
        self.dropped = 0
        self._url = url
        self._marks: set[bytes] = set()
        self._parser = hiredis.Reader(protocolError=hiredis.ProtocolError, replyError=ServerError)
        self._chunk = memoryview(b"")
        self._at = 0
        self._parsed = True  # all that the parser has
        self._refusal: WakeqError | None = None
        line = Line(url, _NAME, key)
        line.connect()
        self._reader = Reader(line, memory, bell)

    def subscribe_marks(self, names: list[str]) -> None:
        """Subscribe to channels of marks."""
        self._marks.update(name.encode() for name in names)
        self.ask("SUBSCRIBE", *names)

    def ask(self, *command: str) -> None:
        """Send a request; the reply comes in order."""
        requests: list[Command] = [command]
        self._reader.ask(requests)

    @property
    def size(self) -> int:
        """How many bytes are in memory."""
        return self._reader.size

    @property
    def full(self) -> bool:
        """Whether nothing more is read, because so much is in memory as may be."""
        return self._reader.full

    @property
    def lost(self) -> bool:
        """Whether the connection is gone; what was read before may still be taken."""
        return self._reader.lost is not None or self._refusal is not None

    @property
    def failure(self) -> WakeqError:
        """Why it is gone: `Lost`, or why Redis refuses what it was asked."""
        if self._refusal is not None:
            return self._refusal
        error = self._reader.lost
        return error if isinstance(error, Lost) else Lost(str(error))

    @property
    def empty(self) -> bool:
        """Whether all that was read has been taken."""
        return self._parsed and not self._reader.chunks and self._at >= len(self._chunk)

    def close(self) -> None:
        """End the connection; what was read may still be taken."""
        self._reader.close()

    def forget(self) -> None:
        """Count what was read no more."""
        self._reader.forget()

    def take(self, most: int, most_bytes: int) -> list[Run]:
        """Return messages that were read, not many more than so many or so many bytes.

        If the server refuses a request, or what comes is not its protocol, it is `lost` after that.
        """
        runs: list[Run] = []
        count = size = 0
        try:
            while count < most and size < most_bytes:
                replies = list(islice(iter(self._parser.gets, False), most - count))
                self._parsed = len(replies) < most - count
                for reply in replies:
                    if took := self._take(reply, runs):
                        count += 1
                        size += took
                if self._parsed and not self._feed():
                    break
        except hiredis.ProtocolError as error:
            # What comes after it means nothing.
            self._reader.chunks.clear()
            self._chunk, self._parsed = memoryview(b""), True
            self._refusal = Lost(f"Redis at {self._url} sent what is not its protocol: {error}")
        return runs

    def _feed(self) -> bool:
        """Give the parser more, and tell whether there was more."""
        if self._at >= len(self._chunk):
            if not self._reader.chunks:
                return False
            self._chunk, self._at = memoryview(self._reader.chunks.popleft()), 0
        part = self._chunk[self._at : self._at + _FEED_BYTES]
        self._parser.feed(part.tobytes())
        self._parsed = False
        self._at += len(part)
        self._reader.use(len(part))
        return True

    def _take(self, reply: Any, runs: list[Run]) -> int:
        """Take a reply; return the bytes of a message of ours, at least 1, or 0."""
        if isinstance(reply, ServerError):
            self._refusal = explain(reply, self._url)
            return 0
        kind = reply[0]
        if kind == b"pmessage":
            source, channel, body = reply[1:]
        elif kind in (b"message", b"smessage"):
            source, body = reply[1:]
            channel = source
            if channel in self._marks:
                self.on_mark(channel, body)
                return 0
        else:
            self.on_reply(reply)
            return 0
        # A pattern may match our own channels, too.
        if source not in self.ours or channel.startswith(_OWN):
            self.dropped += source not in self.ours
            return 0
        if runs and runs[-1][0] == channel:
            runs[-1][1].append(body)
        else:
            runs.append((channel, [body]))
        return len(body) + 1
