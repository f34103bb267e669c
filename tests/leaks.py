"""Tells what a piece of a test run leaves behind: processes, threads, temporary files."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from redis_servers import wait_until


@contextmanager
def nothing_left_behind(deadline_s: float = 30) -> Iterator[None]:
    """Fail if what the block started is still there `deadline_s` after it; end processes."""
    before = _left()
    yield
    with suppress(AssertionError):
        wait_until(lambda: not (_left() - before), deadline_s)
    left = sorted(_left() - before)
    for kind, name in left:
        if kind == "process":
            with suppress(ProcessLookupError):
                os.kill(int(name.split()[0]), signal.SIGKILL)
    assert not left, "left behind: " + ", ".join(f"{kind} {name}" for kind, name in left)


def join(output: threading.Thread) -> None:
    """Wait for the thread that reads what a process prints, which has ended.

    What it has started may have its output open yet, and is ended as what is left behind.
    """
    output.join(60)
    assert not output.is_alive(), "what a process has started outlives it"


def _left() -> set[tuple[str, str]]:
    """Return each child process, thread and temporary file there is, as (kind, name)."""
    processes = {("process", child) for child in _children()}
    threads = {("thread", f"{thread.name} {thread.ident}") for thread in threading.enumerate()}
    names = os.listdir(tempfile.gettempdir())
    # pytest's own folder, with each test's tmp_path.
    files = {("temporary file", name) for name in names if not name.startswith("pytest-of-")}
    return processes | threads | files


def _children() -> set[str]:
    """Return "PID command" of each living child; those that have ended are reaped.

    The test run is the parent of orphans too (see conftest.py), for which nobody else waits.
    """
    children = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            # Its name, of at most 15 bytes, may end within a character.
            stat = Path("/proc", pid, "stat").read_text(errors="replace")
            # proc(5): pid (command) state parent ...; the command may hold anything.
            command = stat[stat.index("(") + 1 : stat.rindex(")")]
            state, parent = stat[stat.rindex(")") + 2 :].split()[:2]
            if int(parent) != os.getpid():
                continue
            if state == "Z":
                os.waitpid(int(pid), os.WNOHANG)
            else:
                children.add(f"{pid} {command}")
    return children
