"""Logging: structured events to the journal, or readable lines to a terminal.

    log = journal.Log("consumer")
    log.info("consumer woke", stream="orders", group="billing")

Fields reach the journal as `WAKEQ_STREAM` and so on, so `journalctl WAKEQ_MESSAGE_ID=…`
follows one message through all daemons. Events that operators search have a fixed MESSAGE_ID,
the constants below.

structlog and systemd.journal take longer to import than a consumer takes to start. Events
wait in memory until `open_log` is called; the runner calls it before the process ends, however
it ends.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    from typing import Any


_LEVELS = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_WAITING_MOST = 1000

# MESSAGE_ID of the events that operators search (systemd-id128 new).
CONSUMER_STARTED = "8f154a43164a413d914a910b8a26251f"
CONSUMER_SLEPT = "c7496aaf47ed43fb941a1072588a7c99"
MESSAGE_FAILED = "6271a943726d4d7daffbae67155dda5e"
MESSAGE_DEAD = "f26e6dff11c9443abd3a2c601b6ea55b"
REDIS_LOST = "f2670029fe17489c851b2a4939e2f72d"
REDIS_BACK = "e5fc7b843f814303860c8a09587ea82b"
GROUP_MADE_AGAIN = "b84ec2f6d6e1479db4e21767b6c53b0c"
MESSAGES_CLAIMED = "274bee6adfc942a8b9a57c4ba7af6eaa"
GROUP_TAKEN_OVER = "8a1964fe1f6447f19de7896cf9d05bb8"
MESSAGES_HANDED_BACK = "cb64d91c4e9c4f73b932ccf9a4736132"
DELIVERY_PUT_OFF = "30fe8b122ebc4811ab3d7d16e59305c1"
REPAIR_FAILED = "55a268c0425b4b72a3887b3940009f1f"
CONSUMER_BACKED_OFF = "96221ba0583c422daea3088fef92c86f"
CONSUMER_RECOVERED = "fb29285ff9b842dc805fe7e9e277e148"
LEADER_ELECTED = "07d8f90c682c4beda1117901a41e7a31"
LEADER_LOST = "096bb9d3392941d28a4c1c627f185617"
NODE_ELECTED = "5ca39db125714f21a9b13eda08cdbaef"
NODE_LOST = "cd1947604781489198c05e8f0f06cbc9"
TIMES_MISSED = "cd41f3c90b304be7aaf7450becc05ac1"
GENERATE_FAILED = "832fdff165074bcebfce3446cbe53423"
CONSUMING_ENDED = "0be5a600931a46e78a7a91630a56ffff"
MESSAGE_IN_ERROR_LIST = "fb1703f8b6a54244bcf6623360551b79"
MESSAGES_PUT_BACK = "de742974a06443bda9f9f62756c4e4b8"
MESSAGES_LOST = "ae2114e8c17844279e211390f0aee60e"
BRIDGE_DEAD = "c06fe2d4f903419ebe8f926fcb781c67"
BRIDGE_CUT = "48938d7d978045098d8bda6b1d84cb28"
BRIDGE_FULL = "52625b3700d942c389f9b06a289ab5a3"
WORKER_ENDED = "9158d5af8b174b5f951c313bbf6ab9af"

Fields = dict[str, object]

_waiting: list[tuple[float, int, str, str, Fields]] = []
_sink: Any = None
_least = _LEVELS["info"]


class Log:
    """Logs the events of one part of wakeq."""

    def __init__(self, component: str) -> None:
        self.component = component

    def debug(self, event: str, **fields: Any) -> None:
        """Log what only who looks for it wants to see."""
        self._log(7, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Log what an operator reads when all is well."""
        self._log(6, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log what is wrong but heals or is handled."""
        self._log(4, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log what needs somebody."""
        self._log(3, event, fields)

    def last(self, event: str) -> None:
        """Log what the process ends for.

        journald does not know any more to which unit a process belongs that has ended by the time
        that its entry is read; what it prints goes over a connection that is known.
        """
        if not _to_journal():
            self.error(event)
            return
        if _waiting:
            open_log()
        # With its priority, sd-daemon(3).
        text = "".join(f"<{_LEVELS['error']}>{line}\n" for line in event.splitlines())
        try:
            os.write(sys.stderr.fileno(), text.encode(errors="backslashreplace"))
        except OSError:
            pass  # there is nobody left to be told

    def _log(self, priority: int, event: str, fields: Fields) -> None:
        if priority > _least:
            return
        record = (time.time(), priority, self.component, event, fields)
        if _sink is not None:
            _sink(*record)
        elif len(_waiting) < _WAITING_MOST:
            _waiting.append(record)


def set_level(level: str) -> None:
    """Log nothing below this level: `debug`, `info` or `warning`."""
    global _least
    _least = _LEVELS[level]


def open_log() -> None:
    """Load what logging needs, write what has been waiting, and write at once from now on."""
    global _sink
    if _sink is not None:
        return
    try:
        _sink = _journal_sink() if _to_journal() else _terminal_sink()
    except ImportError:  # systemd's module is of another Python than python= says
        _sink = _terminal_sink()
    for record in _waiting:
        _sink(*record)
    _waiting.clear()


def has_waiting() -> bool:
    """Tell whether events wait to be written."""
    return bool(_waiting)


def describe(error: BaseException) -> str:
    """Return the traceback of an error of the user's code, without the frames of wakeq."""
    import traceback  # only an error pays for it

    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(os.path.dirname(__file__))
    ]
    lines = traceback.format_list(frames)
    if lines:
        lines.insert(0, "Traceback (most recent call last):\n")
    return "".join([*lines, *traceback.format_exception_only(error)]).rstrip()


