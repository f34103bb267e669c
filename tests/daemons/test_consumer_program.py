"""wakeq-consumer with programs as handlers: what they get, and what their end means."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import NotifySocket
from consumer_host import ConsumerHost
from redis_servers import RedisServer, wait_until

PYTHON = "/usr/bin/python3"
# Enough for a shell on a busy machine to begin, and to say how it takes signals.
TIMEOUT = "4s"


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[ConsumerHost]:
    host = ConsumerHost(short_dir, redis)
    yield host
    host.close()


def wait_handed_back(host: ConsumerHost) -> None:
    """Wait until something is pending that may be claimed at once."""
    wait_until(lambda: host.redis.xpending_range("orders", "orders", "-", "+", 9, idle=9**9))


def alive(pid: int) -> bool:
    """Tell whether a process lives; one that has ended and is not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "body",
    [b"", b"text\n", bytes(range(256)), b"\n", os.urandom(5_000_000)],
    ids=["empty", "text", "binary", "a line's end", "5 MB"],
)
def test_gives_the_body_on_standard_input(host: ConsumerHost, body: bytes) -> None:
    host.configure(exec_=[host.program('sha256sum >> "$RECORD"')])
    host.publish(body)
    host.start()
    host.wait_done()
    assert host.records == [f"{hashlib.sha256(body).hexdigest()}  -"]


def test_a_program_need_not_read_its_body(host: ConsumerHost) -> None:
    host.configure(exec_=[host.program("exit 0")])
    host.publish(b"x" * 5_000_000)
    host.start()
    host.wait_done()


def test_a_program_gets_its_arguments(host: ConsumerHost) -> None:
    host.configure(exec_=[host.program('echo "$1|$2|$#" >> "$RECORD"'), "a b", ""])
    host.publish("x")
    host.start()
    host.wait_done()
    assert host.records == ["a b||2"]


SHOW = """
import os
with open(os.environ["RECORD"], "a") as file:
    for name in sorted(os.environb):
        if name.startswith(b"WAKEQ_"):
            file.write(f"{name!r} {os.environb[name][:30]!r} {len(os.environb[name])}\\n")
"""


def shown(host: ConsumerHost, fields: dict[bytes, bytes]) -> dict[bytes, tuple[bytes, int]]:
    """Return the variables of ours that a program finds: value (begin) and length."""
    host.configure(exec_=[host.program(SHOW, shell=PYTHON)])
    host.redis.xadd("orders", fields)
    host.start()
    host.wait_done()
    variables = {}
    for line in host.records:
        name, rest = line.split(" ", 1)
        value, size = rest.rsplit(" ", 1)
        variables[eval(name)] = (eval(value), int(size))
    return variables


def test_gives_fields_and_id_in_the_environment(host: ConsumerHost) -> None:
    seen = shown(host, {b"body": b"x", b"colour": b"red", b"price-EUR": b"7", b"wakeq.key": b"k"})
    (entry_id,) = [entry_id for entry_id, _ in host.redis.xrange("orders")]
    assert seen[b"WAKEQ_FIELD_COLOUR"][0] == b"red"
    assert seen[b"WAKEQ_FIELD_PRICE_EUR"][0] == b"7"
    assert seen[b"WAKEQ_MESSAGE_ID"][0] == entry_id
    assert seen[b"WAKEQ_ATTEMPT"][0] == b"1"
    assert seen[b"WAKEQ_STREAM"][0] == b"orders"
    assert seen[b"WAKEQ_GROUP"][0] == b"orders"
    assert not [name for name in seen if name.startswith(b"WAKEQ_FIELD_") and b"KEY" in name]
    assert b"WAKEQ_FIELD_BODY" not in seen
    assert b"WAKEQ_FIELDS_LEFT_OUT" not in seen


def test_gives_fields_of_any_bytes_that_the_environment_takes(host: ConsumerHost) -> None:
    seen = shown(host, {b"binary": b"\xff\x01\n=", b"\xff=": b"odd name", b"": b"no name"})
    assert seen[b"WAKEQ_FIELD_BINARY"][0] == b"\xff\x01\n="
    assert seen[b"WAKEQ_FIELD___"][0] == b"odd name"
    assert seen[b"WAKEQ_FIELD_"][0] == b"no name"


def test_says_which_fields_the_environment_does_not_take(host: ConsumerHost) -> None:
    longest = 128 * 1024 - 1 - len("WAKEQ_FIELD_LONGEST=")
    seen = shown(
        host,
        {
            b"nul": b"a\0b",
            b"nul\0name": b"good",
            b"longest": b"x" * longest,
            b"longer_": b"x" * (longest + 1),
            b"n" * 200_000: b"",
            b"good": b"yes",
        },
    )
    assert seen[b"WAKEQ_FIELD_GOOD"][0] == b"yes"
    assert seen[b"WAKEQ_FIELD_NUL_NAME"][0] == b"good"
    assert seen[b"WAKEQ_FIELD_LONGEST"][1] >= longest - 1
    left_out, size = seen[b"WAKEQ_FIELDS_LEFT_OUT"]
    assert left_out.startswith(b"nul longer_ nnn")
    assert size < 100_000
    assert b"WAKEQ_FIELD_LONGER_" not in seen


