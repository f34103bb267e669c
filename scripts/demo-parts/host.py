"""What the demo runs on: a folder of its own, a Redis in it, wakeq, and what stands for systemd.

On a real host systemd listens on the consumers' sockets. Here systemd-socket-activate does: it
waits for the first connection and then becomes the consumer. It does that once, so for each
consumer a thread starts it again whenever the consumer has exited.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

# Ctrl+C while the rest is being loaded: there is nothing yet to end or to tell.
signal.signal(signal.SIGINT, signal.SIG_DFL)

import redis  # noqa: E402  (takes most of that time)

BIN = Path(sys.executable).parent  # of .venv
WAIT_SECONDS = 120
STOP_SECONDS = 10
LOG_LINES = 20


class DemoError(Exception):
    """Something did not happen as it should; the text says what, `logs` whose logs say more."""

    def __init__(self, text: str, *logs: str) -> None:
        super().__init__(text)
        self.logs = logs


class Consumer:
    """One consumer: listens for its wake, and notes when it exits.

    Attributes:
        pid: the process that listens, or handles messages; the two are the same.
        exits: the exit code of each process that has ended.
    """

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        self.name = name
        self.pid = 0
        self.exits: list[int] = []
        self.log = folder / f"{name}.log"
        self._command = command
        self._folder = folder
        self._closing = False
        self._thread = threading.Thread(target=self._listen, name=name)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Do not listen again."""
        self._closing = True

    def join(self) -> None:
        """Wait until the last process has ended."""
        if self._thread.is_alive():
            self._thread.join()

    def _listen(self) -> None:
        code = -1
        while not self._closing:
            with open(self.log, "ab") as log:
                process = subprocess.Popen(
                    self._command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=log, process_group=0,
                )  # fmt: skip
            self.pid = process.pid
            if code == 0:
                self.exits.append(code)  # now, so that who looks finds a process that listens
            code = process.wait()
            if code and not self._closing:
                self.exits.append(code)
                time.sleep(1)  # as RestartSec=