def _to_journal() -> bool:
    """Tell whether stderr goes to the journal (systemd.exec(5), $JOURNAL_STREAM)."""
    try:
        stat = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def _journal_sink() -> Any:
    import structlog
    from systemd import journal

    names = {"event_id": "MESSAGE_ID", "priority": "PRIORITY", "identifier": "SYSLOG_IDENTIFIER"}

    def write(_logger: object, _method: str, event: Any) -> str:
        text, detail = event.pop("event"), event.pop("detail", None)
        fields = [_field("MESSAGE", f"{text}\n{detail}" if detail else text)]
        for name, value in event.items():
            fields.append(_field(names.get(name) or f"WAKEQ_{name.upper()}", value))
        try:
            # Not journal.send, which looks for its caller in the stack, and would find this.
            journal.sendv(*fields)
        except OSError:
            pass  # a journal that is down or full must not stop the handling of messages
        raise structlog.DropEvent

    logger = structlog.wrap_logger(None, processors=[write])

    def sink(_time: float, priority: int, component: str, event: str, fields: Fields) -> None:
        identifier = f"wakeq-{component}"
        logger.info(event, priority=priority, identifier=identifier, **fields)

    return sink


def _field(name: str, value: object) -> bytes:
    raw = value if isinstance(value, bytes) else str(value).encode(errors="backslashreplace")
    return b"%b=%b" % (name.encode(), raw)


def _terminal_sink() -> Any:
    import structlog

    colors = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    render = structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False, pad_event=34)

    def write(_logger: object, method: str, event: Any) -> str:
        detail = event.pop("detail", None)
        event.pop("event_id", None)
        line = str(render(None, method, event))
        return f"{line}\n{detail}" if detail else line

    logger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr), processors=[write], wrapper_class=structlog.BoundLogger
    )
    names = {number: name for name, number in _LEVELS.items()}

    def sink(when: float, priority: int, component: str, event: str, fields: Fields) -> None:
        stamp = time.strftime("%H:%M:%S", time.localtime(when)) + f".{int(when % 1 * 1000):03}"
        try:
            getattr(logger, names[priority])(
                event, timestamp=stamp, level=names[priority], logger=f"wakeq-{component}", **fields
            )
        except OSError:
            # Whoever read our stderr is gone; the messages are not. What could not be written
            # stays in the file's buffer, and would fail once more when the process ends.
            sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (until the end)

    return sink
