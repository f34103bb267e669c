"""The life of a consumer: its start, what it says of itself, its reloads and its end."""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import NotifySocket
from consumer_host import ConsumerHost
from faults_host import processor_ticks
from redis_servers import RedisServer, wait_until

RECORD = "def handle(message): record(message.text())\n"
# Until there is a file.
GATED = """
import os, time
def handle(message):
    record("begun", message.text())
    while not os.path.exists({go!r}): time.sleep(0.01)
    record("ended", message.text())
"""
# A read that is not ended blocks for longer than any test waits.
LONG_READS = """
from wakeq.consumer import consumer
consumer._BLOCK_SECONDS = 3600.0
from wakeq.consumer.main import main
main()
"""


@pytest.fixture
def host(
    short_dir: Path, redis: RedisServer, notify_socket: NotifySocket
) -> Iterator[ConsumerHost]:
    host = ConsumerHost(short_dir, redis)
    host.configure(handler=host.handler(RECORD))
    host.env |= notify_socket.env
    yield host
    host.close()


def use_gate(host: ConsumerHost, **settings: Any) -> Path:
    """Have a handler wait for a file, and return that."""
    go = host.directory / "go"
    host.configure(handler=host.handler(GATED.format(go=str(go))), **settings)
    return go


def wait_handed_back(host: ConsumerHost) -> None:
    """Wait until something is pending that may be claimed at once."""
    wait_until(lambda: host.redis.xpending_range("orders", "orders", "-", "+", 9, idle=10**9))


# -- what it says to systemd ---------------------------------------------------------------------


def test_is_ready_when_redis_has_answered_and_the_group_is_there(
    host: ConsumerHost, notify_socket: NotifySocket
) -> None:
    consumer = host.start()
    notify_socket.wait_for("READY=1")
    assert [group["name"] for group in host.redis.xinfo_groups("orders")] == [b"orders"]
    assert host.alive()
    assert consumer.stop() == 0
    notify_socket.wait_for("STOPPING=1")
    assert notify_socket.messages.index("READY=1") < notify_socket.messages.index("STOPPING=1")
    assert notify_socket.messages.count("READY=1") == 1


def test_is_not_ready_while_redis_does_not_answer(
    host: ConsumerHost, notify_socket: NotifySocket, own_redis: RedisServer
) -> None:
    own_redis.stop()
    consumer = host.start(WAKEQ_REDIS_URL=own_redis.url)
    status = notify_socket.wait_for("STATUS=")
    assert status.startswith("STATUS=waiting for Redis, try 1: Redis at unix://")
    consumer.wait_log("waiting for Redis")
    assert "READY=1" not in notify_socket.messages
    own_redis.start()
    notify_socket.wait_for("READY=1")
    assert consumer.count("waiting for Redis") == 1


def test_gives_up_with_69_when_redis_does_not_answer_within_the_start_time(
    host: ConsumerHost, own_redis: RedisServer
) -> None:
    own_redis.stop()
    consumer = host.start("orders", "--start-timeout", "300ms", WAKEQ_REDIS_URL=own_redis.url)
    assert consumer.wait_exit() == 69
    assert "cannot be reached: No such file or directory" in consumer.output


def test_a_stop_ends_the_wait_for_redis(
    host: ConsumerHost, notify_socket: NotifySocket, own_redis: RedisServer
) -> None:
    own_redis.stop()
    start = "from wakeq.backoff import Growth\nGrowth.wait = lambda self, tries: 3600.0\n"
    start += "from wakeq.consumer.main import main\nmain()\n"
    command = [host.interpreter, "-c", start, "orders", "--start-timeout=2h"]
    consumer = host.run(command, WAKEQ_REDIS_URL=own_redis.url)
    notify_socket.wait_for("STATUS=")
    assert consumer.stop() == 0


def test_says_with_figures_what_it_does(host: ConsumerHost, notify_socket: NotifySocket) -> None:
    code = "import time\ndef handle(m):\n  time.sleep(0.01)\n  if m.text() == '0': raise ValueError"
    host.configure(handler=host.handler(code))
    consumer = host.start()
    notify_socket.wait_for("STATUS=")

    def status(pattern: str) -> bool:
        return any(re.fullmatch(f"STATUS={pattern}", line) for line in notify_socket.messages)

    number = 0

    def is_told() -> bool:
        nonlocal number
        host.publish(*range(number, number + 20))
        number += 20
        host.wait_done()
        return status(r"handling: \d+ in hand, [\d,]+ handled, 1 failed, \d+/s")

    wait_until(is_told)
    wait_until(lambda: status(rf"idle: 0 in hand, {number - 1:,} handled, 1 failed(, \d+/s)?"))
    consumer.stop()
    wait_until(lambda: status("draining(: .*)?"))


