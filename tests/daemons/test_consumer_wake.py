"""The wake socket of a consumer: who connects wakes it, and learns when it sleeps again."""

from __future__ import annotations

import json
import select
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consumer_host import ConsumerHost, ConsumerProcess
from redis_servers import RedisServer, wait_until

RECORD = "def handle(message): record(message.text())\n"


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[ConsumerHost]:
    host = ConsumerHost(short_dir, redis)
    host.configure(handler=host.handler(RECORD))
    yield host
    host.close()


def ask(lease: socket.socket) -> dict[str, Any]:
    """Return the answer to `status`."""
    lease.sendall(b"status\n")
    answer = b""
    while not answer.endswith(b"\n"):
        chunk = lease.recv(4096)
        assert chunk, "closed instead of an answer"
        answer += chunk
    seen = json.loads(answer)
    assert isinstance(seen, dict)
    return seen


def ended(lease: socket.socket) -> bool:
    """Tell whether the consumer has closed a connection."""
    readable, _, _ = select.select([lease], [], [], 0)
    return bool(readable) and lease.recv(4096, socket.MSG_PEEK) == b""


def activate(host: ConsumerHost, *options: str) -> ConsumerProcess:
    """Have systemd-socket-activate start a consumer when someone connects."""
    (host.runtime_dir / "consumer").mkdir(exist_ok=True)
    path = host.socket_path()
    environment = [f"--setenv={name}={value}" for name, value in host.env.items()]
    command = ["systemd-socket-activate", "-l", str(path), "--fdname=wake", *environment]
    consumer = host.run([*command, *host.command("orders", *options)])
    # Its file is there a moment before it listens.
    consumer.wait_log("Listening on")
    return consumer


def test_is_started_by_a_connection_and_keeps_it_until_it_sleeps(host: ConsumerHost) -> None:
    code, go = blocking(host)
    host.configure(handler=host.handler(code), idle_timeout="2500ms")
    consumer = activate(host)
    host.publish("b")
    assert not host.records
    lease = host.connect()
    host.wait_records(1)
    assert not ended(lease)
    second = host.connect()
    assert ask(second)["in_hand"] == 1
    began = time.monotonic()
    go.touch()
    assert consumer.wait_exit() == 0
    assert time.monotonic() - began >= 2.5
    assert ended(lease)
    assert ended(second)
    assert "consumer went to sleep" in consumer.output
    assert host.alive() is None


def test_does_not_sleep_before_what_comes_in_the_meantime_is_done(host: ConsumerHost) -> None:
    code = "import time\ndef handle(message): time.sleep(3); record(time.monotonic())\n"
    host.configure(handler=host.handler(code), idle_timeout="2500ms")
    host.publish("slow", "slow")
    consumer = host.start(wake=host.wake_socket())
    assert consumer.wait_exit() == 0
    # Idle since the end of the slow one, not since it came.
    _, ended_at = map(float, host.records)
    assert time.monotonic() - ended_at >= 2.5
    assert host.stats()["handled"] == "2"


def test_without_a_socket_it_sleeps_only_if_an_option_says_when(host: ConsumerHost) -> None:
    host.configure(handler=host.handler(RECORD), idle_timeout="2500ms")
    stays = host.start("orders:2")
    sleeps = host.start("orders", "--idle-timeout", "2.5s")
    assert sleeps.wait_exit() == 0
    assert "went to sleep" in sleeps.output
    assert stays.running
    assert stays.stop() == 0


def test_an_idle_timeout_that_is_too_short_is_refused(host: ConsumerHost) -> None:
    consumer = host.start("orders", "--idle-timeout", "2s")
    assert consumer.wait_exit() == 64
    assert "must be at least 2.5s" in consumer.output


# -- status ----------------------------------------------------------------------------------


