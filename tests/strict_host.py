"""A host for tests of strict order: consumers of this host and of others, and the checker.

Each handler records a message's number and its process, in one write(2), when it begins. What is
promised: no message is begun for the first time before an earlier one; none is left out; and once
a consumer has begun, the one before begins nothing any more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from consumer_host import ConsumerHost, ConsumerProcess
from redis_servers import RedisServer, wait_until
from wakeq import keys

STREAM = GROUP = "orders"
_HANDLER = """
import os, time
def handle(message):
    record(message.text(), os.getpid())
    time.sleep({seconds})
"""
# Another machine, as far as one can tell: its name, and its boot.
_ELSEWHERE = """
import os
from wakeq.consumer import process
_describe = process.describe_self
process.describe_self = lambda: "elsewhere-" + _describe()
_system, _, *_rest = os.uname()
os.uname = lambda: os.uname_result((_system, {host!r}, *_rest))
"""
_MAIN = "from wakeq.consumer.main import main; main()"


class StrictHost(ConsumerHost):
    """A host whose consumer `orders` is in strict order."""

    def __init__(self, directory: Path, server: RedisServer) -> None:
        super().__init__(directory, server)
        self.env["WAKEQ_BACKOFF"] = "base=10ms,cap=20ms"

    def use(self, code: str = "", seconds: float = 0.0, **settings: Any) -> None:
        """Write the consumer's file."""
        code = code or _HANDLER.format(seconds=seconds)
        self.configure(
            **{"handler": self.handler(code), "order": "strict", "lease": "60s"} | settings
        )

    def start_elsewhere(self, host: str = "elsewhere", prepare: str = "") -> ConsumerProcess:
        """Start the consumer on another host, after some code."""
        code = _ELSEWHERE.format(host=host) + prepare + _MAIN
        return self.run([self.interpreter, "-c", code, "orders"])

    def fill(self, count: int) -> None:
        """Publish the next numbers."""
        start = self.redis.xinfo_stream(STREAM)["entries-added"] if self.redis.exists(STREAM) else 0
        self.publish(*range(start, start + count))

    def runs(self) -> list[tuple[int, int]]:
        """Return number and process of each message that was begun, in order."""
        return [(int(line.split()[0]), int(line.split()[1])) for line in self.records]

    def wait_begun(self, count: int, deadline_s: float = 60) -> None:
        """Wait until so many different messages were begun."""
        wait_until(
            lambda: len({number for number, _ in self.runs()}) >= count,
            deadline_s,
            f"{count} messages are begun; the consumers printed:\n{self.output}",
        )

    def owner(self) -> dict[str, str]:
        """Return what Redis says of the owner."""
        fields = self.redis.hgetall(keys.owner(STREAM, GROUP))
        return {name.decode(): value.decode() for name, value in fields.items()}

    def check_order(self, count: int, late: int = 0) -> None:
        """Fail unless so many messages were begun in order, each owner after the one before.

        Args:
            count: how many messages there are, from 0.
            late: how many may be begun by one that is no longer the owner, because it was paused
                in the very moment between the look at its lease and the first step of its handler.
        """
        runs = self.runs()
        firsts = list(dict.fromkeys(number for number, _ in runs))
        assert firsts == list(range(count))
        # Each process goes up, and begins nothing after its successor has.
        order = list(dict.fromkeys(pid for _, pid in runs))
        newest, last, outdated = -1, dict.fromkeys(order, -1), 0
        for number, pid in runs:
            turn = order.index(pid)
            if turn < newest:
                outdated += 1
                continue
            newest = turn
            assert number > last[pid], f"{number} after {last[pid]} by one process"
            last[pid] = number
        assert outdated <= late

    def repeats(self) -> int:
        """Return how many runs were not the first of their message."""
        runs = self.runs()
        return len(runs) - len({number for number, _ in runs})

    def close(self) -> None:
        """End everything."""
        super().close()
        self.redis.connection_pool.disconnect()
