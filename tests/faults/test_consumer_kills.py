"""kill -9 of wakeq-consumer at every point: nothing lost, few repeated, all counted once."""

from __future__ import annotations

import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import pytest

import wakeq.consumer
from faults_host import FaultHost
from redis_servers import RedisServer, wait_until

# Where a consumer that has something to handle comes along. The empty one: at any instant.
_ALWAYS = ("after_join", "after_group", "before_read", "after_read", "before_handle",
           "after_handle", "before_acknowledge", "after_acknowledge", "")  # fmt: skip
# Where it comes along more than once for sure, however it batches.
_OFTEN = {"before_handle": 10, "after_handle": 10, "before_read": 3, "after_read": 3,
          "before_acknowledge": 2, "after_acknowledge": 2}  # fmt: skip
_AT_THE_END = ("before_exit", "after_leave")
_AT_A_STOP = ("after_hand_back",)
_AT_A_FAILURE = ("before_fail", "after_fail")
_IN_STRICT_ORDER = ("before_own", "after_own", "after_take_over")

KILLS = 15
# (handler, concurrency, messages for each run, most repeated for each kill)
SETTINGS = [
    ("fast", 1, 2000, 512),
    ("fast", 8, 2000, 8 * 512),
    ("slow", 1, 150, 20),
    ("slow", 8, 400, 8 * 20),
    ("patient", 8, 400, 8 * 20),
    ("program", 2, 12, 8),
    ("publishing", 1, 1000, 512),
]


@pytest.fixture
def host(short_dir: Path, redis_server: Callable[..., RedisServer]) -> Iterator[FaultHost]:
    host = FaultHost(short_dir, redis_server())
    yield host
    host.close()


def points_in_the_source() -> set[str]:
    """Return every failpoint of the consumer."""
    (folder,) = wakeq.consumer.__path__
    sources = "".join(path.read_text() for path in Path(folder).glob("*.py"))
    return set(re.findall(r'failpoint\.hit\("(\w+)"\)', sources))


def test_every_failpoint_of_the_consumer_is_killed_at() -> None:
    assert points_in_the_source() == {
        *(*_ALWAYS, *_AT_THE_END, *_AT_A_STOP, *_AT_A_FAILURE, *_IN_STRICT_ORDER)
    } - {""}
    assert len(SETTINGS) * KILLS >= 100


