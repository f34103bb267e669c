"""A host for tests of wakeq-fanout: its socket, gateways as processes, and clients of it."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from consumer_host import ConsumerProcess
from redis_servers import wait_until

_PYTHON = "from wakeq.fanout.main import main; main()"


class Client:
    """A connection to a gateway; what it says and is told are JSON objects."""

    def __init__(self, address: Path | tuple[str, int]) -> None:
        family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.settimeout(60)
        self.socket.connect(str(address) if isinstance(address, Path) else address)
        self.events: list[dict[str, Any]] = []
        self._lines = self.socket.makefile("rb")
        self._ref = 0

    def write(self, raw: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(raw)

    def say(self, op: str, **fields: Any) -> int:
        """Send a request, and return its ref."""
        self._ref += 1
        self.write(json.dumps({"op": op, "ref": self._ref, **fields}).encode() + b"\n")
        return self._ref

    def hear(self) -> dict[str, Any]:
        """Return the next line."""
        line = self._lines.readline()
        assert line, "the gateway has hung up"
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a request, and return its answer; events before it are kept."""
        ref = self.say(op, **fields)
        while "event" in (found := self.hear()):
            self.events.append(found)
        assert found["ref"] == ref
        return found

    def done(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a request that is carried out, and return its answer."""
        found = self.ask(op, **fields)
        assert found["ok"], found
        return found

    def refused(self, op: str, **fields: Any) -> str:
        """Send a request that is refused, and return the error."""
        found = self.ask(op, **fields)
        assert not found["ok"], found
        assert found["message"]
        return str(found["error"])

    def event(self) -> dict[str, Any]:
        """Return the next event."""
        if self.events:
            return self.events.pop(0)
        found = self.hear()
        assert "event" in found, found
        return found

    def message(self) -> dict[str, Any]:
        """Return the next event, which is a message."""
        found = self.event()
        assert found["event"] == "message", found
        return found

    def is_hung_up(self) -> bool:
        """Wait until the gateway has hung up."""
        return self._lines.readline() == b""

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self.socket.close()


class FanoutHost:
    """The socket of one host, its gateways, and their clients.

    Args:
        directory: where the socket is made; short enough for it (fixture `short_dir`).
        url: the Redis.

    Attributes:
        env: added to the environment of each gateway; the test may change it.
    """

    def __init__(self, directory: Path, url: str) -> None:
        self.path = directory / "fanout.sock"
        self.env = {"WAKEQ_REDIS_URL": url, "WAKEQ_CONFIG_DIR": str(directory)}
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(4096)
        self._listeners = [self.listener]
        self._gateways: list[ConsumerProcess] = []
        self._clients: list[Client] = []

    def listen_to_network(self) -> tuple[str, int]:
        """Listen on a port, too, and return its address."""
        listener = socket.create_server(("127.0.0.1", 0))
        self._listeners.append(listener)
        name: tuple[str, int] = listener.getsockname()
        return name

    def start(self, *options: str, **env: str) -> ConsumerProcess:
        """Start a gateway with the sockets, as systemd does."""
        fds = [listener.fileno() for listener in self._listeners]
        moves = [f"{10 + index}<&{fd}" for index, fd in enumerate(fds)]
        moves += [f"{3 + index}<&{10 + index} {10 + index}<&-" for index in range(len(fds))]
        script = f'exec {" ".join(moves)}; LISTEN_PID=$$ exec "$@"'
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("WAKEQ_")}
        environ = inherited | self.env | env | {"LISTEN_FDS": str(len(fds))}
        command = ["bash", "-c", script, "bash", sys.executable, "-c", _PYTHON, *options]
        gateway = ConsumerProcess(command, environ, tuple(fds))
        self._gateways.append(gateway)
        return gateway

    def client(self, address: tuple[str, int] | None = None) -> Client:
        """Connect, to the socket or an address."""
        client = Client(address or self.path)
        self._clients.append(client)
        return client

    def member(self, room: str, **fields: Any) -> Client:
        """Connect, and subscribe to a room."""
        client = self.client()
        client.done("subscribe", room=room, **fields)
        return client

    def clients_in(self, room: str) -> dict[str, Any]:
        """Return the clients of a room, as another connection sees them."""
        client = self.client()
        found: dict[str, Any] = client.done("state", room=room)["clients"]
        client.close()
        return found

    def wait_clients(self, room: str, count: int, deadline_s: float = 60) -> None:
        """Wait until a room has so many clients."""
        wait_until(lambda: len(self.clients_in(room)) == count, deadline_s, f"{count} in {room}")

    def close(self) -> None:
        """End everything."""
        for client in self._clients:
            client.close()
        for gateway in self._gateways:
            gateway.kill()
        for listener in self._listeners:
            listener.close()


def cpu_seconds(pid: int) -> float:
    """Return how much processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rest_until(deadline: float) -> float:
    """Return how many seconds are left until a time of the monotonic clock."""
    return max(0.0, deadline - time.monotonic())