def blocking(host: ConsumerHost, then: str = "pass") -> tuple[str, Path]:
    """Return a handler that does all but "a" once a file is there, and the file."""
    go = host.directory / "go"
    code = f"""
import os, time
def handle(message):
    if message.text() != "a":
        record(1)
        while not os.path.exists({str(go)!r}):
            time.sleep(0.01)
        {then}
"""
    return code, go


def test_answers_status_with_figures(host: ConsumerHost) -> None:
    code, go = blocking(host, "raise ValueError")
    host.configure(handler=host.handler(code))
    listener = host.wake_socket()
    consumer = host.start(wake=listener)
    lease = host.connect()
    wait_until(lambda: ask(lease)["state"] == "idle")
    seen = ask(lease)
    assert seen["name"] == "orders"
    assert seen["pid"] == consumer.pid
    assert (seen["in_hand"], seen["handled"], seen["failed"]) == (0, 0, 0)
    host.publish("a", "a", "bad")
    host.wait_records(1)
    wait_until(lambda: ask(lease)["handled"] == 2)
    seen = ask(lease)
    assert (seen["state"], seen["in_hand"]) == ("handling", 1)
    before = seen["seconds"]
    go.touch()
    wait_until(lambda: ask(lease)["failed"] == 1)
    wait_until(lambda: ask(lease)["in_hand"] == 0)
    assert ask(lease)["seconds"] > before > 0


def test_answers_who_asked_before_it_was_started(host: ConsumerHost) -> None:
    listener = host.wake_socket()
    lease = host.connect()
    lease.sendall(b"status\n")
    host.start(wake=listener)
    assert json.loads(lease.recv(4096))["name"] == "orders"


def test_answers_while_a_handler_blocks(host: ConsumerHost) -> None:
    code, go = blocking(host)
    host.configure(handler=host.handler(code))
    host.publish("b")
    host.start(wake=host.wake_socket())
    host.wait_records(1)
    assert ask(host.connect())["in_hand"] == 1
    go.touch()
    host.wait_done()


def test_reads_a_request_that_comes_in_pieces(host: ConsumerHost) -> None:
    host.start(wake=host.wake_socket())
    lease = host.connect()
    for piece in (b"st", b"at", b"us", b"\nstatus\r\n  status \nst"):
        lease.sendall(piece)
        time.sleep(0.02)  # so that they do not come together
    lines = b""
    while lines.count(b"\n") < 3:
        lines += lease.recv(4096)
    assert all(json.loads(line)["name"] == "orders" for line in lines.splitlines())
    lease.sendall(b"atus\n")
    assert json.loads(lease.recv(4096))


def test_a_request_may_be_the_last_word_of_a_client(host: ConsumerHost) -> None:
    host.start(wake=host.wake_socket())
    lease = host.connect()
    lease.sendall(b"status\n")
    lease.shutdown(socket.SHUT_WR)
    answer = b""
    while chunk := lease.recv(4096):
        answer += chunk
    assert json.loads(answer)["name"] == "orders"


@pytest.mark.parametrize(
    "garbage",
    [b"\0\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\n" * 1000, bytes(range(256)) + b"\n"],
)
def test_takes_no_notice_of_other_requests(host: ConsumerHost, garbage: bytes) -> None:
    host.start(wake=host.wake_socket())
    lease = host.connect()
    lease.sendall(garbage)
    assert ask(lease)["name"] == "orders"


def test_drops_who_sends_a_line_without_end(host: ConsumerHost) -> None:
    consumer = host.start(wake=host.wake_socket())
    lease = host.connect()
    other = host.connect()
    lease.sendall(b"x" * 300)
    wait_until(lambda: ended(lease))
    assert ask(other)["name"] == "orders"
    assert consumer.running


def test_a_client_that_never_reads_its_answers_harms_nobody(host: ConsumerHost) -> None:
    host.start(wake=host.wake_socket())
    rude = host.connect()
    rude.settimeout(0.2)
    sent = 0
    try:
        while sent < 20_000_000:
            sent += rude.send(b"status\n" * 1000)
    except TimeoutError:
        pass  # so be it, but the consumer goes on
    lease = host.connect()
    assert ask(lease)["name"] == "orders"
    host.publish("a")
    host.wait_done()
    assert not ended(lease)


