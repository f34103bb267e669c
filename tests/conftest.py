"""What all tests share: servers, a notify socket, and a check that a test leaves nothing behind."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from leaks import nothing_left_behind
from redis_servers import Cluster, RedisServer

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
# More examples than the tests of every day take, and others each time.
EXAMPLES = int(os.environ.get("WAKEQ_TEST_EXAMPLES", "0"))

settings.register_profile(
    "wakeq",
    max_examples=EXAMPLES or 100,
    derandomize=not EXAMPLES,
    database=None,
    # How long an example takes is a matter of what else the machine does.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("wakeq")


def pytest_configure(config: pytest.Config) -> None:
    """Take a temporary folder for this run alone, and become the parent of orphans."""
    # A short path, because that of a unix socket has at most 107 bytes; and nobody else's files
    # in it, so that what a test leaves behind is seen.
    tempfile.tempdir = tempfile.mkdtemp(prefix="wakeq-test-")
    os.environ["TMPDIR"] = tempfile.tempdir
    # Else a process whose parent was killed would go to PID 1, out of sight.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the temporary folder of this run."""
    shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that is skipped where everything must run."""
    report = yield
    if os.environ.get("CI") and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, but with CI set every test must run: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fail a test after which a process, a thread or a temporary file is left."""
    with nothing_left_behind():
        yield


@pytest.fixture(autouse=True)
def collects_garbage(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect what a test that may be warned of it leaves, before another test is, that may not."""
    yield
    marks = request.node.iter_markers("filterwarnings")
    if any("PytestUnraisableExceptionWarning" in mark.args[0] for mark in marks):
        gc.collect()


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder whose path is short enough for unix sockets in it; tmp_path is not."""
    with tempfile.TemporaryDirectory(prefix="d") as directory:
        yield Path(directory)


@pytest.fixture
def redis_server() -> Iterator[Callable[..., RedisServer]]:
    """Start servers: `redis_server(*options)` returns a running RedisServer of its own."""
    servers: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        server = RedisServer(Path(tempfile.mkdtemp(prefix="r")), *options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()
        shutil.rmtree(server.directory)


@pytest.fixture
def own_redis(redis_server: Callable[..., RedisServer]) -> RedisServer:
    """A server of this test alone: it may stop, kill, fill and reconfigure it."""
    return redis_server()


@pytest.fixture
def cluster(short_dir: Path) -> Iterator[Cluster]:
    """A Cluster of three masters, of this test alone."""
    directory = short_dir / "c"
    directory.mkdir()
    nodes = Cluster(directory)
    try:
        nodes.start()
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture(scope="session")
def _shared_redis() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="r") as directory:
        server = RedisServer(Path(directory))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def redis(_shared_redis: RedisServer) -> Iterator[RedisServer]:
    """The server that all tests share, empty; a test that stops or changes it wants own_redis."""
    client = _shared_redis.client()
    # Else the server may yet read what one that was killed in the test before has sent.
    for kind in ("normal", "pubsub"):
        client.client_kill_filter(_type=kind, skipme=True)
    client.flushall()
    client.script_flush()
    yield _shared_redis
    _shared_redis.close_clients()


class NotifySocket:
    """A real socket for sd_notify(3) that collects what a service says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # For the environment of the service.
        self.env = {"NOTIFY_SOCKET": str(path)}
        # Every assignment received, in order: "READY=1", "STATUS=...".
        self.messages: list[str] = []
        self._marks = 0
        self._changed = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        # Read at once, because a full socket would block the service.
        self._thread = threading.Thread(target=self._collect, name="notify socket")
        self._thread.start()

    def wait_for(self, message: str, deadline_s: float = 60, after: int = 0) -> str:
        """Return the first such message, or fail; "STATUS=" is any that starts so.

        `after` is how many messages to pass over: `len(messages)` waits for a new one.
        """

        def found() -> str | None:
            for line in self.messages[after:]:
                if line == message or (message.endswith("=") and line.startswith(message)):
                    return line
            return None

        with self._changed:
            if not self._changed.wait_for(found, deadline_s):
                raise AssertionError(f"no {message} within {deadline_s:g} s, only {self.messages}")
            line = found()
        assert line is not None
        return line

    def collected(self) -> int:
        """Return how many messages there are when all that was sent before is among them."""
        self._marks += 1
        mark = f"X_MARK={self._marks}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(mark.encode(), str(self.path))
        self.wait_for(mark, 60)
        return len(self.messages)

    def close(self) -> None:
        """Stop collecting."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", str(self.path))
        self._thread.join()
        self._socket.close()

    def _collect(self) -> None:
        # An empty datagram is from close().
        while datagram := self._socket.recv(65536):
            with self._changed:
                self.messages += datagram.decode().splitlines()
                self._changed.notify_all()


@pytest.fixture
def notify_socket(short_dir: Path) -> Iterator[NotifySocket]:
    """A socket to give to a service as NOTIFY_SOCKET, with `notify_socket.env`."""
    notify = NotifySocket(short_dir / "notify")
    yield notify
    notify.close()
