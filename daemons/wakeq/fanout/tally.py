"""What a worker counts."""

from collections import deque
from typing import NamedTuple

from wakeq.fanout.records import Queued, read_message

_LATENCIES = 100


class WorkerMetrics(NamedTuple):
    """The figures of one worker, since it was made.

    Attributes:
        received: messages, one for each client that they are for.
        invalid: what was stored in a room and is no message.
        acknowledged: acknowledgements that counted.
        failed: how often a handler raised.
        missed: messages of the log that were removed before they were read.
        timeouts, ejected: clients that were reported; clients of this worker that were removed.
        min_latency, avg_latency, max_latency: from being sent to being received, in seconds, of the
            last hundred messages; 0 if there was none.
    """

    received: int
    invalid: int
    acknowledged: int
    failed: int
    missed: int
    timeouts: int
    ejected: int
    min_latency: float
    avg_latency: float
    max_latency: float


class Tally:
    """Counts for a worker; its rooms share it. Counts may be off by some where threads race."""

    def __init__(self) -> None:
        self.received = self.invalid = self.acknowledged = self.failed = 0
        self.missed = self.timeouts = self.ejected = 0
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)

    def read(self, raw: bytes) -> Queued | None:
        """Return a message, or None, and count it, if it is none."""
        try:
            return read_message(raw)
        except ValueError:
            self.invalid += 1
            return None

    def receive(self, now_us: int, message: Queued, clients: int = 1) -> float:
        """Count a message for some clients, and return its latency in seconds."""
        self.received += clients
        latency = max(0.0, (now_us - int(message.id)) / 1e6)
        self._latencies.append(latency)
        return latency

    def metrics(self) -> WorkerMetrics:
        """Return the figures."""
        last = list(self._latencies) or [0.0]
        return WorkerMetrics(
            self.received,
            self.invalid,
            self.acknowledged,
            self.failed,
            self.missed,
            self.timeouts,
            self.ejected,
            min(last),
            sum(last) / len(last),
            max(last),
        )
