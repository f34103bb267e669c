"""A booted system with wakeq installed, and what the tests do with it."""

from __future__ import annotations

import contextlib
import socket as socket_module
import threading
from pathlib import Path
from types import TracebackType

import redis
from booted_machine import Machine

from redis_servers import wait_until

# For each message it prints `handled BODY`, which is found in the journal.
PRINTS = """
def handle(message):
    print("handled", message.text(), flush=True)
"""
# The same, and it is not done before somebody says so: `write(GO_ON, "")`.
GO_ON = "/srv/go-on"
WAITS = f"""
import os, time

def handle(message):
    print("handled", message.text(), flush=True)
    while not os.path.exists("{GO_ON}"):
        time.sleep(0.01)
"""
WAKEUP = "wakeq-wakeup.service"
_SERVERS = {"redis": "/run/redis/redis-server.sock", "valkey": "/run/valkey/valkey-server.sock"}


def service(name: str) -> str:
    """Return the name of a consumer's service."""
    return f"wakeq-consumer@{name}.service"


def socket(name: str) -> str:
    """Return the name of a consumer's socket."""
    return f"wakeq-consumer@{name}.socket"


class WakeqMachine(Machine):
    """A system with wakeq, whose Redis, on request, is its distribution's.

    Attributes:
        server: redis or valkey.
    """

    server = "redis"

    def prepare(self) -> None:
        """Do what needs be done once, before it is frozen."""
        for server, socket_path in _SERVERS.items():
            config = self.path(f"/etc/{server}/{server}.conf")
            if config.exists():
                with config.open("a") as file:
                    # What was acknowledged to a publisher is on the disk.
                    file.write(f"unixsocket {socket_path}\nunixsocketperm 777\n")
                    file.write("appendonly yes\nappendfsync always\n")
        self.write("/etc/systemd/journald.conf.d/test.conf", "[Journal]\nRateLimitBurst=0\n")
        self.path("/var/log/journal").mkdir(exist_ok=True)

    def install(self, package: Path) -> str:
        """Install a package as an admin would, without a network, and return what is said."""
        self.path("/root/new.deb").write_bytes(package.read_bytes())
        return self.run("apt-get", "install", "--yes", "--quiet=2", "/root/new.deb", seconds=600)

    # -- Redis -----------------------------------------------------------------------------

    def start_redis(self, server: str = "redis") -> None:
        """Have Redis, now and after a boot."""
        self.server = server
        self.systemctl("enable", "--quiet", "--now", f"{server}-server")

    @property
    def url(self) -> str:
        """How its server is reached from outside."""
        return f"unix://{self.path(_SERVERS[self.server])}"

    def redis(self) -> redis.Redis:
        """Return a client of its server; to be closed."""
        return redis.Redis(
            unix_socket_path=str(self.path(_SERVERS[self.server])),
            socket_timeout=60,
            decode_responses=True,
        )

    def connect(self) -> socket_module.socket:
        """Return a bare connection to its server; to be closed."""
        connection = socket_module.socket(socket_module.AF_UNIX)
        try:
            connection.settimeout(60)
            connection.connect(str(self.path(_SERVERS[self.server])))
        except OSError:
            connection.close()
            raise
        return connection

    def publish(self, stream: str, *bodies: object) -> list[str]:
        """Add messages to a stream and return their ids."""
        with self.redis() as client:
            return [str(client.xadd(stream, {"body": str(body)})) for body in bodies]

    def is_drained(self, name: str) -> bool:
        """Tell whether nothing is unread or pending for a consumer's group."""
        with self.redis() as client:
            groups = client.xinfo_groups(name)
            last = client.xinfo_stream(name)["last-generated-id"]
        return any(
            group["name"] == name and not group["pending"] and group["last-delivered-id"] == last
            for group in groups
        )

    # -- consumers -------------------------------------------------------------------------

    def configure(
        self, name: str, handler: str = PRINTS, settings: str = "", idle_timeout: str = "2.5s"
    ) -> None:
        """Write a consumer's configuration and its handler."""
        self.write(f"/srv/{name}.py", handler)
        text = f'handler = "/srv/{name}.py:handle"\nidle_timeout = "{idle_timeout}"\n{settings}\n'
        self.write(f"/etc/wakeq/consumers/{name}.toml", text)

    def enable(self, *names: str) -> None:
        """Enable wakeq-wakeup and consumers, and start what is enabled."""
        self.systemctl("enable", "--quiet", "--now", WAKEUP, *map(socket, names))

    def drop_in(self, unit: str, text: str) -> None:
        """Change a unit as `systemctl edit` does."""
        self.write(f"/etc/systemd/system/{unit}.d/test.conf", text)
        self.systemctl("daemon-reload")

    def handled(self, name: str) -> list[str]:
        """Return the body of each message that a consumer's handler printed, in order."""
        lines = self.log("--output=cat", "-u", service(name)).splitlines()
        return [line.removeprefix("handled ") for line in lines if line.startswith("handled ")]

    def wait_for_handled(self, name: str, *bodies: object, deadline_s: float = 120) -> None:
        """Wait until these messages have been handled, with others or without."""
        wanted = set(map(str, bodies))
        wait_until(
            lambda: wanted <= set(self.handled(name)),
            deadline_s,
            f"{name} handled {len(wanted)} messages",
        )

    def status_text(self, unit: str) -> str:
        """Return what a service says about itself."""
        return self.show(unit, "StatusText")

    def is_asleep(self, name: str) -> bool:
        """Tell whether a consumer can be woken, and has no process."""
        return self.state(service(name)) == "inactive" and self.state(socket(name)) == "active"