@pytest.mark.parametrize(("handler", "concurrency", "messages", "repeats"), SETTINGS)
def test_a_hundred_kills_lose_nothing_and_repeat_what_was_in_flight(
    host: FaultHost, handler: str, concurrency: int, messages: int, repeats: int
) -> None:
    # As many may be in hand, and as many done and not acknowledged: a bound that no load moves.
    host.use(handler, concurrency=concurrency, prefetch=repeats // concurrency // 2)
    chance = random.Random(f"{handler} {concurrency}")
    killed = []
    for _, point in zip(range(KILLS), cycle(_ALWAYS)):
        host.fill(messages)
        times = chance.randint(1, _OFTEN.get(point, 1))
        process = host.start(WAKEQ_FAILPOINT=f"{point}:kill@{times}" if point else "")
        killed.append(process.pid)
        if not point:
            host.wait_more_runs()
            time.sleep(chance.uniform(0, 0.05))  # the instant is the test's to choose
            process.kill()
        assert process.wait_exit() == -signal.SIGKILL

    process = host.start()
    host.check(duplicates=repeats * KILLS, deadline_s=120)
    assert process.stop() == 0
    repeated = host.repeats()
    assert max(repeated[pid] for pid in killed) <= repeats
    assert repeated[process.pid] == 0
    if handler == "publishing":
        bodies = [fields[b"body"].decode() for _, fields in host.redis.xrange("out")]
        assert sorted(bodies) == sorted(host.published)
        assert host.counter("published") == len(host.published)


@pytest.mark.parametrize("point", _AT_THE_END)
def test_a_kill_at_the_idle_exit_loses_and_repeats_nothing(host: FaultHost, point: str) -> None:
    host.use()
    for _ in range(2):
        host.fill(3)
        process = host.start("orders", "--idle-timeout", "2.5s", WAKEQ_FAILPOINT=f"{point}:kill")
        assert process.wait_exit() == -signal.SIGKILL
    host.fill(3)
    process = host.start("orders", "--idle-timeout", "2.5s")
    assert process.wait_exit() == 0
    host.check(duplicates=0)


def test_a_kill_while_stopping_loses_and_repeats_nothing(host: FaultHost) -> None:
    host.use("gated")
    host.fill(10)
    for times in range(1, 4):
        process = host.start(WAKEQ_FAILPOINT="after_hand_back:kill")
        # One is being handled, and one waits for the lane.
        wait_until(lambda times=times: len(host.begun()) == times and host.pending() >= 2)
        process.send(signal.SIGTERM)
        assert process.wait_exit() == -signal.SIGKILL
    host.open_gate()
    host.start()
    host.check(duplicates=0)


def test_a_kill_while_messages_fail_leaves_each_in_one_place(host: FaultHost) -> None:
    """A message is unread, pending, delayed, delivered again, dead or done, at every kill."""
    host.use("failing", max_attempts=2, prefetch=10)  # see above for the bound
    chance = random.Random("failing")
    points = (*_AT_A_FAILURE, "before_acknowledge", "after_acknowledge", "")
    kinds: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}
    kills = 20
    for _, point in zip(range(kills), cycle(points)):
        for entry_id in host.fill(60):
            kinds[int(entry_id.partition("-")[2]) % 3].add(entry_id)
        often = f"{point}:kill@{chance.randint(1, 3)}" if point else ""
        process = host.start(WAKEQ_FAILPOINT=often)
        if not point:
            host.wait_more_runs(5)
            time.sleep(chance.uniform(0, 0.05))  # the instant is the test's to choose
            process.kill()
        assert process.wait_exit() == -signal.SIGKILL

        places = host.places()
        assert set(places.values()) <= {1}, "in two places"
        done = set(host.published) - set(places)
        assert done <= kinds[0] | kinds[1], "lost"
        good = {words[0] for words in map(str.split, host.records) if words[2] != "1"} | kinds[0]
        assert done <= good & host.handled()
        host.deliver()

    process = host.start()
    bad = len(kinds[1]) + 2 * len(kinds[2])
    while host.counter("failed") < bad:
        before = host.counter("failed")
        host.deliver()
        wait_until(lambda b=before: host.counter("failed") > b or host.counter("failed") == bad)
    wait_until(lambda: not host.delayed() or host.deliver())
    wait_until(host.settled)
    host.deliver()
    wait_until(lambda: host.counter() == len(kinds[0] | kinds[1]), 30)
    assert process.stop() == 0
    assert host.places() == Counter(kinds[2])
    assert {letter[b"wakeq.first_id"].decode() for letter in host.dead()} == kinds[2]
    assert host.counter("failed") == bad
    assert host.counter("dead") == len(kinds[2])
    assert len(host.runs()) - (len(kinds[0]) + 2 * len(kinds[1] | kinds[2])) <= 20 * kills


@pytest.mark.parametrize("point", _IN_STRICT_ORDER)
def test_a_kill_while_the_group_is_taken_over_loses_and_repeats_nothing(
    host: FaultHost, point: str
) -> None:
    host.use(order="strict", lease="1s")
    for _ in range(3):
        host.fill(10)
        process = host.start(WAKEQ_FAILPOINT=f"{point}:kill")
        assert process.wait_exit() == -signal.SIGKILL
    assert host.runs() == []
    host.start()
    host.check(duplicates=0)
    assert [entry_id for entry_id, _ in host.runs()] == host.published
