"""wakeq-bridge: what a callable or a program makes of messages, and what fails."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bridge_host import CHANNEL, HOST, STREAM, BridgeHost, bridge_host, workers_of
from redis_servers import RedisServer, wait_until
from wakeq import keys
from wakeq.scripts import Script


@contextmanager
def watched(pid: int) -> Iterator[int]:
    """Provide what is readable when a process has ended; end it."""
    end = os.pidfd_open(pid)
    try:
        yield end
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(end, signal.SIGKILL)
        os.close(end)


ID = f"{HOST}/clicks/1".encode()


@pytest.fixture
def host(tmp_path: Path, redis: RedisServer) -> Iterator[BridgeHost]:
    with bridge_host(tmp_path, redis) as found:
        yield found


def test_a_callable_makes_any_number_of_messages_of_one(host: BridgeHost) -> None:
    code = """
def transform(message):
    word = message.text()
    if word == "none": return None
    if word == "fields": return {"from": message.channel, "n": 1}
    if word == "text": return "said"
    if word == "empty": return {}
    if word == "three": return [{"n": 1}, b"two", {"n": 3}]
    return (c for c in word)
"""
    host.configure(transform=host.code(code))
    host.start()
    host.wait_begun()
    host.publish("none", "fields", "text", "empty", "three", "ab", "none")
    found = [
        {k: v for k, v in entry.items() if k != b"consumer_id"} for entry in host.wait_entries(8)
    ]
    assert found == [
        {b"from": CHANNEL.encode(), b"n": b"1"}, {b"body": b"said"}, {}, {b"n": b"1"},
        {b"body": b"two"}, {b"n": b"3"}, {b"body": b"a"}, {b"body": b"b"},
    ]  # fmt: skip
    wait_until(lambda: host.stats()["handled"] == 7)
    assert all(entry[b"consumer_id"] == ID for entry in host.entries())


def test_what_a_callable_raises_makes_dead_letters_with_the_error(host: BridgeHost) -> None:
    code = """
import sys
from wakeq import Reject
def transform(message):
    match message.text():
        case "reject": raise Reject("not for us")
        case "exit": sys.exit(3)
        case "number": return 5
        case "own": return {"wakeq.key": "x"}
        case "list": return ["fine", 7]
        case "good": return "good"
    return message.json()["missing"]
"""
    host.configure(transform=host.code(code))
    daemon = host.start()
    host.wait_begun()
    bodies = ["{}", "reject", "exit", "number", "own", "list", "nonsense", "good"]
    host.publish(*bodies)
    host.wait_entries(1)
    wait_until(lambda: len(host.dead()) == 7, 60, f"{daemon.lines}")
    assert [entry[b"body"] for entry in host.entries()] == [b"good"]
    letters = {letter[b"body"].decode(): letter for letter in host.dead()}
    errors = {body: letter[b"wakeq.error"].decode() for body, letter in letters.items()}
    assert errors["{}"] == "KeyError: 'missing'"
    assert errors["reject"] == "Reject: not for us"
    assert errors["exit"] == "SystemExit: 3"
    assert errors["number"].startswith("TypeError: a transform returns a dict of fields, text")
    assert errors["own"].startswith("ValueError: a field must not begin with 'wakeq.'")
    assert errors["list"].startswith("TypeError: ")
    assert errors["nonsense"].startswith("JSONDecodeError: ")
    assert b"shop.py" in letters["{}"][b"wakeq.traceback"]
    assert b"wakeq.traceback" not in letters["reject"]
    for letter in letters.values():
        assert letter[b"wakeq.consumer"] == ID
        assert letter[b"wakeq.host"] == HOST.encode()
        assert letter[b"wakeq.channel"] == CHANNEL.encode()
        assert letter[b"wakeq.failed_at"].isdigit()
    assert host.stats() == {"handled": 8, "published": 1, "dead": 7}
    daemon.wait_log("messages became dead letters")


def test_a_callable_that_takes_too_long_has_failed(host: BridgeHost) -> None:
    code = """
import time
def transform(message):
    if message.text() == "slow":
        time.sleep(60)
    return message.body
"""
    host.configure(transform=host.code(code), timeout="2s")
    host.start()
    host.wait_begun()
    host.publish("slow", "quick")
    (entry,) = host.wait_entries(1)
    assert entry[b"body"] == b"quick"
    (letter,) = host.dead()
    assert letter[b"wakeq.error"] == b"TimedOut: took longer than timeout allows"


@pytest.mark.parametrize("path", ["nowhere:transform", "shop", "/nowhere.py:transform"])
def test_a_callable_that_cannot_be_found_is_a_wrong_configuration(
    host: BridgeHost, path: str
) -> None:
    host.configure(transform=path)
    daemon = host.launch()
    assert daemon.wait_exit() == 78
    assert "bridge clicks: transform" in daemon.lines[-1]


def test_an_async_callable_is_a_wrong_configuration(host: BridgeHost) -> None:
    host.configure(transform=host.code("async def transform(message): pass\n"))
    daemon = host.launch()
    assert daemon.wait_exit() == 78
    assert "must be a plain function" in daemon.lines[-1]


def test_a_program_makes_a_message_of_each_line(host: BridgeHost) -> None:
    script = """
