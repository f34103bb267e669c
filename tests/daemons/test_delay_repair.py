"""Repairs of failed messages by wakeq-delay: callables, programs, and what becomes of failures."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import NotifySocket
from consumer_host import ConsumerHost
from delay_host import DelayHost
from redis_servers import RedisServer, wait_until
from wakeq import keys

RETRY, DEAD = keys.retry("orders", "g"), keys.dead("orders", "g")
REPAIRS = keys.repairs("orders")


@pytest.fixture
def host(
    short_dir: Path, own_redis: RedisServer, notify_socket: NotifySocket
) -> Iterator[DelayHost]:
    host = DelayHost(short_dir, own_redis)
    host.env |= notify_socket.env
    yield host
    host.close()


def test_a_callable_corrects_fields(host: DelayHost) -> None:
    path = host.code(
        "def repair(message):\n"
        "    assert message.stream == 'orders' and message.group == 'g'\n"
        "    return {'body': message.body.upper() + b' ' + message.error.encode(),\n"
        "            'told': f'{message.id} {message.attempt} {message.failures}'}\n"
    )
    host.fail(7, "text")
    host.start("--repair", path)
    wait_until(lambda: host.entries(RETRY))
    assert host.entries(RETRY) == [
        {
            b"wakeq.attempt": b"3",
            b"wakeq.first_id": b"7-0",
            b"wakeq.error": b"ValueError: no",
            b"wakeq.failed_at": b"5",
            b"wakeq.first_failed_at": b"4",
            b"body": b"TEXT ValueError: no",
            b"told": b"7-0 3 2",
        }
    ]
    assert host.left() == 0


def test_a_callable_may_leave_a_message_as_it_is(host: DelayHost) -> None:
    path = host.code("def repair(message):\n    print('looked at', message.id)\n")
    host.fail(7)
    daemon = host.start("--repair", path)
    wait_until(lambda: host.entries(RETRY))
    assert host.entries(RETRY)[0][b"body"] == b"x"
    daemon.wait_log("looked at 7-0")


def test_only_failed_messages_are_repaired(host: DelayHost, notify_socket: NotifySocket) -> None:
    path = host.code("def repair(message):\n    return {'body': 'changed'}\n")
    host.publish(delay=0.05)
    host.fail(7)
    host.start("--repair", path)
    wait_until(lambda: host.entries() and host.entries(RETRY))
    assert host.entries()[0][b"body"] == b"x"
    assert host.entries(RETRY)[0][b"body"] == b"changed"
    notify_socket.wait_for("READY=1")
    wait_until(lambda: any("1 repaired, 0 could not be" in m for m in notify_socket.messages))


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("from wakeq import Reject\n    raise Reject('never')", "Reject: never"),
        ("raise KeyError('x')", "KeyError: 'x'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("return 7", "TypeError: a repair returns None or a dict of fields, not 7"),
        ("return {'wakeq.key': 'x'}",
         "ValueError: a field must not begin with 'wakeq.': 'wakeq.key'"),
        ("import os; os._exit(1)", "Crashed: the repair ended its own process"),
    ],
    ids=["Reject", "error", "exit", "no dict", "ours", "crash"],
)  # fmt: skip
def test_what_cannot_be_repaired_is_a_dead_letter_with_both_errors(
    host: DelayHost, code: str, error: str
) -> None:
    path = host.code(f"def repair(message):\n    if message.body == b'fine':\n"
                     f"        return None\n    {code}\n")  # fmt: skip
    host.fail(7, "bad", due=1)
    host.fail(8, "fine", due=2)
    daemon = host.start("--repair", path)
    wait_until(lambda: host.entries(DEAD) and host.entries(RETRY))
    (letter,) = host.entries(DEAD)
    assert int(letter.pop(b"wakeq.failed_at")) > 1_000_000
    assert (b"wakeq.traceback" in letter) == (not error.startswith(("Reject", "Crashed")))
    letter.pop(b"wakeq.traceback", None)
    assert letter == {
        b"wakeq.attempt": b"2",
        b"wakeq.first_id": b"7-0",
        b"wakeq.error": b"ValueError: no",
        b"wakeq.repair_error": error.encode(),
        b"wakeq.first_failed_at": b"4",
        b"wakeq.consumer": b"wakeq-delay",
        b"wakeq.host": os.uname().nodename.encode(),
        b"body": b"bad",
    }
    assert host.entries(RETRY)[0][b"wakeq.first_id"] == b"8-0"
    assert host.redis.hget(keys.stats("orders", "g"), "dead") == b"1"
    daemon.wait_log("message could not be repaired")
    assert daemon.count("message_id=7-0") == 1


def test_a_repair_that_takes_too_long_has_failed(host: DelayHost) -> None:
    path = host.code(
        "import time\ndef repair(message):\n    time.sleep(60 if message.body == b'slow' else 0)\n"
    )
    host.fail(7, "slow", due=1)
    # Several, because a busy machine may not run the repair of one for as long.
    for number in range(8, 18):
        host.fail(number, due=2)
    host.start("--repair", path, "--repair-timeout", "1s")
    wait_until(lambda: host.entries(DEAD) and host.entries(RETRY))
    letter = host.entries(DEAD)[0]
    assert letter[b"wakeq.first_id"] == b"7-0"
    assert letter[b"wakeq.repair_error"] == b"TimedOut: took longer than timeout allows"


def test_a_repair_that_hangs_holds_up_no_other_message(host: DelayHost) -> None:
    path = host.code("import time\ndef repair(message):\n    time.sleep(60)\n")
    for number in range(1, 300):
        host.fail(number)
    host.start("--repair", path)
    wait_until(lambda: host.redis.zcard(REPAIRS) == 299)
    host.publish(delay=0.05)
    wait_until(host.entries)
    assert host.redis.zcard(REPAIRS) == 299


# -- programs --------------------------------------------------------------------------------


def test_a_program_gives_the_new_body(host: DelayHost) -> None:
    path = host.program(
        'echo "why: $WAKEQ_ERROR" >&2\n'
        'echo "$(cat)/$WAKEQ_FIELD_N/$WAKEQ_MESSAGE_ID/$WAKEQ_ATTEMPT/$WAKEQ_STREAM/$WAKEQ_GROUP"\n'
    )
    host.redis.sadd(keys.STREAMS, "orders")
    host.put("7-0@g", 1, "g", "7-0", "wakeq.attempt", "2", "wakeq.error", "E: no",
             "n", "5", "body", "text")  # fmt: skip
    daemon = host.start("--repair-exec", path)
    wait_until(lambda: host.entries(RETRY))
    (fields,) = host.entries(RETRY)
    assert fields[b"body"] == b"text/5/7-0/2/orders/g\n"
    assert fields[b"n"] == b"5"
    daemon.wait_log("why: E: no")
    assert daemon.count("message_id=7-0") == 1


def test_a_program_that_prints_nothing_leaves_the_message_as_it_is(host: DelayHost) -> None:
    host.fail(7)
    host.start("--repair-exec", host.program("cat >/dev/null\n"))
    wait_until(lambda: host.entries(RETRY))
    assert host.entries(RETRY)[0][b"body"] == b"x"


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("exit 3", b"ProgramFailed: the program exited with 3"),
        ("exit 65", b"Reject: the program exited with 65, EX_DATAERR"),
        ("kill -SEGV $$", b"ProgramFailed: the program was ended by SIGSEGV"),
    ],
)
def test_a_program_that_fails_makes_a_dead_letter(
    host: DelayHost, script: str, error: bytes
) -> None:
    host.fail(7)
    host.start("--repair-exec", host.program(script))
    wait_until(lambda: host.entries(DEAD))
    assert host.entries(DEAD)[0][b"wakeq.repair_error"] == error


def test_a_program_that_takes_too_long_is_ended_with_all_it_started(
    host: DelayHost, short_dir: Path
) -> None:
    fifo = short_dir / "fifo"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    host.fail(7)
    # It holds the pipe open for as long as it lives.
    script = f"sleep 600 >{fifo} &\nwait\n"
    host.start("--repair-exec", host.program(script), "--repair-timeout", "2s")
    wait_until(lambda: host.entries(DEAD))
    with open(reading, "rb", buffering=0) as pipe:
        # Nothing yet is None, nobody any more is an end.
        wait_until(lambda: pipe.read(1) == b"")


# -- what is wrong with the repair -----------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--repair=nowhere", "[delay] repair 'nowhere' must be package.module:callable"),
        ("--repair=no_such:thing", "[delay] repair 'no_such:thing' cannot be imported:"
         " ModuleNotFoundError: No module named 'no_such'"),
        ("--repair=os:sep", "[delay] repair 'os:sep' is '/', which cannot be called"),
        ("--repair-exec=/no/such", "[delay] repair_exec: there is no program /no/such"),
    ],
)  # fmt: skip
def test_a_repair_that_cannot_be_is_a_wrong_configuration(
    host: DelayHost, notify_socket: NotifySocket, option: str, text: str
) -> None:
    daemon = host.start(option)
    assert daemon.wait_exit() == 78
    (line,) = daemon.lines
    assert text in line
    assert "READY=1" not in notify_socket.messages


def test_an_async_repair_is_a_wrong_configuration(host: DelayHost) -> None:
    daemon = host.start("--repair", host.code("async def repair(message): pass\n"))
    assert daemon.wait_exit() == 78
    assert "must be a plain function" in daemon.lines[-1]


def test_a_repair_that_ends_its_process_when_loaded_is_a_wrong_configuration(
    host: DelayHost,
) -> None:
    daemon = host.start("--repair", host.code("import os\nos._exit(0)\n"))
    assert daemon.wait_exit() == 78
    assert "ends its own process" in daemon.lines[-1]


def test_two_repairs_are_a_wrong_configuration(host: DelayHost) -> None:
    host.configure('[delay]\nrepair = "a:b"\nrepair_exec = ["/bin/cat"]\n')
    daemon = host.start()
    assert daemon.wait_exit() == 78
    assert "[delay] has both repair and repair_exec" in daemon.lines[-1]


def test_a_reload_takes_up_another_repair_if_that_works(
    host: DelayHost, notify_socket: NotifySocket
) -> None:
    first = host.code("def repair(message):\n    return {'by': 'first'}\n", "first.py")
    second = host.code("def repair(message):\n    return {'by': 'second'}\n", "second.py")
    host.configure(f'[delay]\nrepair = "{first}"\n')
    daemon = host.start()
    notify_socket.wait_for("READY=1")

    def reload(text: str, told: str) -> None:
        before = daemon.count(told)
        host.configure(text)
        os.kill(daemon.process.pid, signal.SIGHUP)
        daemon.wait_log(told, before + 1)

    wrong = '[delay]\nrepair = "no_such:thing"\n'
    reload(wrong, "the repair before goes on, this one cannot be used")
    daemon.wait_log("configuration was read again")
    for number in (1, 2, 3):
        host.fail(number)
        host.ring()
        wait_until(lambda number=number: len(host.entries(RETRY)) == number)
    reload(wrong, "the repair before goes on, this one cannot be used")
    assert {fields[b"by"] for fields in host.entries(RETRY)} == {b"first"}
    reload(f'[delay]\nrepair = "{second}"\n', "configuration was read again")
    # The new one is loaded beside, while the old one goes on.
    numbers = itertools.count(4)

    def by_second() -> bool:
        host.fail(next(numbers))
        host.ring()
        return any(fields.get(b"by") == b"second" for fields in host.entries(RETRY))

    wait_until(by_second)
    assert host.entries(RETRY)[0][b"by"] == b"first"
    reload("", "configuration was read again")
    wait_until(lambda: not host.left())
    before = len(host.entries(RETRY))
    host.fail(next(numbers))
    host.ring()
    wait_until(lambda: len(host.entries(RETRY)) == before + 1)
    assert b"by" not in host.entries(RETRY)[-1]


# -- it dies, or is stopped ------------------------------------------------------------------


def test_killed_in_the_middle_of_a_repair_the_message_is_repaired_again(host: DelayHost) -> None:
    path = host.code("def repair(message):\n    return {'by': 'repair'}\n")
    host.fail(7)
    options = ("--repair", path, "--repair-timeout", "500ms")
    daemon = host.start(*options, WAKEQ_FAILPOINT="handed_out:kill")
    assert daemon.wait_exit() == -signal.SIGKILL
    assert host.left() == 1
    daemon = host.start(*options, WAKEQ_FAILPOINT="repaired:kill")
    assert daemon.wait_exit() == -signal.SIGKILL
    assert (host.left(), host.entries(RETRY)) == (1, [])
    host.start("--repair", path)
    wait_until(lambda: host.entries(RETRY))
    assert (host.left(), len(host.entries(RETRY))) == (0, 1)


def test_two_of_them_repair_each_message_once(host: DelayHost) -> None:
    path = host.code("def repair(message):\n    return {'by': 'repair'}\n")
    for number in range(1, 301):
        host.fail(number)
    # Leases that run out at once: some are handed out twice.
    options = ("--repair", path, "--repair-timeout", "100ms")
    for _ in range(2):
        host.start(*options)
    wait_until(lambda: not host.left(), 300)
    found = [fields[b"wakeq.first_id"] for fields in host.entries(RETRY) + host.entries(DEAD)]
    assert len(found) == len(set(found)) == 300


def test_a_repair_is_finished_before_a_stop(host: DelayHost, short_dir: Path) -> None:
    fifo = short_dir / "fifo"
    os.mkfifo(fifo)
    path = host.code(f"def repair(message):\n    return {{'body': open({str(fifo)!r}).read()}}\n")
    host.fail(7)
    daemon = host.start("--repair", path)
    with open(fifo, "w") as pipe:
        daemon.process.terminate()
        wait_until(lambda: host.left() == 1)
        pipe.write("late")
    assert daemon.wait_exit() == 0
    assert host.entries(RETRY)[0][b"body"] == b"late"


def test_a_second_stop_leaves_the_message_to_others_at_once(
    host: DelayHost, notify_socket: NotifySocket
) -> None:
    path = host.code("import time\ndef repair(message):\n    time.sleep(60)\n")
    host.fail(7, due=5)
    daemon = host.start("--repair", path)
    wait_until(lambda: (host.redis.zscore(REPAIRS, "7-0@g") or 0) > 5)
    daemon.process.terminate()
    notify_socket.wait_for("STOPPING=1")
    daemon.process.terminate()
    assert daemon.wait_exit() == 0
    assert host.redis.zscore(REPAIRS, "7-0@g") == 5


@pytest.mark.parametrize("first", ["first", "ends its own process"])
def test_without_redis_a_repaired_message_is_repaired_again(
    host: DelayHost, short_dir: Path, notify_socket: NotifySocket, first: str
) -> None:
    fifo = short_dir / "fifo"
    os.mkfifo(fifo)
    code = f"import os\ndef repair(message):\n    text = open({str(fifo)!r}).read()\n"
    code += "    if text == 'ends its own process':\n        os._exit(3)\n"
    path = host.code(code + "    return {'body': text}\n")
    host.fail(7)
    daemon = host.start("--repair", path)
    notify_socket.wait_for("READY=1")
    with open(fifo, "w") as pipe:
        host.redis.slaveof("127.0.0.1", 1)
        pipe.write(first)
    daemon.wait_log("Redis was lost")
    host.redis.slaveof()
    # It may be handed out again, as if the time that a repair may take were over.
    host.redis.zadd(REPAIRS, {"7-0@g": 1})
    host.ring()
    with open(fifo, "w") as pipe:
        pipe.write("second")
    wait_until(lambda: host.entries(RETRY))
    assert [fields[b"body"] for fields in host.entries(RETRY)] == [b"second"]


# -- with a consumer -------------------------------------------------------------------------


def test_a_delayed_message_that_fails_is_repaired_and_handled_under_the_id_it_was_published_with(
    host: DelayHost, short_dir: Path, own_redis: RedisServer
) -> None:
    directory = short_dir / "c"
    directory.mkdir()
    consumers = ConsumerHost(directory, own_redis)
    path = consumers.handler(
        "def handle(message):\n"
        "    record(message.id, message.attempt, message.text())\n"
        "    message.json()\n"
    )
    consumers.configure(handler=path, backoff={"base": "1ms", "factor": 1, "cap": "1ms"})
    repair = host.code(
        "import json\ndef repair(message):\n    return {'body': json.dumps([message.error[:15]])}\n"
    )
    try:
        host.start("--repair", repair)
        message_id = host.publish(body="no JSON", delay=0.2)
        consumers.start()
        assert consumers.wait_records(2) == [
            f"{message_id} 1 no JSON",
            f'{message_id} 2 ["JSONDecodeError"]',
        ]
        wait_until(lambda: consumers.pending() == 0 and host.left() == 0)
        # It is in its handler's hands still.
        wait_until(lambda: host.redis.xlen(keys.retry("orders", "orders")) == 0)
    finally:
        consumers.close()
