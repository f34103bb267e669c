"""Strict order under kill -9, pauses and stops: never out of order, nothing lost, few repeated."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest

from consumer_host import ConsumerProcess
from redis_servers import RedisServer, wait_until
from strict_host import STREAM, StrictHost

_POINTS = ("before_own", "after_own", "after_take_over", "before_read", "after_read",
           "before_handle", "after_handle", "before_acknowledge", "after_acknowledge")  # fmt: skip
_OFTEN = {"before_handle": 10, "after_handle": 10, "before_read": 3, "after_read": 3}
KILLS = 27
# Half of it may be in hand, and half of it handled and not acknowledged.
MOST_REPEATED = 20
_NAMES = ("orders", "orders:2", "orders:3")
_SECONDS = 25.0


@pytest.fixture
def host(short_dir: Path, own_redis: RedisServer) -> Iterator[StrictHost]:
    host = StrictHost(short_dir, own_redis)
    host.env["WAKEQ_BACKOFF"] = "base=10ms,cap=20ms"
    yield host
    host.close()


def test_kills_of_the_owner_at_every_point_keep_the_order_beside_a_standby(
    host: StrictHost,
) -> None:
    host.use(seconds=0.001, lease="1h", prefetch=MOST_REPEATED // 2)
    total = 0
    owner = host.start("orders:2")
    for number, point in zip(range(KILLS), cycle(_POINTS)):
        times = 1 + number % _OFTEN.get(point, 1)
        wait_until(lambda owner=owner: f"/{owner.pid}/" in host.owner().get("process", ""))
        killed = host.start(WAKEQ_FAILPOINT=f"{point}:kill@{times}")
        if point == "before_own":
            killed.wait_exit()
        else:
            killed.wait_log("standing by")
        owner.kill()
        # The next one is the one to be killed, and not this one again.
        wait_until(
            lambda killed=killed: (
                not killed.running or f"/{killed.pid}/" in host.owner().get("process", "")
            )
        )
        owner = host.start("orders:2")
        host.fill(100)
        total += 100
        assert killed.wait_exit() == -signal.SIGKILL
    host.wait_begun(total)
    host.wait_done()
    host.check_order(total)
    assert host.repeats() <= MOST_REPEATED * 2 * KILLS
    assert owner.stop() == 0


class Fleet:
    """Three consumers, on two hosts, to which anything happens."""

    def __init__(self, host: StrictHost, chance: random.Random) -> None:
        self._host = host
        self._chance = chance
        self._running: dict[str, ConsumerProcess] = {}
        self._paused: set[str] = set()
        self.pauses = self.kills = 0

    def step(self) -> None:
        """Have something happen to one of them."""
        name = self._chance.choice([*_NAMES[:2], "elsewhere"])
        process = self._running.get(name)
        if process is None or not process.running:
            self._paused.discard(name)
            self._running[name] = self._start(name)
        elif name in self._paused:
            self._paused.discard(name)
            process.send(signal.SIGCONT)
        else:
            what = self._chance.choice(("pause", "pause", "kill", "stop"))
            if what == "pause":
                self.pauses += 1
                self._paused.add(name)
                process.send(signal.SIGSTOP)
            elif what == "kill":
                self.kills += 1
                process.kill()
            else:
                process.terminate()

    def heal(self) -> None:
        """Let all of them go on, and start those that have ended."""
        for name in list(self._paused):
            self._running[name].send(signal.SIGCONT)
        self._paused.clear()
        for name in (*_NAMES[:2], "elsewhere"):
            process = self._running.get(name)
            if process is None or not process.running:
                self._running[name] = self._start(name)

    def stop(self) -> None:
        """Stop all that run."""
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            # 75: it had lost the group when it went on; SIGTERM: it had not quite started.
            assert process.wait_exit() in (0, 75, -signal.SIGTERM)

    def _start(self, name: str) -> ConsumerProcess:
        return self._host.start_elsewhere() if name == "elsewhere" else self._host.start(name)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_to_three_consumers_the_order_is_kept(host: StrictHost, seed: int) -> None:
    chance = random.Random(seed)
    host.use(seconds=0.005, lease="1s", prefetch=MOST_REPEATED // 2)
    fleet = Fleet(host, chance)
    total = 0
    fleet.heal()
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        count = chance.randint(0, 60)
        host.fill(count)
        total += count
        fleet.step()
        time.sleep(chance.uniform(0, 1.2))  # the instant is the test's to choose
    fleet.heal()
    wait_until(lambda: healthy(host, fleet, total), 120, host.output[-3000:])
    fleet.stop()
    host.check_order(total, late=fleet.pauses)
    assert host.pending() == 0
    assert host.repeats() <= MOST_REPEATED * (fleet.kills + fleet.pauses)


def healthy(host: StrictHost, fleet: Fleet, total: int) -> bool:
    """Tell whether all is done; start again what has lost the group, as systemd does."""
    fleet.heal()
    done = len({number for number, _ in host.runs()}) == total and host.pending() == 0
    return done and int(host.redis.xinfo_stream(STREAM)["entries-added"]) == total