read body
case $body in
    two) echo one; echo '{"n": 2}'; echo a note >&2 ;;
    none) ;;
    reject) exit 65 ;;
    fail) exit 7 ;;
    *) echo "$WAKEQ_CHANNEL ${WAKEQ_STREAM-unset}" ;;
esac
"""
    host.configure(exec_=[host.program(script)])
    daemon = host.start()
    host.wait_begun()
    host.publish("two\n", "none\n", "reject\n", "fail\n", "env\n")
    found = [
        {k: v for k, v in entry.items() if k != b"consumer_id"} for entry in host.wait_entries(3)
    ]
    assert found == [{b"body": b"one"}, {b"n": b"2"}, {b"body": f"{CHANNEL} unset".encode()}]
    errors = [letter[b"wakeq.error"] for letter in host.dead()]
    assert errors == [
        b"Reject: the program exited with 65, EX_DATAERR",
        b"ProgramFailed: the program exited with 7",
    ]
    daemon.wait_log("a note")


def test_a_program_that_takes_too_long_is_killed_with_all_it_started(host: BridgeHost) -> None:
    script = "read body; [ $body = slow ] || { echo $body; exit; }; sleep 60 & sleep 60\n"
    host.configure(exec_=[host.program(script)], timeout="5s")
    host.start()
    host.wait_begun()
    host.publish("slow\n", "quick\n")
    (entry,) = host.wait_entries(1)
    assert entry[b"body"] == b"quick"
    assert host.dead()[0][b"wakeq.error"] == b"TimedOut: took longer than timeout allows"


def test_waits_for_a_program_not_for_what_it_leaves_running(host: BridgeHost) -> None:
    pid = host.app_dir / "left"
    script = f"read body; echo $body; echo a note >&2; sleep 60 & echo $! >{pid}\n"
    host.configure(exec_=[host.program(script)])
    daemon = host.start()
    host.wait_begun()
    host.publish("one\n")
    try:
        (entry,) = host.wait_entries(1)
        assert entry[b"body"] == b"one"
        daemon.wait_log("a note")
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("size", [0, 1, 1_000_000])
def test_a_program_reads_as_much_of_the_message_as_it_likes(host: BridgeHost, size: int) -> None:
    host.configure(exec_=[host.program(f"head -c {size} | wc -c; head -c 300000 /dev/zero >&2\n")])
    host.start()
    host.wait_begun()
    host.publish("x" * 1_000_000)
    (entry,) = host.wait_entries(1)
    assert int(entry[b"body"]) == size


def test_a_program_ends_with_its_worker(host: BridgeHost) -> None:
    pid = host.app_dir / "pid"
    script = f"[ -e {pid} ] && exit; echo $$ >{pid}.new; mv {pid}.new {pid}; exec sleep 60\n"
    host.configure(exec_=[host.program(script)])
    daemon = host.start()
    host.wait_begun()
    host.publish("one\n")
    wait_until(pid.exists)
    os.kill(workers_of(daemon)[0], signal.SIGKILL)
    daemon.wait_log("a worker ended, starting another one")
    program = Path(f"/proc/{pid.read_text().strip()}/exe")
    wait_until(lambda: not program.exists(), 60, "the program has ended")
    wait_until(lambda: host.stats().get("handled") == 1)


def test_a_program_that_is_not_there_is_a_wrong_configuration(host: BridgeHost) -> None:
    host.configure(exec_=["/nowhere/shop"])
    daemon = host.launch()
    assert daemon.wait_exit() == 78
    assert "there is no program /nowhere/shop" in daemon.lines[-1]


def test_a_message_that_ends_its_worker_is_a_dead_letter_and_its_neighbours_are_not(
    host: BridgeHost,
) -> None:
    code = """
import os, signal
def transform(message):
    if message.text() == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    return message.body
"""
    host.configure(transform=host.code(code))
    daemon = host.start()
    host.wait_begun()
    host.publish(*["before"] * 20, "poison", *["after"] * 20)
    entries = host.wait_entries(40, 60)
    assert [entry[b"body"] for entry in entries] == [b"before"] * 20 + [b"after"] * 20
    (letter,) = host.dead()
    assert letter[b"body"] == b"poison"
    assert letter[b"wakeq.error"] == b"Crashed: the worker did not survive it"
    # Once among others, then three times alone.
    daemon.wait_log("a worker ended, starting another one", 4)


def test_a_worker_that_is_killed_loses_and_doubles_nothing(host: BridgeHost) -> None:
    host.configure(workers=2)
    daemon = host.start(workers=2)
    host.wait_begun()
    host.burst(60_000)
    for times in range(1, 4):
        os.kill(workers_of(daemon)[0], signal.SIGKILL)
        daemon.wait_log("a worker ended, starting another one", times)
        wait_until(lambda: len(workers_of(daemon)) == 2)
    host.wait_entries(60_000, 60)
    assert host.numbers() == list(range(60_000))
    assert daemon.stop() == 0


def test_the_only_message_is_given_again_to_the_worker_that_died_with_it(host: BridgeHost) -> None:
    code = """
