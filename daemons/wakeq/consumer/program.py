"""Programs as handlers: one run for each message.

The body is the program's standard input, a file in memory, so that it may be of any size and
read at leisure. The fields and the id are in its environment. What it prints on stdout or
stderr goes to the log line by line, with the message's id.

Exit code 0: handled. 65 (EX_DATAERR): can never be handled. 75 (EX_TEMPFAIL) or another one,
or a signal: failed, may be handled later.
"""

import os
import select
import signal
import subprocess
import threading
from time import monotonic

from wakeq.config import Consumer
from wakeq.errors import (
    EX_DATAERR,
    EX_TEMPFAIL,
    ConfigError,
    ProgramFailed,
    Reject,
    Retry,
    TimedOut,
)
from wakeq.journal import Log
from wakeq.message import Message

# What the service manager gave to us is not for the program.
_NOT_INHERITED = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID",
                  "WATCHDOG_USEC", "WAKEQ_FAILPOINT")  # fmt: skip
_KILL_AFTER_SECONDS = 5.0
_END_SECONDS = 1.0
# execve(2) takes no longer string in the environment (MAX_ARG_STRLEN).
_LONGEST_VARIABLE = 128 * 1024 - 1
_LONGEST_LINE = 16 * 1024
_LETTERS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


class Runner:
    """Runs the program of a consumer; may be used by several threads at once.

    Args:
        settings: the consumer's settings.
        where: what to call the consumer in an error.

    Raises:
        ConfigError: the program does not exist or is not executable.
    """

    def __init__(self, settings: Consumer, where: str) -> None:
        self._argv = settings.exec_
        self._timeout = settings.timeout or float("inf")
        self._stream, self._group = settings.stream, settings.group
        self._log = Log("consumer")
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        path = self._argv[0]
        if not os.path.exists(path):
            raise ConfigError(f"{where}: exec: there is no program {path}")
        if os.path.isdir(path) or not os.access(path, os.X_OK):
            raise ConfigError(f"{where}: exec: {path} is not executable")
        self._base = {
            os.fsencode(name): os.fsencode(value)
            for name, value in os.environ.items()
            if name not in _NOT_INHERITED
        }
        self._base[b"WAKEQ_STREAM"] = self._stream.encode()
        self._base[b"WAKEQ_GROUP"] = self._group.encode()

    def run(self, message: Message) -> None:
        """Run the program for one message.

        Raises:
            Reject: it exited with 65.
            Retry: it exited with 75.
            ProgramFailed: it exited with another code, or by a signal.
            TimedOut: it took longer than `timeout`; it was terminated, then killed.
        """
        body = in_memory(message.body)
        try:
            environment = self.environment(message)
            with self._lock:  # nothing is started unknown to `kill_all`
                process = subprocess.Popen(
                    self._argv,
                    stdin=body,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    process_group=0,  # so that what it starts can be ended with it
                )
                self._running.add(process)
        finally:
            os.close(body)
        try:
            timed_out = self._attend(process, message)
        finally:
            with self._lock:
                self._running.discard(process)
        judge(process.returncode, timed_out)

    def kill_all(self) -> None:
        """Kill every program that is running, with all that it started, and see it end."""
        with self._lock:
            killed = list(self._running)
            for process in killed:
                _signal_group(process, signal.SIGKILL)
        for process in killed:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                pass  # it is stuck in the kernel; its end is left to who comes after us

    def environment(self, message: Message) -> dict[bytes, bytes]:
        """Return the environment that a program gets with a message."""
        environment = dict(self._base)
        environment[b"WAKEQ_MESSAGE_ID"] = message.id.encode()
        environment[b"WAKEQ_ATTEMPT"] = b"%d" % message.attempt
        left_out = []
        for name, value in message.fields.items():
            if name == b"body":
                continue
            variable = b"WAKEQ_FIELD_" + bytes(
                letter if letter in _LETTERS else ord("_") for letter in name.upper()
            )
            if b"\0" in value or len(variable) + len(value) >= _LONGEST_VARIABLE:
                left_out.append(name)
            else:
                environment[variable] = value
        if left_out:
            names = b" ".join(left_out).replace(b"\0", b"?")
            environment[b"WAKEQ_FIELDS_LEFT_OUT"] = names[:_LONGEST_LINE]
        return environment

    def _attend(self, process: "subprocess.Popen[bytes]", message: Message) -> bool:
        """Log what a program prints until it ends; return whether it had to be ended."""
        assert process.stdout is not None
        output = process.stdout.fileno()
        os.set_blocking(output, False)
        ended = os.pidfd_open(process.pid)
        poll = select.poll()
        poll.register(output, select.POLLIN)
        poll.register(ended, select.POLLIN)
        deadline = monotonic() + self._timeout
        next_signal = signal.SIGTERM
        timed_out = False
        line = b""
        try:
            while True:
                wait = deadline - monotonic()
                events = dict(poll.poll(None if wait == float("inf") else max(0.0, wait * 1000)))
                if output in events:
                    line, at_end = self._read(output, line, message)
                    if at_end:
                        poll.unregister(output)
                if ended in events:
                    break
                if monotonic() >= deadline:
                    timed_out = True
                    _signal_group(process, next_signal)
                    next_signal = signal.SIGKILL
                    deadline = monotonic() + _KILL_AFTER_SECONDS
            # What it left running may hold the pipe open: take what is there, wait for no more.
            line, _ = self._read(output, line, message)
        finally:
            os.close(ended)
            if timed_out:
                # What it has started may have outlived SIGTERM. Until it is waited for, its
                # process group is nobody else's.
                _signal_group(process, signal.SIGKILL)
            process.wait()
            process.stdout.close()
        if line:
            self._say(line, message)
        return timed_out

    def _read(self, output: int, line: bytes, message: Message) -> tuple[bytes, bool]:
        """Log the whole lines that can be read; return the begun one and whether that was all."""
        while True:
            try:
                chunk = os.read(output, 65536)
            except BlockingIOError:
                return line, False
            *lines, line = (line + chunk).split(b"\n")
            for text in lines:
                self._say(text, message)
            if len(line) > _LONGEST_LINE:
                self._say(line, message)
                line = b""
            if not chunk:
                return line, True

    def _say(self, line: bytes, message: Message) -> None:
        self._log.info(
            line.decode(errors="backslashreplace"),
            stream=self._stream,
            group=self._group,
            message_id=message.id,
            program=self._argv[0],
        )


def judge(code: int, timed_out: bool) -> None:
    """Take what a program ended with: its exit code, or less than 0, a signal.

    Raises:
        HandlerFailure: it failed.
        Reject, Retry: so it says.
    """
    if timed_out:
        raise TimedOut
    if code == EX_DATAERR:
        raise Reject("the program exited with 65, EX_DATAERR")
    if code == EX_TEMPFAIL:
        raise Retry("the program exited with 75, EX_TEMPFAIL")
    if code < 0:
        raise ProgramFailed(f"the program was ended by {_signal_name(-code)}")
    if code:
        raise ProgramFailed(f"the program exited with {code}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # most real-time signals have no name of their own


def _signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # it has ended in the meantime


def in_memory(body: bytes) -> int:
    """Return a file in memory with a body, to be closed."""
    file = os.memfd_create("wakeq-body", os.MFD_CLOEXEC)
    try:
        view = memoryview(body)
        while view:
            view = view[os.write(file, view) :]
        os.lseek(file, 0, os.SEEK_SET)
    except BaseException:
        os.close(file)
        raise
    return file
