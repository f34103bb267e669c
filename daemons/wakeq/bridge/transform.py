"""What becomes of a message: by default its JSON object becomes the fields.

A transform is a callable or a program: one message in, any number out. What it raises, `Reject`
among it, is for who calls it.
"""

import inspect
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from json.decoder import JSONDecoder, scanstring  # type: ignore[attr-defined]  # undocumented
from typing import Any

from wakeq.config import Consumer
from wakeq.consumer.handler import find
from wakeq.consumer.program import Runner, in_memory, judge
from wakeq.errors import ConfigError, TimedOut
from wakeq.journal import Log
from wakeq.message import BODY, OWN_PREFIX, Message, encode
from wakeq.sections import Bridge
from wakeq.worker import tied

Items = list[bytes]  # field, value, field, value …
Transform = Callable[["Received"], Iterable[Items]]

# Lua passes no more than 8000 arguments on; some are for what is added.
_MOST_FIELDS = 3900
_NO_ID = b"0-0"
_READ_BYTES = 65536
_BLANK = " \t\r\n"
# What json.loads calls, and says where the value ends; a third of the time of json.loads.
_decoder: Any = JSONDecoder()
_scan = _decoder.scan_once
_WORDS = {True: b"true", False: b"false", None: b"null"}


class Received(Message):
    """A message as it was received, not in a stream yet.

    Attributes:
        channel: the channel that it was published to, or the list that it was taken from.
    """

    __slots__ = ("channel",)

    def __init__(self, channel: bytes, body: bytes) -> None:
        super().__init__("", 0, _NO_ID, (BODY, body))
        self.channel = channel.decode(errors="backslashreplace")


def fields(body: bytes) -> Items:
    """Return the fields that a message has by default.

    Those of a JSON object: text as it is, anything else in the very words of the message, so that
    no number loses a digit. Of a name that stands there twice, the last value counts. What is no
    object, or cannot be fields, is the field `body`.
    """
    try:
        text = body.decode()
        found, end = _scan(text, 0)
        if end != len(text):
            raise ValueError
    except (ValueError, StopIteration, RecursionError):
        found = _scan_all(body)
    if type(found) is not dict or len(found) > _MOST_FIELDS:
        return [BODY, body]
    items: Items = []
    try:
        for name, value in found.items():
            if type(value) is str:
                items += (name.encode(), value.encode())
            elif type(value) is int and (value or b"-0" not in body):
                items += (name.encode(), b"%d" % value)
            elif type(value) is bool or value is None:
                items += (name.encode(), _WORDS[value])
            else:
                items = _literally(body.decode())
                break
    except UnicodeEncodeError:  # half a surrogate pair: no text that UTF-8 can say
        return [BODY, body]
    # Few messages can have such a name, and looking at each takes as long as all the rest.
    if (OWN_PREFIX in body or b"\\u" in body) and any(
        name.startswith(OWN_PREFIX) for name in items[::2]
    ):
        return [BODY, body]
    return items


def _scan_all(body: bytes) -> Any:
    """Return the value of a text with blanks around it; None if it is not JSON."""
    try:
        text = body.decode().strip(_BLANK)
        found, end = _scan(text, 0)
    except (ValueError, StopIteration, RecursionError):
        return None
    return found if end == len(text) else None


def _literally(text: str) -> Items:
    """Return the members of a JSON object, known to be one, with their values as they stand."""
    values: dict[bytes, bytes] = {}
    at = _past_blanks(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = scanstring(text, at + 1, True)
        at = _past_blanks(text, _past_blanks(text, at) + 1)  # the colon
        value, end = _scan(text, at)
        said = value if type(value) is str else text[at:end]
        values[name.encode()] = said.encode()
        at = _past_blanks(text, end)
        if text[at] == ",":
            at = _past_blanks(text, at + 1)
    return [part for pair in values.items() for part in pair]


def _past_blanks(text: str, at: int) -> int:
    while text[at] in _BLANK:
        at += 1
    return at


def load(settings: Bridge, where: str) -> Transform | None:
    """Return the transform that the settings name; None if it is the default.

    Raises:
        ConfigError: it cannot be imported, is not callable, or the program does not exist.
    """
    if settings.transform:
        return _callable(settings.transform, settings.timeout, where)
    if settings.exec_:
        return _program(settings.exec_, settings.timeout, where)
    return None


def _callable(path: str, timeout: float, where: str) -> Transform:
    what = f"{where}: transform {path!r}"
    call = find(path, what)
    if inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call):
        raise ConfigError(f"{what} must be a plain function, not an async one")

    def transform(message: Received) -> list[Items]:
        with _limit(timeout):
            return list(_outcome(call(message)))

    return transform