def test_feeds_the_watchdog_while_it_is_idle(
    host: ConsumerHost, notify_socket: NotifySocket
) -> None:
    host.start(WATCHDOG_USEC="1000000")
    notify_socket.wait_for("READY=1")
    wait_fed(notify_socket)


def wait_fed(notify_socket: NotifySocket) -> None:
    """Wait until the watchdog was fed some times within a second, its limit."""
    quick = 0
    for _ in range(30):
        began = time.monotonic()
        notify_socket.wait_for("WATCHDOG=1", after=notify_socket.collected())
        quick += time.monotonic() - began < 1
        if quick == 4:
            return
    raise AssertionError(f"{quick} of 30 times")


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_feeds_the_watchdog_while_a_handler_blocks(
    host: ConsumerHost, notify_socket: NotifySocket, kind: str
) -> None:
    code = f"import time\n{kind} handle(message): record(1); time.sleep(3600)\n"
    host.configure(handler=host.handler(code))
    host.publish("a")
    host.start(WATCHDOG_USEC="1000000")
    host.wait_records(1)
    wait_fed(notify_socket)
    assert host.pending() == 1


def test_does_not_feed_the_watchdog_when_the_loop_is_stuck(
    host: ConsumerHost, notify_socket: NotifySocket
) -> None:
    consumer = host.start(WATCHDOG_USEC="1000000", WAKEQ_FAILPOINT="after_read:sleep=3600@2")
    notify_socket.wait_for("READY=1")
    host.publish("a")

    def is_starving() -> bool:
        after = notify_socket.collected()
        time.sleep(1)  # nothing to wait for: it is what does not happen that counts
        return "WATCHDOG=1" not in notify_socket.messages[after : notify_socket.collected()]

    wait_until(is_starving)
    consumer.kill()


def test_asks_for_time_while_it_drains(host: ConsumerHost, notify_socket: NotifySocket) -> None:
    go = use_gate(host)
    host.publish("a")
    consumer = host.start()
    host.wait_records(1)
    consumer.terminate()
    notify_socket.wait_for("STOPPING=1")
    assert notify_socket.wait_for("EXTEND_TIMEOUT_USEC=") == "EXTEND_TIMEOUT_USEC=10000000"
    go.touch()
    assert consumer.wait_exit() == 0
    assert host.records == ["begun a", "ended a"]


def test_says_that_it_stops_when_it_goes_to_sleep(
    host: ConsumerHost, notify_socket: NotifySocket
) -> None:
    consumer = host.start("orders", "--idle-timeout=2.5s")
    assert consumer.wait_exit() == 0
    notify_socket.wait_for("STOPPING=1")


def test_reads_nothing_from_redis_all_the_time_when_there_is_nothing(
    host: ConsumerHost, notify_socket: NotifySocket
) -> None:
    consumer = host.start()
    notify_socket.wait_for("READY=1")

    def is_quiet() -> bool:
        before = host.redis.info("stats")["total_commands_processed"]
        ticks = processor_ticks(consumer)
        time.sleep(2)  # nothing to wait for: it is what does not happen that counts
        commands = host.redis.info("stats")["total_commands_processed"] - before
        return commands <= 4 and processor_ticks(consumer) - ticks <= 2

    wait_until(is_quiet)  # at first it opens its log


def first_read(host: ConsumerHost) -> str:
    """Return the first command by which a consumer asks for messages."""
    with host.redis.monitor() as monitor:
        consumer = host.start()
        commands = (each["command"] for each in monitor.listen())
        command = next(c for c in commands if c.upper().startswith("XREADGROUP"))
    assert consumer.stop() == 0
    return str(command)


def test_asks_for_its_own_pending_messages_first_if_there_are_any(host: ConsumerHost) -> None:
    host.publish("a", "b")
    new = first_read(host)
    assert (new.split()[-2:], "BLOCK" in new) == ([">", ">"], False)
    host.redis.xadd("orders", {"body": "c"})
    name = f"{os.uname().nodename}/orders"
    assert host.redis.xreadgroup("orders", name, {"orders": ">"}, count=1)
    assert first_read(host).split()[-2:] == ["0", "0"]