def test_a_message_that_no_program_can_be_given_fails_alone(host: ConsumerHost) -> None:
    host.configure(exec_=[host.program('echo "$WAKEQ_FIELD_A" >> "$RECORD"')])
    host.redis.xadd("orders", {f"f{n}": b"x" * 120_000 for n in range(60)})
    host.redis.xadd("orders", {"a": "next"})
    consumer = host.start()
    assert host.wait_records(1) == ["next"]
    consumer.wait_log("Argument list too long")
    wait_until(lambda: host.stats().get("handled") == "1")
    host.wait_failed(1)
    assert host.pending() == 0
    (failed,) = host.delayed()
    assert len(failed.fields[b"f59"]) == 120_000


def test_a_program_does_not_get_what_systemd_gave_the_consumer(
    host: ConsumerHost, notify_socket: NotifySocket
) -> None:
    script = 'env >> "$RECORD"; for fd in /proc/self/fd/*; do readlink $fd; done >> "$RECORD"; :'
    host.configure(exec_=[host.program(script)])
    listener = host.wake_socket()
    host.connect()
    host.publish("x")
    host.start(wake=listener, **notify_socket.env, WATCHDOG_USEC="9000000", WATCHDOG_PID="1")
    host.wait_done()
    names = {line.partition("=")[0] for line in host.records}
    assert not names & {
        *("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET"),
        *("WATCHDOG_USEC", "WATCHDOG_PID", "WAKEQ_WAKE_FDS"),
    }
    assert "WAKEQ_MESSAGE_ID" in names
    assert not [line for line in host.records if line.startswith("socket:")]


# -- how it ends -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 65", "Reject: the program exited with 65, EX_DATAERR"),
        ("exit 75", "Retry: the program exited with 75, EX_TEMPFAIL"),
        ("exit 3", "ProgramFailed: the program exited with 3"),
        ("kill -SEGV $$", "ProgramFailed: the program was ended by SIGSEGV"),
        ("kill -40 $$", "ProgramFailed: the program was ended by signal 40"),
    ],
)
def test_a_program_that_does_not_exit_with_0_has_failed(
    host: ConsumerHost, script: str, said: str
) -> None:
    host.configure(exec_=[host.program(f"grep -q bad || exit 0\n{script}")])
    bad, _ = host.publish("bad", "good")
    consumer = host.start()
    consumer.wait_log(said)
    wait_until(lambda: host.stats().get("handled") == "1")
    host.wait_failed(1)
    host.wait_pending(0)
    is_dead = said.startswith("Reject")
    words = "message is dead" if is_dead else "message failed"
    (line,) = [line for line in consumer.lines if words in line]
    assert bad.decode() in line
    fields = [*host.dead(), *(message.fields for message in host.delayed())]
    assert [each[b"wakeq.error"].decode() for each in fields] == [said]
    assert len(host.dead()) == is_dead
    assert fields[0][b"wakeq.first_id"] == bad
    assert b"wakeq.traceback" not in fields[0]
    assert consumer.stop() == 0
    assert consumer.count("Traceback") == 0


def test_logs_what_a_program_prints_with_the_id_of_its_message(host: ConsumerHost) -> None:
    host.configure(exec_=[host.program(r"echo out; echo err >&2; printf 'bad \377\nno end'")])
    (entry_id,) = host.publish("x")
    consumer = host.start()
    host.wait_done()
    consumer.wait_log("no end")
    for text in ("out", "err", "bad \\xff", "no end"):
        (line,) = [line for line in consumer.lines if f"] {text} " in line]
        assert f"message_id={entry_id.decode()}" in line
        assert "stream=orders" in line
    assert host.stats()["handled"] == "1"


def test_logs_a_line_of_any_length_in_pieces(host: ConsumerHost) -> None:
    host.configure(exec_=[host.program("head -c 3000000 /dev/zero | tr '\\0' y")])
    host.publish("x")
    consumer = host.start()
    host.wait_done()
    consumer.stop()
    assert sum(line.count("y") for line in consumer.lines) >= 3_000_000
    assert max(map(len, consumer.lines)) < 200_000


def test_does_not_wait_for_what_a_program_left_running(host: ConsumerHost) -> None:
    # It has the program's output, and would hold it open for an hour.
    host.configure(exec_=[host.program('sleep 3600 & echo $! >> "$RECORD"')])
    host.publish("x", "y")
    host.start()
    host.wait_done()
    for pid in host.records:
        assert alive(int(pid)), "it was left running"
        os.kill(int(pid), signal.SIGKILL)