class Host:
    """Everything that runs, from `with` to its end.

    Args:
        consumers: the content of consumers/NAME.toml, by name; FOLDER in it is the folder.
        settings: the content of wakeq.toml.
        files: what is copied into the folder.
    """

    def __init__(self, consumers: dict[str, str], settings: str, files: list[Path]) -> None:
        # Ctrl+C in the terminal goes to all its processes: hence the process groups below.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)
        self.folder = Path(tempfile.mkdtemp(prefix="wakeq-demo-"))
        self.redis_url = f"unix://{self.folder}/redis.sock"
        self.redis = redis.Redis(unix_socket_path=str(self.folder / "redis.sock"))
        self._where = [
            f"--config-dir={self.folder}/etc",
            f"--runtime-dir={self.folder}/run",
            f"--redis-url={self.redis_url}",
        ]
        self.consumers = {
            name: Consumer(name, self._listening(name), self.folder) for name in consumers
        }
        self._texts = consumers
        self._settings = settings
        self._files = files
        self._environ = {k: v for k, v in os.environ.items() if not k.startswith("WAKEQ_")}

    def __enter__(self) -> Self:
        """Start everything."""
        try:
            self._write_files()
            self._start_redis()
            for consumer in self.consumers.values():
                consumer.start()
            self._start_daemon("wakeup")
            self._start_daemon("delay")
        except BaseException as error:
            self.__exit__(None, error, None)
            raise
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """End everything, consumers first, Redis last, and remove the folder."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for consumer in self.consumers.values():
            consumer.close()
        self._stop(lambda name: name != "redis-server")
        for consumer in self.consumers.values():
            consumer.join()
        self._stop(lambda name: True)
        self.redis.close()
        # Only now: a consumer writes much of its log when it ends, to start quicker.
        if isinstance(error, DemoError):
            self._show_logs(error.logs)
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> dict[int, str]:
        """Return the name of each process of this host, by its id: they live in its folder."""
        found = {}
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                place = os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")
                words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
            except OSError:
                continue  # it has ended, or is another user's
            if place == str(self.folder):
                # "python -P /…/wakeq-consumer sizes"; "redis-server unixsocket:/…/redis.sock"
                words = [word for word in words if word != "-P"]
                word = words[1] if "/python" in words[0] else words[0].partition(" ")[0]
                if word == "-m":
                    word = words[2]  # a part of wakeq-delay
                found[pid] = os.path.basename(word)
        return found

    def wakeq(self, *words: str) -> str:
        """Run the command `wakeq` and return what it prints."""
        done = subprocess.run(
            [BIN / "wakeq", *self._where, *words], env=self._environ,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT_SECONDS,
            process_group=0, check=False,
        )  # fmt: skip
        if done.returncode:
            raise DemoError(f"wakeq {words[0]} exited with {done.returncode}: {done.stderr}")
        return done.stdout

    def wait(self, what: str, holds: Callable[[], Any]) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                raise DemoError(f"{what}: not within {WAIT_SECONDS} s")
            time.sleep(0.01)

    def _listening(self, name: str) -> list[str]:
        path = f"{self.folder}/run/consumer/{name}.sock"
        return ["systemd-socket-activate", "-l", path, f"{BIN}/wakeq-consumer", name, *self._where]

    def _write_files(self) -> None:
        (self.folder / "etc/consumers").mkdir(parents=True)
        (self.folder / "run/consumer").mkdir(parents=True)
        for name, text in self._texts.items():
            path = self.folder / f"etc/consumers/{name}.toml"
            path.write_text(text.replace("FOLDER", str(self.folder)))
        settings = self._settings.replace("FOLDER", str(self.folder))
        (self.folder / "etc/wakeq.toml").write_text(settings)
        for file in self._files:
            shutil.copy(file, self.folder)

    def _start(self, name: str, *command: str | Path, **environ: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            subprocess.Popen(
                command, cwd=self.folder, env=self._environ | environ, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, process_group=0,
            )  # fmt: skip

    def _start_redis(self) -> None:
        # Port 0: none. Nothing is kept on disk.
        self._start(
            "redis", "redis-server", "--port", "0", "--unixsocket", self.folder / "redis.sock",
            "--save", "", "--appendonly", "no", "--dir", self.folder,
        )  # fmt: skip
        self.wait("redis-server answers", self._redis_answers)

    def _redis_answers(self) -> bool:
        try:
            return bool(self.redis.ping())
        except redis.exceptions.ConnectionError:
            return False

    def _start_daemon(self, name: str) -> None:
        # As systemd does with Type=notify: READY=1 comes when all consumers are being watched,
        # and all that is delayed is known.
        path = self.folder / f"notify-{name}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(path))
            notify.settimeout(WAIT_SECONDS)
            self.wait("the consumers' sockets", self._are_listening)
            self._start(name, BIN / f"wakeq-{name}", *self._where, NOTIFY_SOCKET=str(path))
            try:
                while b"READY=1" not in notify.recv(4096):
                    pass
            except TimeoutError:
                raise DemoError(f"wakeq-{name} does not become ready", name) from None

    def _are_listening(self) -> bool:
        return all((self.folder / f"run/consumer/{name}.sock").exists() for name in self.consumers)

    def _show_logs(self, names: tuple[str, ...]) -> None:
        for name in names:
            lines = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()
            # Without those of systemd-socket-activate.
            lines = [x for x in lines if not x.startswith(("Listening", "Comm", "Execing"))]
            if lines:
                print(f"\nThe end of the log of {name}:", file=sys.stderr)
                print(*(f"  {line}" for line in lines[-LOG_LINES:]), sep="\n", file=sys.stderr)

    def _stop(self, concerned: Callable[[str], bool]) -> None:
        """Have processes end; those that take long are killed."""
        deadline = time.monotonic() + STOP_SECONDS
        told: set[int] = set()
        while pids := {pid for pid, name in self.processes().items() if concerned(name)}:
            late = time.monotonic() > deadline
            for pid in pids if late else pids - told:
                try:
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
                except ProcessLookupError:
                    pass  # it has ended in the meantime
            told |= pids
            time.sleep(0.01)


def _interrupt(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)