# -- stopping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_finishes_what_is_begun_and_hands_back_the_rest_at_a_stop(
    host: ConsumerHost, number: signal.Signals
) -> None:
    go = use_gate(host, concurrency=2, prefetch=4)
    ids = host.publish(*range(8))
    consumer = host.start()
    host.wait_records(2)
    host.wait_pending(4)
    consumer.send(number)
    wait_handed_back(host)
    go.touch()
    assert consumer.wait_exit() == 0
    assert sorted(host.records) == ["begun 0", "begun 1", "ended 0", "ended 1"]
    pending = host.redis.xpending_range("orders", "orders", "-", "+", 99)
    assert [each["message_id"] for each in pending] == ids[2:4]
    assert all(each["time_since_delivered"] > 10**9 for each in pending)
    assert host.stats()["handled"] == "2"
    assert "handled=2 handed_back=2" in consumer.output


def test_a_stop_while_it_is_idle_takes_no_time(
    host: ConsumerHost, notify_socket: NotifySocket
) -> None:
    consumer = host.run([host.interpreter, "-c", LONG_READS, "orders"])
    notify_socket.wait_for("READY=1")
    assert consumer.stop() == 0


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_second_signal_ends_it_at_once(host: ConsumerHost, kind: str) -> None:
    wait = "time.sleep(3600)" if kind == "def" else "await asyncio.sleep(3600)"
    code = f"import time, asyncio\n{kind} handle(m):\n  record(1)\n  {wait}\n"
    host.configure(handler=host.handler(code), drain_timeout="1h")
    host.publish("a", "b")
    consumer = host.start()
    host.wait_records(1)
    host.wait_pending(2)
    consumer.terminate()
    wait_handed_back(host)
    assert consumer.running
    consumer.terminate()
    assert consumer.wait_exit() == 0
    pending = host.redis.xpending_range("orders", "orders", "-", "+", 9)
    assert [each["time_since_delivered"] > 10**9 for each in pending] == [True, True]
    assert host.alive() is None
    assert "failed" not in host.stats()


def test_does_not_wait_longer_than_drain_timeout(host: ConsumerHost) -> None:
    use_gate(host, drain_timeout="500ms")
    host.publish("a")
    consumer = host.start()
    host.wait_records(1)
    began = time.monotonic()
    assert consumer.stop() == 0
    assert time.monotonic() - began >= 0.5
    assert "handed_back=1" in consumer.output


def test_a_cancelled_coroutine_may_tidy_up_at_the_end(host: ConsumerHost) -> None:
    code = """
import asyncio
async def handle(message):
    record("begun")
    try:
        await asyncio.sleep(30)
    finally:
        await asyncio.sleep(0)
        record("tidied up")
"""
    host.configure(handler=host.handler(code), drain_timeout="100ms")
    host.publish("a")
    consumer = host.start()
    host.wait_records(1)
    assert consumer.stop() == 0
    assert host.records == ["begun", "tidied up"]
    assert host.pending() == 1


# -- reloading ------------------------------------------------------------------------------------


def test_a_reload_takes_the_new_configuration(
    host: ConsumerHost, notify_socket: NotifySocket
) -> None:
    go = use_gate(host)
    host.publish(*range(4))
    consumer = host.start()
    host.wait_records(1)
    host.configure(handler=host.handler("def handle(m): record('new', m.text())\n", "next.py"))
    after = notify_socket.collected()
    sent_at = time.clock_gettime(time.CLOCK_MONOTONIC)
    consumer.send(signal.SIGHUP)
    notify_socket.wait_for("RELOADING=1", after=after)
    usec = int(notify_socket.wait_for("MONOTONIC_USEC=", after=after).partition("=")[2])
    assert sent_at - 1e-6 <= usec / 1e6 <= time.clock_gettime(time.CLOCK_MONOTONIC)
    go.touch()
    notify_socket.wait_for("READY=1", after=after)
    host.wait_done()
    # The one that was begun was finished; the others came again. (The next one may have been
    # begun, too, before it was taken back.)
    assert host.records[:2] == ["begun 0", "ended 0"]
    assert host.records[-2:] == ["new 2", "new 3"]
    assert [n for n, _ in itertools.groupby(line.split()[1] for line in host.records)] == list(
        "0123"
    )
    assert "STOPPING=1" not in notify_socket.messages
    assert host.stats()["handled"] == "4"
    assert consumer.stop() == 0