import os
def transform(message):
    try:
        os.open(__file__ + ".died", os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return message.body
    os._exit(1)
"""
    host.configure(transform=host.code(code), workers=2)
    daemon = host.start(workers=2)
    host.wait_begun()
    host.publish("once")
    host.wait_entries(1)
    assert daemon.stop() == 0


@pytest.mark.parametrize("own_session", [False, True])
def test_the_end_of_a_worker_is_known_although_what_it_forked_lives_on(
    host: BridgeHost, own_session: bool
) -> None:
    code = f"""
import os, signal
def transform(message):
    if message.text() == "fork" and not (child := os.fork()):
        if {own_session}:
            os.setsid()
        with open(__file__ + ".child", "w") as file:
            file.write(str(os.getpid()) + "\\n")
        while True:
            signal.pause()
    return message.body
"""
    host.configure(transform=host.code(code))
    daemon = host.start()
    host.wait_begun()
    host.publish("fork")
    host.wait_entries(1)
    path = host.app_dir / "shop.py.child"
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    child = int(path.read_text())
    with watched(child) as end:
        (worker,) = workers_of(daemon)
        os.kill(worker, signal.SIGKILL)
        daemon.wait_log("a worker ended, starting another one")
        host.publish("next")
        assert [entry[b"body"] for entry in host.wait_entries(2)] == [b"fork", b"next"]
        if own_session:
            signal.pidfd_send_signal(end, signal.SIGKILL)
        assert select.select([end], [], [], 60)[0], "what is of its group ends with it"
    assert daemon.stop() == 0


def test_a_message_is_handled_by_whichever_worker_has_time(host: BridgeHost) -> None:
    code = """
import os, time
def transform(message):
    open(f"{__file__}.{message.text()}", "w").close()
    while not os.path.exists(__file__ + ".gate"):
        time.sleep(0.01)
    return message.body
"""
    host.configure(transform=host.code(code), workers=4)
    host.start(workers=4)
    host.wait_begun()
    for number in range(4):
        host.publish(f"{number}")
        wait_until((host.app_dir / f"shop.py.{number}").exists)
    (host.app_dir / "shop.py.gate").touch()
    by_worker = [entry[b"consumer_id"] for entry in host.wait_entries(4)]
    assert len(set(by_worker)) == 4


def test_what_a_callable_prints_is_in_the_log(host: BridgeHost) -> None:
    host.configure(transform=host.code("def transform(m):\n    print('seen', m.text())\n"))
    daemon = host.start()
    host.wait_begun()
    host.publish("it")
    daemon.wait_log("seen it")


@pytest.mark.parametrize("source", ["channel", "list"])
def test_dead_letters_can_be_tried_again(host: BridgeHost, source: str) -> None:
    code = """
import os
def transform(message):
    if not os.path.exists(__file__ + ".mended"):
        raise ValueError("not yet")
    return {"said": message.body, "from": message.channel}
"""
    path = host.code(code)
    host.configure(transform=path, lease="1s", **{"list_" if source == "list" else source: "in"})
    daemon = host.start()
    bodies = [f"{n}" for n in range(5)]
    if source == "list":
        host.redis.lpush("in", *bodies)
    else:
        host.wait_begun(channel="in")
        host.publish(*bodies, channel="in")
    wait_until(lambda: len(host.dead()) == 5, 60, f"{daemon.lines}")
    (host.app_dir / "shop.py.mended").touch()
    group = keys.bridge_group("clicks")
    letters = [entry_id for entry_id, _ in host.redis.xrange(keys.dead(STREAM, group))]
    for at in range(0, 5, 2):
        Script("redrive").call(
            host.connection(), [keys.dead(STREAM, group), keys.retry(STREAM, group)],
            letters[at : at + 2],
        )  # fmt: skip
    entries = host.wait_entries(5)
    assert sorted(entry[b"said"].decode() for entry in entries) == bodies
    assert {entry[b"from"] for entry in entries} == {b"in"}
    assert host.dead() == []
    wait_until(lambda: host.redis.xlen(keys.retry(STREAM, group)) == 0)


def test_what_a_transform_makes_too_much_of_is_a_dead_letter_and_holds_nothing_up(
    host: BridgeHost,
) -> None:
    code = """
def transform(message):
    return ["x"] * int(message.text())
"""
    host.configure(transform=host.code(code))
    host.start()
    host.wait_begun()
    # Together they are more than a request may have; the last of them is so alone.
    host.publish(*["100000"] * 12, "200000", "1")
    wait_until(lambda: host.redis.xlen(STREAM) == 1_200_001, 300)
    assert host.redis.xlen(STREAM) == 1_200_001
    assert host.dead()[0][b"wakeq.error"].startswith(b"TooMuch: ")
    assert host.stats() == {"handled": 14, "published": 1_200_001, "dead": 1}
