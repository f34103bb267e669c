"""Hosts on one network that share one Redis, and a record of what they do.

The record lies in the folder that all of them have, not in Redis, so that a host whose link is cut
goes on writing. Each line is written by one write(2), so the lines stand in the order of what
they tell: all hosts have one kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from network import SHARED, Host, Network
from wakeq_machine import service

from redis_servers import wait_until
from wakeq import keys

# What a handler records by; the first two words are the host and the process, told from any other
# by when it began (the id of the boot may be that of the kernel, which all have in common).
RECORD = f"""
import os, time

file = os.open("{SHARED}/record", os.O_WRONLY | os.O_APPEND)
life = f"{{os.uname().nodename}} {{os.getpid()}}/{{time.monotonic_ns()}}"

def record(*words):
    os.write(file, (" ".join([life, *map(str, words)]) + "\\n").encode())
"""
_SANDBOX = f"[Service]\nReadWritePaths={SHARED}\n"


class Fleet:
    """A machine with Redis, and hosts that use it.

    Args:
        network: where they are to be.
        suites: the name of each host, and its Debian release.

    Attributes:
        hub: the machine with Redis.
        hosts: the others, by their names.
        shared: the folder that all have as SHARED.
    """

    def __init__(self, network: Network, **suites: str) -> None:
        self.shared = network.shared
        self._record = self.shared / "record"
        self._record.touch()
        self._record.chmod(0o666)
        self._published: dict[str, list[str]] = {}
        self.hub, *hosts = network.boot(hub="bookworm", **suites)
        self.hub.serve_redis()
        self.redis = self.hub.redis()
        self.hosts = {host.name: host for host in hosts}
        for host in hosts:
            host.write("/etc/wakeq/wakeq.toml", f'redis_url = "redis://{self.hub.address}"\n')

    def close(self) -> None:
        """Close what is open on this side."""
        self.redis.close()

    # -- consumers -------------------------------------------------------------------------

    def configure(self, name: str, handler: str, settings: str, *hosts: Host) -> None:
        """Have a consumer, on all hosts or on some."""
        for host in hosts or self.hosts.values():
            host.configure(name, RECORD + handler, settings)
            host.drop_in(service(name), _SANDBOX)
            host.enable(name)

    def publish(self, stream: str, count: int) -> None:
        """Add the next numbers to a stream, from 0, in one step."""
        ids = self._published.setdefault(stream, [])
        pipe = self.redis.pipeline(transaction=True)
        for number in range(len(ids), len(ids) + count):
            pipe.xadd(stream, {"body": str(number)})
        ids += pipe.execute()

    def pending(self, stream: str) -> set[int]:
        """Return the numbers that were delivered to the consumer and are not acknowledged."""
        found = self.redis.xpending_range(stream, stream, "-", "+", 100_000)
        ids = {entry["message_id"] for entry in found}
        return {number for number, each in enumerate(self._published[stream]) if each in ids}

    def wait_until_drained(self, stream: str, deadline_s: float = 120) -> None:
        """Wait until nothing is left to do for a consumer."""
        wait_until(lambda: self.hub.is_drained(stream), deadline_s, f"{stream} is drained")

    def owner(self, stream: str) -> Host | None:
        """Return the host whose consumer owns its group in Redis, None if nobody does."""
        process, name = self.redis.hmget(keys.owner(stream, stream), "process", "consumer")
        return self.hosts[name.partition("/")[0]] if process else None

    def wait_for_standby(self, stream: str) -> None:
        """Wait until one consumer owns the group and those of the other hosts stand by.

        Meanwhile there is something to do, else they would sleep.
        """

        def is_so() -> bool:
            self.publish(stream, 1)
            owner = self.owner(stream)
            return owner is not None and all(
                "standing by" in host.status_text(service(stream))
                for host in self.hosts.values()
                if host is not owner
            )

        wait_until(is_so, 120, "one owns the group, all others stand by")

    # -- the record ------------------------------------------------------------------------

    def record(self) -> list[list[str]]:
        """Return the words of each line: host, process, what else the handler says."""
        text = self._record.read_text()
        return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]

    def wait_recorded(self, count: int, deadline_s: float = 120) -> None:
        """Wait until so many different numbers are recorded, each as the third word."""
        wait_until(
            lambda: len({words[2] for words in self.record()}) >= count,
            deadline_s,
            f"{count} are recorded",
        )

    def wait_recorded_by(self, host: Host, after: int = 0, deadline_s: float = 60) -> None:
        """Wait until a host records something after so many lines."""
        wait_until(
            lambda: any(words[0] == host.name for words in self.record()[after:]),
            deadline_s,
            f"{host.name} records something",
        )


@contextmanager
def fleet_on(network: Network, **suites: str) -> Iterator[Fleet]:
    """Have a fleet."""
    fleet = Fleet(network, **suites)
    try:
        yield fleet
    finally:
        fleet.close()
