"""A host for tests of nodes on a list: what was pushed, what handlers did, what is left."""

from __future__ import annotations

import json
import socket
import sys
from collections import Counter
from typing import Any

from consumer_host import ConsumerProcess
from node_host import NodeHost
from redis_servers import wait_until
from wakeq import keys

NODE = LIST = "jobs"
TAKERS, SUSPECTS, STATS = keys.takers(LIST), keys.suspects(LIST), keys.stats(LIST, NODE)
ERRORS = keys.errors(LIST, NODE)

# All messages that are in the list KEYS[1], or in hand under the keys that ARGV[1] means, at one
# moment: one may go from the one to the other.
_LEFT = """
local left = redis.call('LRANGE', KEYS[1], 0, -1)
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  if redis.call('TYPE', key).ok == 'list' then
    for _, body in ipairs(redis.call('LRANGE', key, 0, -1)) do
      left[#left + 1] = body
    end
  else
    for _, number in ipairs(redis.call('HKEYS', key)) do
      if tonumber(number) then
        left[#left + 1] = redis.call('HGET', key, number)
      end
    end
  end
end
return left
"""

# What handlers of these tests are made of; each run is recorded as BODY PID.
HANDLERS = """
import os, signal, time
from wakeq import Publish, Reject, Retry, batch

def note(message):
    record(message.text(), os.getpid())

def fast(message):
    note(message)

def slow(message):
    time.sleep(0.02)
    note(message)

def gated(message):
    "Ends when the test opens the gate."
    record("begun", message.text(), os.getpid())
    while not os.path.exists(os.path.join(os.path.dirname(__file__), "gate")):
        time.sleep(0.01)
    note(message)

def deadly(message):
    "A message `deadly` ends the process, once it is certain that all workers have begun one."
    if message.text() == "deadly":
        record("deadly", os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    note(message)
"""


class ListHost(NodeHost):
    """The consuming process of the node `jobs`, which takes from the list `jobs`."""

    def command(self, name: str = NODE, *options: str) -> list[str]:
        """Return the command that starts a taker."""
        return [sys.executable, "-m", "wakeq.node.takers", name, *options]

    def start(
        self, name: str = NODE, *options: str, wake: socket.socket | None = None, **env: str
    ) -> ConsumerProcess:
        """Start a taker."""
        return super().start(name, *options, wake=wake, **env)

    def use(self, function: str = "fast", code: str = HANDLERS, **settings: Any) -> None:
        """Write the node's file, with one of the handlers above, or of other code."""
        handler = self.handler(code, function=function)
        self.configure(NODE, **{"list": LIST, "handler": handler, "workers": 4} | settings)

    def push(self, *bodies: str | bytes | int) -> None:
        """Add messages to the list."""
        self.redis.lpush(LIST, *bodies)

    def waiting(self) -> list[str]:
        """Return the messages of the list, the one that is taken next first."""
        return [body.decode() for body in reversed(self.redis.lrange(LIST, 0, -1))]

    def handled(self) -> list[str]:
        """Return the messages that were handled, in order, each as often as it was."""
        return [line.split()[0] for line in self.records if not line.startswith("begun ")]

    def begun(self) -> list[str]:
        """Return the messages that a gated handler began."""
        return [line.split()[1] for line in self.records if line.startswith("begun ")]

    def open_gate(self) -> None:
        """Let the gated handlers end."""
        (self.app_dir / "gate").touch()

    def errors(self) -> list[Any]:
        """Return the entries of the error list, the oldest first."""
        return [json.loads(entry) for entry in reversed(self.redis.lrange(ERRORS, 0, -1))]

    def wait_errors(self, count: int, deadline_s: float = 60) -> list[Any]:
        """Wait until there are so many entries in the error list, and return them."""
        wait_until(
            lambda: self.redis.llen(ERRORS) >= count, deadline_s,
            f"{count} errors; the takers printed:\n{self.output}",
        )  # fmt: skip
        return self.errors()

    def wait_handled(self, count: int, deadline_s: float = 60) -> list[str]:
        """Wait until so many messages were handled, each counted once, and return them."""
        wait_until(
            lambda: len(set(self.handled())) >= count, deadline_s,
            f"{count} handled, not {len(set(self.handled()))}; the takers printed:\n"
            + self.output[-3000:],
        )  # fmt: skip
        return self.handled()

    def wait_finished(self, deadline_s: float = 60) -> None:
        """Wait until nothing is in the list, or in hand."""
        wait_until(lambda: not self.left(), deadline_s, f"nothing is left: {self.output[-3000:]}")

    def left(self) -> Counter[str]:
        """Return what is in the list, or in hand of takers, and in how many places."""
        left = self.redis.eval(_LEFT, 1, LIST, keys.prefix(LIST) + ":tak*:*")
        return Counter(body.decode() for body in left)

    def taker_of(self, process: ConsumerProcess) -> str:
        """Return the name of a process among the takers."""
        (taker,) = self._names_of(process)
        return taker

    def wait_taking(self, process: ConsumerProcess) -> str:
        """Wait until a process has joined, and return its name among the takers."""
        wait_until(lambda: self._names_of(process), 60, f"{process.pid} is a taker:\n{self.output}")
        return self.taker_of(process)

    def _names_of(self, process: ConsumerProcess) -> list[str]:
        names = [name.decode() for name in self.redis.zrange(TAKERS, 0, -1)]
        return [n for n in names if n.split("/")[2] == str(process.pid) and n[0] != "~"]

    def forget(self, taker: str) -> None:
        """Have the time of a taker be over."""
        self.redis.zadd(TAKERS, {taker: 1})

    def only_keys(self) -> set[str]:
        """Return the keys that there are, without the counters."""
        return {key.decode() for key in self.redis.keys("*")} - {STATS}