def test_a_program_that_takes_too_long_is_terminated(host: ConsumerHost) -> None:
    script = """trap 'echo terminated >> "$RECORD"; kill $!; exit 0' TERM
echo begun >> "$RECORD"; sleep 3600 & wait"""
    host.configure(exec_=[host.program(script)], timeout=TIMEOUT)
    host.publish("x")
    consumer = host.start()
    consumer.wait_log("TimedOut: took longer than timeout allows")
    assert host.records == ["begun", "terminated"]
    host.wait_failed(1)
    assert host.pending() == 0
    assert len(host.delayed()) == 1
    assert consumer.stop() == 0


def test_nothing_that_a_program_started_outlives_its_time_out(host: ConsumerHost) -> None:
    script = """(trap '' TERM; sleep 3600) & echo $! >> "$RECORD"
sleep 3600 & echo $! >> "$RECORD"
wait"""
    host.configure(exec_=[host.program(script)], timeout=TIMEOUT)
    host.publish("x")
    consumer = host.start()
    children = [int(pid) for pid in host.wait_records(2)]
    consumer.wait_log("took longer than timeout allows")
    wait_until(lambda: not any(map(alive, children)))


def test_a_program_that_does_not_obey_is_killed(host: ConsumerHost) -> None:
    script = """trap '' TERM; echo $$ >> "$RECORD"
while :; do sleep 0.1; done"""
    host.configure(exec_=[host.program(script)], timeout=TIMEOUT)
    host.publish("x")
    consumer = host.start()
    (pid,) = host.wait_records(1)
    consumer.wait_log("took longer than timeout allows")
    assert not alive(int(pid))


def test_programs_run_beside_one_another(host: ConsumerHost) -> None:
    script = """touch "$RECORD.$WAKEQ_MESSAGE_ID"
until [ $(ls "$RECORD".* | wc -l) = 4 ]; do sleep 0.02; done"""
    host.configure(exec_=[host.program(script)], concurrency=4)
    host.publish(*range(4))
    host.start()
    host.wait_done()


# -- stopping ------------------------------------------------------------------------------------


def test_a_program_may_finish_its_message_at_a_stop(host: ConsumerHost) -> None:
    script = """echo a >> "$RECORD"
until [ -e "$RECORD.go" ]; do sleep 0.02; done
echo b >> "$RECORD"
"""
    host.configure(exec_=[host.program(script)])
    host.publish("x", "y", "z")
    consumer = host.start()
    host.wait_records(1)
    host.wait_pending(2)
    consumer.terminate()
    wait_handed_back(host)
    Path(f"{host.env['RECORD']}.go").touch()
    assert consumer.wait_exit() == 0
    assert host.records == ["a", "b"]
    assert host.stats()["handled"] == "1"


@pytest.mark.parametrize("how", ["a second signal", "drain_timeout"])
def test_a_program_is_killed_when_a_stop_must_be_at_once(host: ConsumerHost, how: str) -> None:
    script = """trap '' TERM; sleep 3600 & echo $$ >> "$RECORD"; echo $! >> "$RECORD"; wait"""
    limit = "300ms" if how == "drain_timeout" else "1h"
    host.configure(exec_=[host.program(script)], drain_timeout=limit)
    host.publish("x", "y")
    consumer = host.start()
    pids = [int(pid) for pid in host.wait_records(2)]
    host.wait_pending(2)
    consumer.terminate()
    if how == "a second signal":
        wait_handed_back(host)
        consumer.terminate()
    assert consumer.wait_exit() == 0
    wait_until(lambda: not any(map(alive, pids)))
    assert host.pending() == 2
    assert host.stats().get("failed") is None
    assert "handed_back=2" in consumer.output


# -- what is refused ---------------------------------------------------------------------------


def test_says_what_is_wrong_with_a_program(host: ConsumerHost) -> None:
    path = host.program("exit 0")
    os.chmod(path, 0o644)
    for exec_, said in [
        ("/nowhere/program", "exec: there is no program /nowhere/program"),
        ("/etc", "exec: /etc is not executable"),
        (path, f"exec: {path} is not executable"),
    ]:
        host.configure(exec_=[exec_])
        consumer = host.start()
        assert consumer.wait_exit() == 78
        assert said in consumer.output
        assert len(consumer.lines) == 1


def test_a_program_that_cannot_be_run_fails_its_message(host: ConsumerHost) -> None:
    path = host.program("exit 0")
    host.configure(exec_=[path])
    host.publish("x")
    Path(path).write_text("#!/nowhere/interpreter\n")
    consumer = host.start()
    consumer.wait_log("No such file or directory")
    wait_until(lambda: host.stats().get("failed") == "1")
    assert consumer.stop() == 0