def test_a_client_that_goes_away_harms_nobody(host: ConsumerHost) -> None:
    host.start(wake=host.wake_socket())
    for _ in range(20):
        gone = host.connect()
        gone.sendall(b"status\n" * 100)
        gone.close()
    assert ask(host.connect())["name"] == "orders"


def test_three_hundred_clients_are_accepted_and_most_are_kept(host: ConsumerHost) -> None:
    listener = host.wake_socket()
    consumer = host.start(wake=listener)
    leases = [host.connect() for _ in range(300)]
    # None is left in the queue, where it would start the consumer again after its end.
    wait_until(lambda: sum(map(ended, leases)) == 300 - 256)
    kept = [lease for lease in leases if not ended(lease)]
    assert ask(kept[0])["name"] == "orders"
    for lease in kept[:100]:
        lease.close()
    wait_until(lambda: len(list(Path(f"/proc/{consumer.pid}/fd").iterdir())) < 200)
    assert ask(host.connect())["name"] == "orders"
    host.publish("a")
    host.wait_done()
    assert consumer.stop() == 0


def test_accepts_before_an_error_so_that_nothing_is_left_in_the_queue(host: ConsumerHost) -> None:
    host.configure(handler="nowhere:handle", concurrency=0)
    listener = host.wake_socket()
    leases = [host.connect() for _ in range(5)]
    consumer = host.start(wake=listener)
    assert consumer.wait_exit() == 78
    assert "concurrency must be 1 to 1000, not 0" in consumer.output
    listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert all(map(ended, leases))


def test_activated_by_systemd_with_a_wrong_configuration_it_says_so_and_accepts(
    host: ConsumerHost,
) -> None:
    host.configure(handler="nowhere:handle")
    consumer = activate(host)
    lease = host.connect()
    assert consumer.wait_exit() == 78
    assert "No module named 'nowhere'" in consumer.output
    assert ended(lease)


# -- stopping with a socket --------------------------------------------------------------------


def test_connections_end_with_a_stop_and_not_before(host: ConsumerHost) -> None:
    code, go = blocking(host, "record(2)")
    host.configure(handler=host.handler(code))
    host.publish("b")
    consumer = host.start(wake=host.wake_socket())
    lease = host.connect()
    host.wait_records(1)
    consumer.terminate()
    wait_until(lambda: ask(lease)["state"] == "draining")
    assert not ended(lease)
    go.touch()
    assert consumer.wait_exit() == 0
    assert host.records == ["1", "2"]
    assert ended(lease)


def test_sockets_and_connections_survive_a_reload(host: ConsumerHost) -> None:
    host.configure(handler=host.handler("def handle(m): record('old', m.text())\n"))
    consumer = host.start(wake=host.wake_socket())
    leases = [host.connect() for _ in range(3)]
    assert ask(leases[0])["pid"] == consumer.pid
    host.publish("a")
    host.wait_records(1)
    wait_until(lambda: host.stats().get("handled") == "1")
    host.configure(handler=host.handler("def handle(m): record('new', m.text())\n", "next.py"))
    consumer.send(signal.SIGHUP)
    consumer.wait_log("restarted for a reload")
    host.publish("b")
    assert host.wait_records(2) == ["old a", "new b"]
    assert not any(map(ended, leases))
    for lease in leases:
        answer = ask(lease)
        assert answer["pid"] == consumer.pid
        assert answer["handled"] <= 1
    assert ask(host.connect())["name"] == "orders"
    # And another one: what was inherited is passed on again.
    consumer.send(signal.SIGHUP)
    consumer.wait_log("restarted for a reload", times=2)
    assert ask(leases[1])["pid"] == consumer.pid
    assert len(list(Path(f"/proc/{consumer.pid}/fd").iterdir())) < 30
    assert consumer.stop() == 0
    assert all(map(ended, leases))