def _outcome(returned: object) -> Iterator[Items]:
    """Yield the fields of each message that a callable has returned."""
    if returned is None:
        return
    if isinstance(returned, str | bytes):
        yield encode(returned)
    elif isinstance(returned, Mapping):
        yield _checked(encode(None, returned)) if returned else []
    elif isinstance(returned, Iterable):
        for one in returned:
            if one is None or not isinstance(one, str | bytes | Mapping):
                raise _wrong(one)
            yield from _outcome(one)
    else:
        raise _wrong(returned)


def _wrong(returned: object) -> TypeError:
    return TypeError(
        f"a transform returns a dict of fields, text, bytes, a list of those, or None,"
        f" not {returned!r:.100}"
    )


def _checked(items: Items) -> Items:
    if len(items) > 2 * _MOST_FIELDS:
        raise ValueError(f"a message has at most {_MOST_FIELDS} fields, not {len(items) // 2}")
    return items


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raise TimedOut in what takes longer; 0 is no limit. What never returns to Python, hangs."""
    if not seconds:
        yield
        return

    def overdue(_number: int, _frame: object) -> None:
        raise TimedOut

    signal.signal(signal.SIGALRM, overdue)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _program(argv: list[str], timeout: float, where: str) -> Transform:
    """Return the transform that runs a program: each line that it prints is a message."""
    settings = Consumer()
    settings.exec_ = argv
    runner = Runner(settings, where)
    log = Log("bridge")

    def transform(message: Received) -> Sequence[Items]:
        environment = runner.environment(message)
        for name in (b"WAKEQ_STREAM", b"WAKEQ_GROUP", b"WAKEQ_MESSAGE_ID", b"WAKEQ_ATTEMPT"):
            environment.pop(name, None)
        environment[b"WAKEQ_CHANNEL"] = os.fsencode(message.channel).replace(b"\0", b"?")
        code, said, errors = _run(argv, message.body, environment, timeout)
        for line in errors.decode(errors="backslashreplace").splitlines():
            log.info(line, channel=message.channel, program=argv[0])
        judge(code, False)
        return [_checked(fields(line)) for line in said.split(b"\n") if line]

    return transform


def _run(
    argv: list[str], body: bytes, environment: dict[bytes, bytes], timeout: float
) -> tuple[int, bytes, bytes]:
    """Run a program; return its exit code, and what it printed on stdout and stderr.

    Raises:
        TimedOut: it took longer, and was killed with all that it started.
    """
    stdin = in_memory(body)
    try:
        process = subprocess.Popen(
            argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
            process_group=0, preexec_fn=tied(),  # noqa: PLW1509  (a worker has one thread)
        )  # fmt: skip
    finally:
        os.close(stdin)
    with process:
        try:
            said, errors = _listen(process, timeout)
        finally:
            # With all that it has started: until it is waited for, the group is nobody else's.
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said, errors


def _listen(process: subprocess.Popen[bytes], timeout: float) -> tuple[bytes, bytes]:
    """Return what a program prints until it ends; what it left running may have its pipes still."""
    assert process.stdout is not None
    assert process.stderr is not None
    said = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    poll = select.poll()
    for output in said:
        os.set_blocking(output, False)
        poll.register(output, select.POLLIN)
    ended = os.pidfd_open(process.pid)
    poll.register(ended, select.POLLIN)
    deadline = time.monotonic() + timeout
    try:
        events: dict[int, int] = {}
        while ended not in events:
            wait = (deadline - time.monotonic()) * 1000 if timeout else None
            if wait is not None and wait <= 0:
                raise TimedOut
            events = dict(poll.poll(wait))
            for output in events.keys() & said.keys():
                if _read_all(output, said[output]):
                    poll.unregister(output)
    finally:
        os.close(ended)
    process.wait()
    for output, text in said.items():
        _read_all(output, text)
    first, second = said.values()
    return bytes(first), bytes(second)


def _read_all(output: int, said: bytearray) -> bool:
    """Take what there is; tell whether that was the end."""
    while True:
        try:
            chunk = os.read(output, _READ_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            return True
        said += chunk
