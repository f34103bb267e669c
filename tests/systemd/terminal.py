"""A terminal at a booted system, for whoever types commands and presses Ctrl+C."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
from pathlib import Path
from types import TracebackType

from booted_machine import Machine

from redis_servers import wait_until


class Terminal:
    """Runs lines of a shell as somebody would type them into it; each must succeed.

    with Terminal(machine, "wakeq status") as terminal:
        terminal.wait_for("STREAM")

    Attributes:
        said: all that was on the screen so far.
    """

    def __init__(self, machine: Machine, lines: str) -> None:
        self.said = ""
        self._lines = lines
        # Ctrl+C is for what was typed, which has it as usual, not for who waits for its end.
        script = 'trap : INT; bash -ec "$1"; echo "ended with $?"'
        shell = ["env", "--default-signal=INT", "bash", "-c", script, "-", lines]
        outside = ["setsid", "--ctty", "env", "--ignore-signal=INT"]
        self._command = [*outside, *machine.inside(*shell)]
        self._screen = -1
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Terminal:
        """Type the lines."""
        self._screen, keyboard = pty.openpty()
        try:
            self._process = subprocess.Popen(
                self._command, stdin=keyboard, stdout=keyboard, stderr=keyboard
            )
        finally:
            os.close(keyboard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Close it, which ends what runs in it."""
        assert self._process is not None
        # The shell first: without who waits for it, it would be left over.
        pid = self._process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self._process.wait()
        os.close(self._screen)

    def wait_for(self, pattern: str, deadline_s: float = 120) -> str:
        """Wait until something is on the screen, and return it."""
        found = wait_until(lambda: self._find(pattern), deadline_s, f"{pattern!r} after {self!r}")
        return found[0]

    def press_ctrl_c(self) -> None:
        """Interrupt what runs."""
        os.write(self._screen, b"\x03")

    def wait_for_end(self, deadline_s: float = 120) -> int:
        """Wait until the last command has ended, and return its exit code."""
        return int(self.wait_for(r"(?m)(?<=ended with )\d+(?=\r?$)", deadline_s))

    def __repr__(self) -> str:
        return f"{self._lines.strip()!r}, which said {self.said!r}"

    def _find(self, pattern: str) -> re.Match[str] | None:
        while select.select([self._screen], [], [], 0)[0]:
            try:
                self.said += os.read(self._screen, 65536).decode(errors="replace")
            except OSError:  # EIO: nobody has it open any more
                break
        return re.search(pattern, self.said)
