"""./scripts/demo: what it shows is so, and it says so when it is not."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
DEADLINE_S = 600

# In the order in which it happens; {n} stands for any number.
STORY = (
    *("ok: no consumer is running", "published {n} messages, one for each installed package"),
    *(
        "sizes   woken {n} ms after the message: process {n}",
        "sizes   handled {n} of {n}, {n} msg/s",
    ),
    *("sizes   idle", "sizes   process {n} exited with 0"),
    *("ok: sizes got every message once", "ok: verify got every message once"),
    # By their names: else a consumer would not be known for one.
    "ok: no consumer is running, only redis-server, {n} systemd-socket-activate, wakeq-delay, "
    "wakeq-wakeup, wakeq.delay.repair",
    "ok: installed sizes by section are those of dpkg-query",
    "ok: {n} files of {n} packages have changed, which dpkg --verify finds, too",
    *("published one: wakeq publish", "sizes   woken {n} ms after the message: process {n}"),
    *("sizes   handled 1 of 1", "sizes   process {n} exited with 0", "ok: no consumer is running"),
    "published {n} messages, one for each package that the required ones depend on",
    "depends handled {n} of {n}; {n} fail, and wait for another try",
    *("delay   {n} were repaired and handled", "depends {n} failed 3 times, and are dead letters"),
    *("$ wakeq dead list depends", "ok: {n} dead letters, each with its error"),
    *("wakeq dead retry depends --all --yes", "depends idle, exited"),
    "ok: each was handled once, with the version that dpkg names",
    *("ok: each kept the id", "ok: nothing is delayed or dead any more"),
    *("$ wakeq status", "ok: nothing is unread, pending, dead or failed in sizes"),
    *("ok: nothing is unread, pending, dead or failed in verify", "ok: nothing is left"),
    "demo: everything held",
)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end."""
    return subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A copy of the demo's parts, to be broken."""
    return Path(shutil.copytree(SCRIPTS / "demo-parts", tmp_path / "parts"))


def change(path: Path, before: str, after: str) -> None:
    """Replace something in a file, which must be there once."""
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))


def test_tells_the_whole_story_and_leaves_nothing() -> None:
    done = run(SCRIPTS / "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    at = 0
    for step in STORY:
        pattern = re.escape(step).replace(re.escape("{n}"), "[0-9,]+")
        found = re.compile(pattern).search(done.stdout, at)
        assert found is not None, f"no {step!r} in the rest of:\n{done.stdout}"
        at = found.end()
    for consumer in ("sizes", "verify"):
        figures = done.stdout.replace(",", "")
        first, one = re.findall(rf"{consumer} +handled (\d+) of (\d+)", figures)
        assert first[0] == first[1]
        assert one == ("1", "1")
    assert "FAILED:" not in done.stdout
    assert "\x1b" not in done.stdout


def test_says_which_check_failed(parts: Path) -> None:
    # A handler that has one of the sizes wrong.
    change(parts / "sizes.py", "        database.executemany(", (
        "        rows[0] = (*rows[0][:-1], 1 + int(rows[0][-1]))\n"
        "        database.executemany("
    ))  # fmt: skip
    done = run(sys.executable, parts / "timeline.py")
    assert done.returncode == 1
    assert re.search("FAILED: sizes got every message once, as it was published", done.stdout)
    assert re.search("FAILED: installed sizes by section are those of dpkg-query", done.stdout)
    assert "ok: verify got every message once" in done.stdout
    assert "demo: FAILED: it does not hold that sizes got every message" in done.stderr
    assert "everything held" not in done.stdout


def test_shows_why_a_handler_fails(parts: Path) -> None:
    change(parts / "sizes.py", "    now = time.time()\n", "    raise RuntimeError('no disk')\n")
    done = run(sys.executable, parts / "timeline.py")
    assert done.returncode == 1
    assert "RuntimeError: no disk" in done.stderr
    assert re.search(r"demo: FAILED: sizes: \d+ messages failed", done.stderr)


def test_shows_why_a_consumer_does_not_start(parts: Path) -> None:
    change(parts / "sizes.py", "import time\n", "import tyme\n")
    done = run(sys.executable, parts / "timeline.py")
    assert done.returncode == 1
    assert "No module named 'tyme'" in done.stderr
    assert "demo: FAILED: sizes: exited with 78" in done.stderr


def test_is_coloured_in_a_terminal_and_stops_with_it() -> None:
    terminal, its_other_end = pty.openpty()
    environ = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "linux"}
    with subprocess.Popen(
        [sys.executable, SCRIPTS / "demo-parts/timeline.py"], env=environ, stdin=its_other_end,
        stdout=its_other_end, stderr=its_other_end, start_new_session=True,
    ) as demo:  # fmt: skip
        os.close(its_other_end)
        shown = b""
        while b"woken" not in shown:
            shown += os.read(terminal, 4096)
        os.killpg(demo.pid, signal.SIGINT)  # Ctrl+C
        code = demo.wait(timeout=DEADLINE_S)
    os.close(terminal)
    assert b"\x1b[1m" in shown
    assert code == 128 + signal.SIGINT


def test_says_nothing_when_it_is_interrupted_before_it_has_begun(parts: Path) -> None:
    (parts / "redis.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = run(sys.executable, parts / "timeline.py")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
