"""wakeq wake: start a consumer by connecting to its socket, as wakeq-wakeup does."""

import json
import os
import socket
from typing import Any

from wakeq.cli.parser import Arguments, Subparsers, add_json, seconds
from wakeq.cli.session import Session
from wakeq.config import instance_base
from wakeq.errors import ConfigError, RefusedError, UnavailableError

_EXAMPLES = """\
  wakeq wake orders          start it, and see what it does
  wakeq wake orders:2        another instance of it
  wakeq wake orders --wait   and return when it has gone to sleep
"""
# An answer is one line of some hundred bytes.
_LONGEST_ANSWER = 65536


def add(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add(
        "wake", "Wake a consumer of this host, and show its answer.", _EXAMPLES, run
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--wait", action="store_true",
                        help="stay connected until the consumer has gone to sleep")  # fmt: skip
    parser.add_argument("--timeout", metavar="SPAN", type=seconds, default=30.0,
                        help="how long to wait for its answer (default: 30s)")  # fmt: skip
    add_json(parser)


def run(session: Session, arguments: Arguments) -> int:
    """Connect, print the answer, and wait for the end if asked to."""
    name = arguments.name
    instance_base(name)
    path = os.path.join(session.config.place.runtime_dir, "consumer", f"{name}.sock")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(arguments.timeout)
        _connect(connection, path, name)
        line = _ask(connection, name, arguments.timeout)
        print(line if arguments.json else _sentence(name, _parsed(name, line)), flush=True)
        if arguments.wait:
            _wait(connection)
    return 0


def _connect(connection: socket.socket, path: str, name: str) -> None:
    unit = f"wakeq-consumer@{name}.socket"
    try:
        connection.connect(path)
    except FileNotFoundError:
        raise UnavailableError(
            f"{name}: there is no socket {path}; to make it: systemctl enable --now {unit}"
        ) from None
    except ConnectionRefusedError:
        raise UnavailableError(
            f"{name}: nobody listens at {path}; to see why: systemctl status {unit}"
        ) from None
    except PermissionError:
        raise RefusedError(
            f"{name}: this user may not connect to {path}; be root or in the socket's group"
        ) from None
    except (TimeoutError, BlockingIOError):
        raise UnavailableError(f"{name}: {path} takes no more connections now") from None
    except OSError as error:
        raise ConfigError(f"{name}: {path}: {error.strerror or error}") from None


def _ask(connection: socket.socket, name: str, timeout_s: float) -> str:
    """Return the line that the consumer answers."""
    received = b""
    try:
        connection.sendall(b"status\n")
        while b"\n" not in received and len(received) < _LONGEST_ANSWER:
            chunk = connection.recv(4096)
            if not chunk:
                raise UnavailableError(
                    f"{name}: was woken but left without an answer; to see why:"
                    f" journalctl -u wakeq-consumer@{name}.service"
                )
            received += chunk
    except TimeoutError:
        raise UnavailableError(
            f"{name}: was woken, but did not answer within {timeout_s:g} s; to see why:"
            f" systemctl status wakeq-consumer@{name}.service"
        ) from None
    except OSError as error:
        raise UnavailableError(f"{name}: the connection broke: {error.strerror}") from None
    return received.partition(b"\n")[0].decode(errors="replace")


def _parsed(name: str, line: str) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise UnavailableError(f"{name}: gave an answer that is none: {line[:200]!r}")
    return answer


def _sentence(name: str, answer: dict[str, Any]) -> str:
    state = answer.get("state", "awake")
    figures = [
        f"{answer[key]:,} {word}" if isinstance(answer.get(key), int) else ""
        for key, word in (("in_hand", "in hand"), ("handled", "handled"), ("failed", "failed"))
    ]
    if isinstance(rate := answer.get("rate"), int | float):
        figures.append(f"{rate:,.0f}/s")
    if "pid" in answer:
        figures.append(f"pid {answer['pid']}")
    return f"{answer.get('name', name)}: {state}, " + ", ".join(filter(None, figures))


def _wait(connection: socket.socket) -> None:
    connection.settimeout(None)
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass  # gone too
