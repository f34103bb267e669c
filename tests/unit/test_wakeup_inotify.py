"""The directories that wakeq-wakeup follows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from wakeq.wakeup.inotify import Inotify


@pytest.fixture
def inotify() -> Iterator[Inotify]:
    inotify = Inotify()
    yield inotify
    os.close(inotify.fd)


def test_tells_the_names_that_changed(inotify: Inotify, tmp_path: Path) -> None:
    told: list[set[str] | None] = []
    inotify.watch(str(tmp_path), told.append)
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").mkdir()
    inotify.read()
    assert told == [{"a", "b"}]
    inotify.read()
    assert len(told) == 1


def test_follows_a_directory_that_comes_later_and_comes_again(
    inotify: Inotify, tmp_path: Path
) -> None:
    told: list[set[str] | None] = []
    directory = tmp_path / "one" / "two"
    inotify.watch(str(directory), told.append)
    for _ in range(2):
        told.clear()
        directory.mkdir(parents=True)
        inotify.read()
        assert told == [None]
        (directory / "a").touch()
        inotify.read()
        assert told[-1] == {"a"}
        shutil.rmtree(tmp_path / "one")
        inotify.read()
        assert told[-1] is None


def test_survives_a_flood_of_events(inotify: Inotify, tmp_path: Path) -> None:
    told: list[set[str] | None] = []
    inotify.watch(str(tmp_path), told.append)
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for number in range(most):
        os.close(os.open(tmp_path / f"f{number % 10}", os.O_CREAT | os.O_WRONLY))
        os.unlink(tmp_path / f"f{number % 10}")
        if number * 3 > most + 100:
            break
    inotify.read()
    assert None in told
