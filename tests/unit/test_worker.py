"""The daemon's end of a worker: what it hears of a process that ends."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wakeq.errors import ConfigError, UnavailableError
from wakeq.loop import Loop
from wakeq.service import RUN
from wakeq.worker import Worker, receive, spawn

# It answers, and forks one that keeps its end of the socket, before it ends.
_FORKS = """
import os, signal, socket, sys
from wakeq.worker import packed
end = socket.socket(fileno=int(sys.argv[1]))
if child := os.fork():
    end.sendall(packed(["child", child]))
    os._exit(0)
{first}
signal.pause()
"""


@pytest.mark.parametrize("first", ["", "os.setsid()"])
def test_the_end_of_a_process_is_told_after_what_it_said_although_a_child_lives_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    (tmp_path / "forks.py").write_text(_FORKS.format(first=first))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *_python_path()]))
    service: Any = SimpleNamespace(stop=RUN, reload=False)
    loop = Loop(service)
    answers: list[Any] = []
    worker = Worker(loop, "forks", lambda _, said: answers.append(said))
    try:
        assert loop.run_until(lambda: None in answers, 60)
    finally:
        worker.end()
        if first:  # else it has ended with its group
            for _, child in filter(None, answers):
                os.kill(child, signal.SIGKILL)
    assert [said and said[0] for said in answers] == ["child", None]
    assert worker.fileno() == -1


def test_an_interpreter_that_cannot_be_run_is_told_from_a_host_without_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").write_text("")
    with pytest.raises(ConfigError, match=r"python .*/python cannot be run: Permission denied"):
        spawn([str(tmp_path / "python")])

    def no_room() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("socket.socketpair", no_room)
    with pytest.raises(UnavailableError, match="no process can be started: Too many open files"):
        spawn([sys.executable])


def test_a_daemon_that_ends_before_it_has_read_all_has_hung_up() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(b"last")
            theirs.sendall(b"unread")
        assert [receive(theirs), receive(theirs)] == [b"last", b""]


def _python_path() -> list[str]:
    return [path for path in [os.environ.get("PYTHONPATH")] if path]
