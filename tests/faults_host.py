"""A host for fault tests of wakeq-consumer: handlers that tell what they did, and the checker.

The checker that all of them share: each message that was published was handled, nothing is left
unread or pending, each message was counted once, and duplicates are at most what was in flight.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import redis as redis_py

from consumer_host import ConsumerHost, ConsumerProcess
from redis_servers import RedisServer, wait_until
from wakeq import keys

STREAM = GROUP = "orders"
RETRY = keys.retry(STREAM, GROUP)

# Each handler ends by recording the message's id and the number of its process, in one write(2).
_HANDLERS = """
import asyncio, os, time
from wakeq import Publish

_directory = os.path.dirname(__file__)

def note(message):
    record(message.id, os.getpid())

def fast(message):
    note(message)

def slow(message):
    time.sleep(0.001)
    note(message)

def sluggish(message):
    time.sleep(0.02)
    note(message)

async def patient(message):
    await asyncio.sleep(0.001)
    note(message)

def publishing(message):
    note(message)
    return Publish("out", message.id)

def failing(message):
    "By its id a message is handled, fails once, or fails always."
    time.sleep(0.001)
    record(message.id, os.getpid(), message.attempt)
    kind = int(message.id.partition("-")[2]) % 3
    if kind == 2 or (kind == 1 and message.attempt == 1):
        raise ValueError(kind)

_children = []

def forking(message):
    "Has a child process from its third message on, when there are both connections."
    note(message)
    _children.append(0)
    if len(_children) == 3 and not os.fork():
        os.setpgid(0, 0)
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(0.05)
        os._exit(0)

def gated(message):
    "Ends when the test opens the gate."
    begun = os.open(os.path.join(_directory, "begun"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(begun, message.id.encode() + b"\\n")
    os.close(begun)
    while not os.path.exists(os.path.join(_directory, "gate")):
        time.sleep(0.01)
    note(message)

def gated_failing(message):
    gated(message)
    raise ValueError

def gated_publishing(message):
    gated(message)
    return Publish("out", message.id)
"""
_PROGRAM = 'echo "$WAKEQ_MESSAGE_ID $PPID" >> "$RECORD"\n'


class FaultHost(ConsumerHost):
    """The consumer `orders` of one host, what was published for it, and what it handled.

    Args:
        directory: for its files.
        server: the Redis.
        url: where the consumer finds it, if that is not where it is.
    """

    def __init__(self, directory: Path, server: RedisServer, url: str = "") -> None:
        super().__init__(directory, server)
        self.published: list[str] = []
        self._file = self.handler(_HANDLERS, function="")
        if url:
            self.env["WAKEQ_REDIS_URL"] = url

    def use(self, handler: str = "fast", **settings: Any) -> None:
        """Write the consumer's file, with one of the handlers above, or `program`."""
        if handler == "program":
            self.configure(exec_=[self.program(_PROGRAM)], **settings)
        else:
            self.configure(handler=self._file + handler, **settings)

    def fill(self, count: int, body: bytes = b"x" * 100) -> list[str]:
        """Publish so many messages in one send, and return their ids."""
        ids = [entry_id.decode() for entry_id in self.publish(*[body] * count)]
        self.published += ids
        return ids

    def runs(self) -> list[tuple[str, int]]:
        """Return id and process of each run of a handler, in order."""
        return [(line.split()[0], int(line.split()[1])) for line in self.records]

    def handled(self) -> set[str]:
        """Return the ids that were handled."""
        return {line.split()[0] for line in self.records}

    def wait_handled(self, count: int, deadline_s: float = 60) -> None:
        """Wait until so many messages were handled."""

        def enough() -> bool:
            return len(self.handled()) >= count

        wait_until(enough, deadline_s, f"{count} messages are handled: {self.output[-2000:]}")

    def wait_more_runs(self, count: int = 1, deadline_s: float = 60) -> None:
        """Wait until handlers have run so many times more."""
        before = len(self.records)
        wait_until(lambda: len(self.records) >= before + count, deadline_s, "handlers run")

    def begun(self) -> list[str]:
        """Return the ids that a gated handler began, in order."""
        path = self.app_dir / "begun"
        return path.read_text().splitlines() if path.exists() else []

    def open_gate(self) -> None:
        """Let the gated handlers end."""
        (self.app_dir / "gate").touch()

    def repeats(self) -> Counter[int]:
        """Return, for each process, how many of its runs were repeated later, by whomever."""
        runs = self.runs()
        last = {entry_id: index for index, (entry_id, _) in enumerate(runs)}
        return Counter(pid for index, (entry_id, pid) in enumerate(runs) if last[entry_id] != index)

    def counter(self, name: str = "handled") -> int:
        """Return one of the group's counters."""
        return int(self.stats().get(name, 0))

    def settled(self) -> bool:
        """Tell whether nothing is unread and nothing is pending, in both streams."""
        for source in (STREAM, RETRY):
            try:
                found = self.redis.xinfo_groups(source)
            except redis_py.ResponseError:  # there is no such stream yet, or none any more
                return False
            groups = {group["name"].decode(): group for group in found}
            if GROUP not in groups or groups[GROUP]["pending"]:
                return False
            after = b"(" + groups[GROUP]["last-delivered-id"]
            if self.redis.xrange(source, after, "+", count=1):
                return False
        return True

    def places(self) -> Counter[str]:
        """Return in how many places each message is that is not done, while no consumer runs."""
        # The last that one has sent which was killed may be heard after the first of what we ask.
        wait_until(lambda: len(self.redis.client_list()) == 1, message="no consumer is connected")
        (group,) = self.redis.xinfo_groups(STREAM)
        unread = self.redis.xrange(STREAM, b"(" + group["last-delivered-id"], "+")
        pending = self.redis.xpending_range(STREAM, GROUP, "-", "+", 100_000)
        places = Counter(entry_id.decode() for entry_id, _ in unread)
        places.update(entry["message_id"].decode() for entry in pending)
        moved = [fields for _, fields in self.redis.xrange(RETRY)] + self.dead(STREAM, GROUP)
        places.update(fields[b"wakeq.first_id"].decode() for fields in moved)
        places.update(message.id for message in self.delayed(STREAM))
        return places

    def check(self, duplicates: int, counted: bool = True, deadline_s: float = 180) -> None:
        """Fail unless all was handled and acknowledged, with at most so many duplicates."""
        published = set(self.published)
        try:
            wait_until(lambda: published <= self.handled(), deadline_s, "all is handled")
            wait_until(self.settled, deadline_s, "nothing is unread, nothing is pending")
        except AssertionError as error:
            missing = len(published - self.handled())
            raise AssertionError(
                f"{error}: {missing} of {len(published)} were not handled, {self.pending()} are"
                f" pending; printed:\n{self.output[-3000:]}"
            ) from None
        repeats = self.repeats()
        assert repeats.total() <= duplicates, (repeats, self.output[-3000:])
        if counted:
            assert self.counter() == len(self.published)

    def close(self) -> None:
        """End everything."""
        super().close()
        self.redis.connection_pool.disconnect()


def resident_bytes(process: ConsumerProcess) -> int:
    """Return the memory of a process that is in use."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the process has ended")


def processor_ticks(process: ConsumerProcess) -> int:
    """Return the processor time that a process took, in hundredths of a second."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