class Load:
    """Publishes to a stream all the while, and knows which messages were taken.

    with Load(machine, "orders") as load:
        ...
    load.wait_until_handled()
    """

    def __init__(self, machine: WakeqMachine, name: str, pause_s: float = 0.005) -> None:
        self._machine = machine
        self._name = name
        self._pause_s = pause_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._publish, name="load")
        self.taken: list[str] = []

    def __enter__(self) -> Load:
        """Begin."""
        self._thread.start()
        self.go_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """End."""
        self._over.set()
        self._thread.join()

    def go_on(self, count: int = 50) -> None:
        """Wait until so many more messages were taken."""
        wanted = len(self.taken) + count
        wait_until(lambda: len(self.taken) >= wanted, 60, f"{count} more were published")

    def go_on_handled(self, count: int = 50) -> None:
        """Wait until what was taken up to now was handled."""
        self.go_on(count)
        bodies = list(self.taken)
        self._machine.wait_for_handled(self._name, *bodies)

    def wait_until_handled(self) -> None:
        """Wait until every message that was taken has been handled, and nothing is left."""
        wait_until(lambda: self._machine.is_drained(self._name), 120, f"{self._name} is drained")
        lost = set(self.taken) - set(self._machine.handled(self._name))
        assert not lost, f"{len(lost)} of {len(self.taken)} lost: {sorted(lost)[:10]}"

    def _publish(self) -> None:
        number = 0
        while not self._over.wait(self._pause_s):
            number += 1
            # If there is no answer, nobody knows whether it was taken, so it does not count.
            with contextlib.suppress(OSError):
                if self._add(f"m{number}"):
                    self.taken.append(f"m{number}")

    def _add(self, body: str) -> bool:
        """Add a message, and tell whether Redis says that it has it.

        By hand, because redis-py leaves a socket open when it cannot connect.
        """
        with contextlib.closing(self._machine.connect()) as connection:
            connection.sendall(f"XADD {self._name} * body {body}\r\n".encode())
            # The id's length, the id.
            reply = b""
            while reply.count(b"\r\n") < 2 and not reply.startswith(b"-"):
                if not (received := connection.recv(4096)):
                    return False
                reply += received
        return reply.startswith(b"$")
