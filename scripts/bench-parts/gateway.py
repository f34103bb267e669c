"""Rounds of rooms through wakeq-fanout, a connection for each client, all in one process."""

import json
import os
import select
import socket
import statistics
import subprocess
import time

from bench import BIN, Bench, end
from rooms import REPEATS, ROUNDS, fill

from wakeq import FanoutClient

HEAD = b'{"op":"ack","room":"load","id":"'


class Clients:
    """Connections that acknowledge what they are given; as little Python as that takes."""

    def __init__(self, path: str, count: int) -> None:
        self._epoll = select.epoll()
        self._of_fd: dict[int, socket.socket] = {}
        self._rest: dict[int, bytes] = {}
        for _ in range(count):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            sock.sendall(json.dumps({"op": "subscribe", "room": "load"}).encode() + b"\n")
            sock.recv(4096)
            self._of_fd[sock.fileno()] = sock
            self._epoll.register(sock, select.EPOLLIN)

    def acknowledge(self, count: int) -> None:
        """Acknowledge so many messages."""
        while count > 0:
            found = self._epoll.poll(60)
            if not found:
                raise SystemExit("bench: rounds do not end: something is wrong, no figures")
            for fd, _ in found:
                lines = self._rest.pop(fd, b"") + self._of_fd[fd].recv(65536)
                whole = lines.rfind(b"\n") + 1
                if whole < len(lines):
                    self._rest[fd] = lines[whole:]
                start = lines.find(b'"id":"', 0, whole)
                while start >= 0:
                    message_id = lines[start + 6 : start + 22]
                    self._of_fd[fd].send(HEAD + message_id + b'"}\n')
                    count -= 1
                    start = lines.find(b'"id":"', start + 22, whole)

    def close(self) -> None:
        """Hang up."""
        for sock in self._of_fd.values():
            sock.close()
        self._epoll.close()


def gateway(bench: Bench, listener: socket.socket) -> "subprocess.Popen[bytes]":
    """Start a gateway with a socket, as systemd does."""
    fd = listener.fileno()
    script = f'exec 3<&{fd} {fd}<&-; LISTEN_PID=$$ exec "$@"'
    command = ["bash", "-c", script, "bash", *bench.command("wakeq-fanout")]
    if not os.path.exists(f"{BIN}/wakeq-fanout"):
        raise SystemExit("bench: wakeq-fanout is not installed: scripts/setup")
    return subprocess.Popen(command, env=bench.environment(LISTEN_FDS="1"), pass_fds=(fd,))


def rounds(bench: Bench, path: str, clients: int) -> float:
    """Return rounds per second of a room with so many clients, from a backlog."""
    bench.redis.flushall()
    count = ROUNDS[clients]
    connections = None
    with FanoutClient(bench.url) as rooms:
        rooms.subscribe("load", "holds it up", "nobody")
        rooms.send("load", "first")
        try:
            connections = Clients(path, clients)
            fill(bench, "load", count)
            start = time.monotonic()
            rooms.unsubscribe("load", "holds it up")
            connections.acknowledge(count * clients)
            return count / (time.monotonic() - start)
        finally:
            if connections is not None:
                connections.close()


def measure(bench: Bench) -> None:
    """Measure rooms through the gateway."""
    path = f"{bench.folder}/fanout.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1024)
        process = gateway(bench, listener)
        try:
            for clients in ROUNDS:
                rate = statistics.median(rounds(bench, path, clients) for _ in range(REPEATS))
                bench.row(
                    f"rounds through a gateway with {clients} client{'s' * (clients > 1)}",
                    f"{rate:,.0f}/s, {rate * clients:,.0f} acknowledgements/s",
                )
        finally:
            end(process)
