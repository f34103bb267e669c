"""The process that repairs messages, one at a time: python -m wakeq.delay.repair FD.

A process of its own, so that a repair that computes for long, hangs or crashes harms neither the
delivery of other messages nor the daemon. It ends when the daemon does.
"""

import inspect
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from wakeq import journal
from wakeq.config import Consumer
from wakeq.consumer.handler import find
from wakeq.consumer.program import Runner, judge
from wakeq.delay.failed import BAD, CHANGED, FAILED, READY, SAME, FailedMessage
from wakeq.errors import ConfigError, HandlerFailure, Reject, Retry
from wakeq.message import BODY, encode
from wakeq.worker import Inbox, packed, receive

_LONGEST_ERROR = 1000
_LONGEST_TRACEBACK = 8000

Changes = dict[bytes, bytes]
Repair = Callable[[FailedMessage], Changes]


def callable_repair(path: str) -> Repair:
    """Return the repair that calls a callable.

    Raises:
        ConfigError: it cannot be imported or called.
    """
    what = f"[delay] repair {path!r}"
    call = find(path, what)
    if inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call):
        raise ConfigError(f"{what} must be a plain function, not an async one")

    def repair(message: FailedMessage) -> Changes:
        changes: object = call(message)
        if changes is None:
            return {}
        if not isinstance(changes, Mapping):
            raise TypeError(f"a repair returns None or a dict of fields, not {changes!r:.100}")
        items = iter(encode(None, changes) if changes else [])
        return dict(zip(items, items, strict=True))

    return repair


def program_repair(argv: list[str]) -> Repair:
    """Return the repair that runs a program.

    Raises:
        ConfigError: there is no such program.
    """
    log = journal.Log("delay")
    _runner(argv, "", "")

    def repair(message: FailedMessage) -> Changes:
        environment = _runner(argv, message.stream, message.group).environment(message)
        environment[b"WAKEQ_ERROR"] = message.own(b"wakeq.error") or b""
        done = subprocess.run(
            argv, input=message.body, capture_output=True, env=environment, check=False
        )
        for line in done.stderr.decode(errors="backslashreplace").splitlines():
            log.info(
                line, stream=message.stream, group=message.group, message_id=message.id,
                program=argv[0],
            )  # fmt: skip
        judge(done.returncode, False)
        return {BODY: done.stdout} if done.stdout else {}

    return repair


def _runner(argv: list[str], stream: str, group: str) -> Runner:
    settings = Consumer()
    settings.exec_, settings.stream, settings.group = argv, stream, group
    try:
        return Runner(settings, "[delay] repair_exec")
    except ConfigError as error:
        raise ConfigError(str(error).replace(": exec: ", ": ")) from None


def answer(repair: Repair, job: list[Any]) -> tuple[Any, ...]:
    """Repair one message and return what to say of it."""
    stream, group, first_id, items = job
    try:
        changes = repair(FailedMessage(stream, group, first_id, items))
    # Whatever it raises, also by an exit, is its failure.
    except (Exception, SystemExit) as error:
        text = " ".join(f"{type(error).__name__}: {error}".rstrip(": ").split())[:_LONGEST_ERROR]
        plain = isinstance(error, Reject | Retry | HandlerFailure)
        trace = "" if plain else journal.describe(error)[-_LONGEST_TRACEBACK:]
        return (FAILED, text, trace)
    return (CHANGED, changes) if changes else (SAME,)


def main() -> int:
    """Repair what is sent until the daemon hangs up."""
    # A terminal's Ctrl+C is for the daemon, which lets the repair finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(channel.fileno(), False)
    journal.open_log()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a callable prints is in the journal at once.
        sys.stdout.reconfigure(line_buffering=True)
    inbox = Inbox()
    repair: Repair | None = None
    while piece := receive(channel):
        said = inbox.take(piece)
        if said is None:
            continue
        if repair is not None:
            reply = answer(repair, said)
        else:
            path, argv = said
            try:
                repair = callable_repair(path) if path else program_repair(argv)
                reply = (READY,)
            except ConfigError as error:
                reply = (BAD, str(error))
        try:
            channel.sendall(packed(reply))
        except OSError:
            return 0  # the daemon is gone; whoever comes next has the message repaired again
    return 0


if __name__ == "__main__":
    sys.exit(main())
