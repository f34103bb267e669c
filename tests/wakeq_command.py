"""The command `wakeq` as a process, as an operator runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

DEADLINE_S = 180


class Wakeq:
    """Runs the command with a Redis and folders of its own.

    Args:
        directory: where `etc` and `run` are made.
        url: the Redis.
    """

    def __init__(self, directory: Path, url: str) -> None:
        self.etc = directory / "etc"
        self.runtime = directory / "run"
        (self.etc / "consumers").mkdir(parents=True)
        (self.runtime / "consumer").mkdir(parents=True)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("WAKEQ_")}
        self.env = inherited | {
            "WAKEQ_REDIS_URL": url,
            "WAKEQ_CONFIG_DIR": str(self.etc),
            "WAKEQ_RUNTIME_DIR": str(self.runtime),
        }

    def configure(self, name: str, text: str) -> None:
        """Write the configuration of a consumer."""
        (self.etc / "consumers" / f"{name}.toml").write_text(text)

    def socket_path(self, name: str) -> Path:
        """Return where the wake socket of a consumer is."""
        return self.runtime / "consumer" / f"{name}.sock"

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start the command and return its process."""
        return subprocess.Popen(
            [sys.executable, "-m", "wakeq.cli", *words], env=self.env, **options
        )

    def run(self, *words: str | bytes, stdin: bytes = b"") -> Result:
        """Run the command to its end; nothing it does may end in a traceback."""
        done = subprocess.run(
            [sys.executable, "-m", "wakeq.cli", *words],
            env=self.env,
            input=stdin,
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return Result(done)


class Result:
    """How a run ended: `code`, and what it said in `out` and `err`."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.code = done.returncode
        self.out = done.stdout.decode()
        self.err = done.stderr.decode()

    def __repr__(self) -> str:
        return f"<exit code {self.code}\n{self.out}\n{self.err}>"

    @property
    def lines(self) -> list[str]:
        """What was printed, by line."""
        return self.out.splitlines()

    def json(self) -> list[Any]:
        """What was printed, a JSON value on each line."""
        return [json.loads(line) for line in self.lines]
