"""A host for tests of wakeq-consumer: its folders, its handlers, and consumers as processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from leaks import join
from redis_servers import RedisServer, wait_until
from wakeq import keys
from wakeq.redis_url import RedisURL
from wakeq.scripts import Script
from wakeq.wire import Connection

HOST = os.uname().nodename

# Of each delayed message, the first one that is due first, at one moment: what it is called, when
# it is due, and what is packed for it. Then for how many there is something.
_UNPACK = """
local all = {}
local due = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #due, 2 do
  local packed = redis.call('HGET', KEYS[2], due[i])
  all[#all + 1] = {due[i], due[i + 1], cmsgpack.unpack(packed)}
end
return {all, redis.call('HLEN', KEYS[2])}
"""

# What every handler of a test has: `record(word, …)` adds a line to a file that the test reads.
PRELUDE = """
import os as _os
_fd = _os.open({record!r}, _os.O_WRONLY | _os.O_APPEND | _os.O_CREAT)
def record(*words):
    _os.write(_fd, " ".join(map(str, words)).encode() + b"\\n")
"""


class Delayed:
    """A delayed message.

    Attributes:
        member: what it is called among the delayed ones.
        due_ms: when it is due.
        group: whose retry it is; empty: it goes to the stream.
        id: its first id.
        fields: all its fields, ours among them.
    """

    def __init__(self, member: str, due_ms: int, items: list[bytes]) -> None:
        self.member = member
        self.due_ms = due_ms
        self.group, self.id = items[0].decode(), items[1].decode()
        self.fields = dict(zip(items[2::2], items[3::2], strict=True))


class ConsumerProcess:
    """A running wakeq-consumer and what it prints, which in a test is its log."""

    def __init__(
        self, command: list[str], env: dict[str, str], pass_fds: tuple[int, ...] = ()
    ) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command,
            env=env,
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
        )
        self.pid = self.process.pid
        self._thread = threading.Thread(target=self._collect, name=f"output of {self.pid}")
        self._thread.start()

    @property
    def output(self) -> str:
        """All that was printed so far."""
        return "\n".join(self.lines)

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    def wait_log(self, text: str, times: int = 1, deadline_s: float = 60) -> None:
        """Wait until a text was printed so many times."""
        wait_until(lambda: self.count(text) >= times, deadline_s, f"{text!r} in {self.lines}")

    def count(self, text: str) -> int:
        """Return how many lines have a text."""
        return sum(text in line for line in self.lines)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it, not to what it has started; after SIGSTOP it stands still."""
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def terminate(self) -> None:
        """Ask it to stop, as systemd would; `wait_exit` waits for it."""
        self.process.terminate()

    def wait_exit(self, deadline_s: float = 60) -> int:
        """Wait for the end and return the exit code; a signal's is negative."""
        try:
            code = self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"still running after {deadline_s:g} s; printed:\n{self.output}"
            ) from None
        join(self._thread)
        return code

    def stop(self, deadline_s: float = 60) -> int:
        """Stop it as systemd would, and return the exit code."""
        self.terminate()
        return self.wait_exit(deadline_s)

    def kill(self) -> None:
        """End it without warning."""
        self.process.kill()
        self.process.wait()
        join(self._thread)

    def _collect(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
        self.process.stdout.close()


def toml(value: object) -> str:
    """Return a value as TOML says it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {json.dumps(v)}" for key, v in value.items()) + " }"
    return json.dumps(value)


class ConsumerHost:
    """The folders of one host, its handlers and its consumers.

    Args:
        directory: where `etc` (configuration), `app` (handlers) and `run` are made; short
            enough for unix sockets (fixture `short_dir`).
        server: the Redis.

    Attributes:
        redis: a client of the Redis.
        env: added to the environment of each consumer; the test may change it.
        interpreter: the Python that consumers are started with.
    """

    def __init__(self, directory: Path, server: RedisServer) -> None:
        self.directory = directory
        self.config_dir = directory / "etc"
        self.app_dir = directory / "app"
        self.runtime_dir = directory / "run"
        for path in (self.config_dir / "consumers", self.app_dir, self.runtime_dir):
            path.mkdir(parents=True)
        self.redis = server.client()
        self.env = {
            "WAKEQ_REDIS_URL": server.url,
            "WAKEQ_CONFIG_DIR": str(self.config_dir),
            "WAKEQ_RUNTIME_DIR": str(self.runtime_dir),
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }
        self.interpreter = sys.executable
        self._record = directory / "record"
        self._consumers: list[ConsumerProcess] = []
        self._sockets: list[socket.socket] = []

    # -- before the start ------------------------------------------------------------------

    def handler(self, code: str, file: str = "shop.py", function: str = "handle") -> str:
        """Write a handler's file, in which `record(…)` is known; return what names it."""
        path = self.app_dir / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(PRELUDE.format(record=str(self._record)) + code)
        return f"{path}:{function}"

    def program(self, script: str, file: str = "program", shell: str = "/bin/sh") -> str:
        """Write an executable script, in which $RECORD is the file of records; return its path."""
        path = self.app_dir / file
        path.write_text(f"#!{shell}\n{script}")
        path.chmod(0o755)
        self.env["RECORD"] = str(self._record)
        return str(path)

    def configure(self, name: str = "orders", **settings: Any) -> None:
        """Write a consumer's file; `exec_` is written `exec`."""
        lines = [f"{key.rstrip('_')} = {toml(value)}\n" for key, value in settings.items()]
        (self.config_dir / "consumers" / f"{name}.toml").write_text("".join(lines))

    # -- running -----------------------------------------------------------------------------

    def start(
        self, name: str = "orders", *options: str, wake: socket.socket | None = None, **env: str
    ) -> ConsumerProcess:
        """Start a consumer; `wake` is passed as the socket that systemd has started it for."""
        return self.run(self.command(name, *options), wake, **env)

    def command(self, name: str = "orders", *options: str) -> list[str]:
        """Return the command that starts a consumer."""
        code = "from wakeq.consumer.main import main; main()"
        return [self.interpreter, "-c", code, name, *options]

    def run(
        self, command: list[str], wake: socket.socket | None = None, **env: str
    ) -> ConsumerProcess:
        """Start a command in the environment of a consumer."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("WAKEQ_")}
        environ = inherited | self.env | env
        fds: tuple[int, ...] = ()
        if wake is not None:
            # As systemd does it: the socket is descriptor 3, and the process is meant.
            fd = wake.fileno()
            fds = (fd,)
            pass_on = f"exec 3<&{fd} {fd}<&-; " if fd != 3 else ""
            script = pass_on + 'LISTEN_PID=$$ exec "$@"'
            command = ["bash", "-c", script, "bash", *command]
            environ |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "wake"}
        consumer = ConsumerProcess(command, environ, fds)
        self._consumers.append(consumer)
        return consumer

    def wake_socket(self, name: str = "orders") -> socket.socket:
        """Listen on the wake socket of a consumer, as its socket unit does."""
        (self.runtime_dir / "consumer").mkdir(exist_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.socket_path(name)))
        listener.listen(1024)
        self._sockets.append(listener)
        return listener

    def socket_path(self, name: str = "orders") -> Path:
        """Return where the wake socket of a consumer is."""
        return self.runtime_dir / "consumer" / f"{name}.sock"

    def connect(self, name: str = "orders") -> socket.socket:
        """Connect to the wake socket of a consumer, as who wakes it does."""
        lease = socket.socket(socket.AF_UNIX)
        self._sockets.append(lease)
        lease.settimeout(60)
        lease.connect(str(self.socket_path(name)))
        return lease

    def close(self) -> None:
        """End everything."""
        for consumer in self._consumers:
            consumer.kill()
        for sock in self._sockets:
            sock.close()

    # -- what happened -----------------------------------------------------------------------

    @property
    def records(self) -> list[str]:
        """The lines that handlers have recorded."""
        try:
            text = self._record.read_text(errors="backslashreplace")
        except FileNotFoundError:
            return []
        # A line that is being written may be seen in part.
        return text[: text.rfind("\n") + 1].splitlines()

    def wait_records(self, count: int, deadline_s: float = 60) -> list[str]:
        """Wait until there are so many records, and return them."""
        wait_until(
            lambda: len(self.records) >= count,
            deadline_s,
            f"{count} records; the consumers printed:\n{self.output}",
        )
        return self.records

    @property
    def output(self) -> str:
        """What all consumers have printed so far."""
        return "\n".join(consumer.output for consumer in self._consumers)

    def publish(self, *bodies: str | bytes | int, stream: str = "orders") -> list[bytes]:
        """Add a message with each body; return their ids."""
        pipeline = self.redis.pipeline(transaction=False)
        for body in bodies:
            pipeline.xadd(stream, {"body": body})
        return list(pipeline.execute())

    def pending(self, stream: str = "orders", group: str = "orders") -> int:
        """Return how many messages are pending for a group."""
        return sum(
            g["pending"] for g in self.redis.xinfo_groups(stream) if g["name"].decode() == group
        )

    def wait_pending(
        self, count: int, deadline_s: float = 60, stream: str = "orders", group: str = "orders"
    ) -> None:
        """Wait until so many messages are pending for a group."""
        wait_until(
            lambda: self.pending(stream, group) == count,
            deadline_s,
            f"{count} pending; the consumers printed:\n{self.output}",
        )

    def wait_done(
        self, deadline_s: float = 60, stream: str = "orders", group: str = "orders"
    ) -> None:
        """Wait until a group has read all of a stream and has nothing pending."""

        def done() -> bool:
            if not self.redis.exists(stream):
                return False
            last = self.redis.xinfo_stream(stream)["last-generated-id"]
            for each in self.redis.xinfo_groups(stream):
                if each["name"].decode() == group:
                    return each["last-delivered-id"] == last and each["pending"] == 0
            return False

        wait_until(
            done, deadline_s, f"{stream} done by {group}; the consumers printed:\n{self.output}"
        )

    def stats(self, stream: str = "orders", group: str = "orders") -> dict[str, str]:
        """Return the counters of a group."""
        prefix = f"wakeq:{stream}" if "{" in stream else f"wakeq:{{{stream}}}"
        raw = self.redis.hgetall(f"{prefix}:stats:{group}")
        return {key.decode(): value.decode() for key, value in raw.items()}

    def delayed(self, stream: str = "orders") -> list[Delayed]:
        """Return the delayed messages, the first one that is due first."""
        names = (keys.delayed(stream), keys.delayed_data(stream))
        found, count = self.redis.eval(_UNPACK, 2, *names)
        assert len(found) == count
        return [Delayed(member.decode(), int(due), items) for member, due, items in found]

    def dead(self, stream: str = "orders", group: str = "orders") -> list[dict[bytes, bytes]]:
        """Return the dead letters of a group."""
        return [fields for _, fields in self.redis.xrange(keys.dead(stream, group))]

    def deliver(self, stream: str = "orders") -> int:
        """Deliver all delayed messages, as if all were due; return how many."""
        names = (stream, keys.delayed(stream), keys.delayed_data(stream), keys.repairs(stream))
        members = self.redis.zrange(names[1], 0, -1)
        for member in members:
            self.redis.zadd(names[1], {member: 0}, xx=True)
        connection = Connection(RedisURL(self.env["WAKEQ_REDIS_URL"]), "wakeq-test")
        connection.connect()
        moved = 0
        try:
            arguments: list[str | int] = [keys.retry(stream, ""), 1000, 1000, 0, 0]
            # What is large is left for the next call.
            while moved < len(members):
                reply = Script("deliver").call(connection, names, arguments)
                assert reply[6] == [], "troubles"
                assert reply[5], "nothing was moved"
                moved += reply[5]
        finally:
            connection.close()
        return moved

    def wait_failed(
        self, count: int, deadline_s: float = 60, stream: str = "orders", group: str = "orders"
    ) -> None:
        """Wait until so many messages have failed and are no longer pending for that."""
        wait_until(
            lambda: int(self.stats(stream, group).get("failed", 0)) >= count,
            deadline_s,
            f"{count} failed; the consumers printed:\n{self.output}",
        )

    def alive(
        self, name: str = "orders", stream: str = "orders", group: str = "orders"
    ) -> bytes | None:
        """Return the process that has a consumer's name, or None."""
        value: bytes | None = self.redis.get(f"wakeq:{{{stream}}}:alive:{group}:{HOST}/{name}")
        return value