def test_a_reload_of_a_wrong_configuration_keeps_the_old_one(
    host: ConsumerHost, notify_socket: NotifySocket
) -> None:
    consumer = host.start()
    notify_socket.wait_for("READY=1")
    host.configure(handler=host.handler(RECORD), concurency=4)
    consumer.send(signal.SIGHUP)
    consumer.wait_log("kept the old configuration")
    assert "unknown setting 'concurency' (did you mean 'concurrency'?)" in consumer.output
    host.publish("a")
    host.wait_done()
    assert "RELOADING=1" not in notify_socket.messages
    # And the right one is taken later.
    host.configure(handler=host.handler("def handle(m): record('new')\n"))
    consumer.send(signal.SIGHUP)
    notify_socket.wait_for("RELOADING=1")
    host.publish("b")
    assert host.wait_records(2) == ["a", "new"]
    assert consumer.stop() == 0


def test_a_stop_during_a_reload_is_a_stop(host: ConsumerHost, notify_socket: NotifySocket) -> None:
    go = use_gate(host)
    host.publish("a")
    consumer = host.start()
    host.wait_records(1)
    consumer.send(signal.SIGHUP)
    notify_socket.wait_for("RELOADING=1")
    consumer.terminate()
    go.touch()
    assert consumer.wait_exit() == 0
    assert host.records == ["begun a", "ended a"]
    assert host.stats()["handled"] == "1"


# -- what is logged -------------------------------------------------------------------------------


def test_says_little_on_a_terminal_and_in_no_colour_if_there_is_none(host: ConsumerHost) -> None:
    consumer = host.start()
    host.publish("a")
    host.wait_done()
    consumer.stop()
    (line,) = consumer.lines
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3} \[info +\] consumer stopped +\[wakeq-consumer\]"
        r" handled=1 seconds=[\d.]+ stream=orders group=orders",
        line,
    )


def test_says_more_when_asked(host: ConsumerHost) -> None:
    consumer = host.start("orders", "--log-level=debug")
    host.publish("a")
    host.wait_done()
    consumer.stop()
    assert consumer.count("consumer started") == 1


def test_sends_events_with_fields_to_the_journal(host: ConsumerHost) -> None:
    fake = host.app_dir / "systemd"
    fake.mkdir()
    (fake / "__init__.py").write_text("")
    sent = host.directory / "sent"
    lines = f"import os\nfd = os.open({str(sent)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
    lines += "def sendv(*fields): os.write(fd, repr(fields).encode() + b'\\n')\n"
    (fake / "journal.py").write_text(lines)
    host.configure(handler=host.handler("def handle(m): raise ValueError('no such order')\n"))
    (entry_id,) = host.publish("a")
    journal = host.directory / "stderr"
    with journal.open("w") as file:
        stat = os.fstat(file.fileno())
    script = 'exec 2> "$STDERR"; exec "$@"'
    consumer = host.run(
        ["bash", "-c", script, "bash", *host.command()],
        STDERR=str(journal),
        JOURNAL_STREAM=f"{stat.st_dev}:{stat.st_ino}",
        PYTHONPATH=str(host.app_dir),
    )
    wait_until(lambda: sent.exists() and "message failed" in sent.read_text())
    assert consumer.stop() == 0
    failed, stopped = (
        dict(field.decode().split("=", 1) for field in eval(line))
        for line in sent.read_text().splitlines()
    )
    assert failed["MESSAGE"].startswith("message failed\nTraceback (most recent call last):\n")
    assert failed["MESSAGE"].endswith("ValueError: no such order")
    assert failed["WAKEQ_MESSAGE_ID"] == entry_id.decode()
    assert failed["WAKEQ_STREAM"] == failed["WAKEQ_GROUP"] == "orders"
    assert failed["WAKEQ_ATTEMPT"] == "1"
    assert failed["WAKEQ_ERROR"] == "ValueError: no such order"
    assert failed["PRIORITY"] == "4"
    assert failed["SYSLOG_IDENTIFIER"] == "wakeq-consumer"
    assert re.fullmatch("[0-9a-f]{32}", failed["MESSAGE_ID"])
    assert all(name.isupper() for name in failed)
    assert stopped["MESSAGE"] == "consumer stopped"
    assert stopped["WAKEQ_HANDLED"] == "0"
    assert stopped["WAKEQ_FAILED"] == "1"
    assert stopped["MESSAGE_ID"] != failed["MESSAGE_ID"]
    assert journal.read_text() == ""
