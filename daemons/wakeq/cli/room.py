"""wakeq room: look at rooms, send to them, and listen."""

import itertools
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from wakeq.cli.parser import Arguments, Subparsers, add_json, count, name, positive
from wakeq.cli.screen import as_json, colours, paint, print_json, readable, span, table
from wakeq.cli.session import Session, warn
from wakeq.errors import MissingError, UnavailableError, UsageError, WakeqError

if TYPE_CHECKING:
    from wakeq.fanout.client import FanoutClient
    from wakeq.fanout.delivery import RoomMessage
    from wakeq.fanout.records import Queued, RoomMetrics, RoomState
    from wakeq.fanout.worker import FanoutWorker

_EXAMPLES = """\
  wakeq room list                               which rooms there are, and what waits
  wakeq room show auction-7                     who is there, and who is waited for
  wakeq room send auction-7 '{"bid": 120}'      send a message to all who are there
  wakeq room peek auction-7                     what waits
  wakeq room listen auction-7                   see what the others get
"""
_LIST_EXAMPLES = """\
  wakeq room list
  wakeq room list --by round_age --limit 3      those that have waited longest for somebody
  wakeq room list --json | jq -r .top[].room

Each room is asked, so with many of them it takes a moment.
"""
_SHOW_EXAMPLES = """\
  wakeq room show auction-7
  wakeq room show auction-7 --json | jq .clients
"""
_SEND_EXAMPLES = """\
  wakeq room send auction-7 hello
  wakeq room send auction-7 '{"bid": 120}' --producer ada --priority -1
  date | wakeq room send auction-7 -
  wakeq room send auction-7 'closing soon' --oob
"""
_PEEK_EXAMPLES = """\
  wakeq room peek auction-7
  wakeq room peek auction-7 --offset 100 --limit 0 --json | jq -r .data
"""
_LISTEN_EXAMPLES = """\
  wakeq room listen auction-7                   see what the others get; nobody waits for it
  wakeq room listen auction-7 --ack             take part, and acknowledge each message
  wakeq room listen auction-7 --by-hand         take part, and acknowledge with Enter
  wakeq room listen auction-7 --count 1 --json  the next message, for programs

Without --ack or --by-hand it is an observer: where nobody else is, messages wait. What takes part
holds up the room until it has acknowledged, and leaves it at the end.
"""
_NAME_BYTES_MOST = 1000
_BY = ("backlog", "delay", "clients", "waiting", "round_age", "rounds", "timeouts")
_HEADER = ("ROOM", "CLIENTS", "BACKLOG", "OLDEST", "WAITS FOR", "SINCE", "ROUNDS", "TIMEOUTS")
_CLIENTS = ("CLIENT", "MODE", "WAITED FOR", "HEARD", "TIMEOUT", "HERE FOR", "WORKER")


def add(subparsers: Subparsers) -> None:
    """Add the subcommands."""
    family = subparsers.add_family("room", "Look at rooms, send to them and listen.", _EXAMPLES)
    lister = family.add("list", "List rooms, with what waits in them.", _LIST_EXAMPLES, run_list)
    shower = family.add("show", "Show who is in a room, and what goes on.", _SHOW_EXAMPLES,
                        run_show)  # fmt: skip
    sender = family.add("send", "Send a message to all clients of a room.", _SEND_EXAMPLES,
                        run_send)  # fmt: skip
    peeker = family.add("peek", "Look at messages that wait in a room.", _PEEK_EXAMPLES, run_peek)
    listener = family.add("listen", "Show what is delivered in a room.", _LISTEN_EXAMPLES,
                          run_listen)  # fmt: skip
    lister.add_argument("--limit", metavar="N", type=count, default=100,
                        help="at most so many, 0 for all (default: 100)")  # fmt: skip
    lister.add_argument("--by", metavar="WHAT", choices=_BY, default="backlog",
                        help=f"with most of: {', '.join(_BY)} (default: backlog)")  # fmt: skip
    for parser in (shower, sender, peeker, listener):
        parser.add_argument("room", metavar="ROOM", type=_name)
    sender.add_argument("data", metavar="DATA", nargs="?", default="-",
                        help="what to send; - reads it from stdin")  # fmt: skip
    sender.add_argument("--producer", metavar="NAME", type=_name, help="who sends it")
    sender.add_argument("--priority", metavar="N", type=_priority, default=0,
                        help="lower ones are delivered first (default: 0)")  # fmt: skip
    sender.add_argument("--oob", action="store_true",
                        help="out of band: at once, to all who are there now")  # fmt: skip
    peeker.add_argument("--offset", metavar="N", type=_count, default=0,
                        help="pass over so many (default: 0)")  # fmt: skip
    peeker.add_argument("--limit", metavar="N", type=_count, default=10,
                        help="at most so many, 0 for all (default: 10)")  # fmt: skip
    takes_part = listener.add_mutually_exclusive_group()
    takes_part.add_argument("--ack", action="store_true", help="acknowledge each message")
    takes_part.add_argument("--by-hand", action="store_true",
                            help="acknowledge each message when Enter is pressed")  # fmt: skip
    listener.add_argument("--count", metavar="N", type=positive, help="end after so many")
    for parser in (lister, shower, sender, peeker, listener):
        add_json(parser)


def _name(text: str) -> str:
    """Return the name of a room or a producer, for argparse."""
    if len(name(text).encode()) > _NAME_BYTES_MOST:
        raise ArgumentTypeError(f"must have at most {_NAME_BYTES_MOST} bytes")
    return text


def _priority(text: str) -> int:
    """Return a priority, for argparse."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and int(digits) <= 2**53):
        raise ArgumentTypeError(f"must be a whole number, -2**53 to 2**53, not {text!r}")
    return int(text)


def _count(text: str) -> int:
    """Return a number of messages, for argparse."""
    if (found := count(text)) > 2**53:
        raise ArgumentTypeError("must be at most 2**53")
    return found


def _client(session: Session) -> "FanoutClient":
    from wakeq.fanout.client import FanoutClient

    return FanoutClient(session.url)


# -- looking ---------------------------------------------------------------------------------


def run_list(session: Session, arguments: Arguments) -> int:
    """Print a line for each room."""
    with _client(session) as rooms:
        found = rooms.metrics(top=arguments.limit or sys.maxsize, by=arguments.by)
    for broken in found.broken:
        shown = readable(broken.encode(), 40)
        warn(f"room {shown} is left out: Redis holds something other than a room has")
    if arguments.json:
        print_json(found._asdict() | {"top": [room._asdict() for room in found.top]})
        return 0
    if not found.rooms:
        print("No rooms: nobody is in one, and nothing waits.")
        return 0
    rows = [_HEADER, *map(_cells, found.top)]
    on = colours()
    for index, cells in enumerate(table(rows, range(1, len(_HEADER)))):
        print(paint("  ".join(cells).rstrip(), "" if index else "bold", on))
    if len(found.top) < found.rooms:
        warn(f"there are {found.rooms:,} rooms; --limit 0 shows all")
    return 0


def _cells(room: "RoomMetrics") -> tuple[str, ...]:
    oldest = span(room.delay) if room.backlog else ""
    waiting = (f"{room.waiting:,}", span(room.round_age)) if room.outstanding else ("", "")
    return (
        readable(room.room.encode(), 40), f"{room.clients:,}", f"{room.backlog:,}", oldest,
        *waiting, f"{room.rounds:,}", f"{room.timeouts:,}",
    )  # fmt: skip


def run_show(session: Session, arguments: Arguments) -> int:
    """Print the state of a room."""
    with _client(session) as rooms:
        state = rooms.room_state(arguments.room)
    metrics = state.metrics
    if metrics.is_empty and not (metrics.sent or metrics.oob or metrics.refused):
        raise MissingError(f"room {arguments.room}: nobody is there, and nothing was sent to it")
    if arguments.json:
        message = _as_json(state.message) if state.message else None
        clients = {client: of._asdict() for client, of in state.clients.items()}
        print_json({"metrics": metrics._asdict(), "clients": clients, "message": message})
        return 0
    _show(state)
    return 0


def _show(state: "RoomState") -> None:
    on, metrics = colours(), state.metrics
    print(paint(readable(metrics.room.encode(), 200), "bold", on))
    if state.message:
        who = f"waits for {metrics.waiting:,} of {metrics.sync:,}"
        print(f"  outstanding  {_line(state.message)}")
        print(f"               {who}, since {span(metrics.round_age)}")
    oldest = f", the oldest since {span(metrics.delay)}" if metrics.backlog else ""
    print(f"  backlog      {metrics.backlog:,}{oldest}")
    names = ("sent", "oob", "rounds", "acknowledged", "timeouts", "dropped", "refused", "missed",
             "invalid")  # fmt: skip
    figures = (f"{getattr(metrics, each):,} {each}" for each in names)
    print(f"  in all       {', '.join(figures)}")
    if not state.clients:
        return
    now = time.time()
    rows: list[tuple[str, ...]] = [_CLIENTS]
    for client, of in sorted(state.clients.items(), key=lambda item: not item[1].waiting):
        rows.append((
            readable(client.encode(), 40), of.mode, "yes" if of.waiting else "",
            f"{span(max(0.0, now - of.seen_at))} ago", span(of.timeout),
            span(max(0.0, now - of.joined_at)), readable(of.worker.encode(), 40),
        ))  # fmt: skip
    print()
    for index, cells in enumerate(table(rows, (3, 4, 5))):
        print(paint("  ".join(cells).rstrip(), "" if index else "bold", on))


def run_peek(session: Session, arguments: Arguments) -> int:
    """Print messages that wait."""
    with _client(session) as rooms:
        found = rooms.peek(arguments.room, arguments.offset, arguments.limit or None)
    if not found:
        warn(f"{arguments.room}: nothing waits{' from there on' if arguments.offset else ''}")
    on = colours()
    for message in found:
        if arguments.json:
            print_json(_as_json(message))
        else:
            rank = f"  priority {message.priority}" if message.priority else ""
            print(f"{_line(message, on)}{paint(rank, 'dim', on)}")
    return 0


def _as_json(message: "Queued") -> dict[str, Any]:
    made = {"id": message.id, "data": as_json(message.data), "producer": message.producer}
    return made if message.priority is None else made | {"priority": message.priority}


def _line(message: "Queued", on: bool = False) -> str:
    sender = f"  {paint(readable(message.producer.encode(), 40), 'dim', on)}"
    return f"{paint(message.id, 'bold', on)}{sender if message.producer else ''}  " + readable(
        message.data
    )


# -- taking part -----------------------------------------------------------------------------


def run_send(session: Session, arguments: Arguments) -> int:
    """Send a message, and print its id."""
    data = arguments.data.encode("utf-8", "surrogateescape")
    if arguments.data == "-":
        data = sys.stdin.buffer.read()
    if arguments.oob and arguments.priority:
        raise UsageError("room send: --priority is for messages that wait, not for --oob")
    room, producer = arguments.room, arguments.producer or ""
    with _client(session) as rooms:
        if arguments.oob:
            message_id = rooms.send_out_of_band(room, data, producer=producer)
        else:
            message_id = rooms.send(room, data, producer=producer, priority=arguments.priority)
    if arguments.json:
        print_json({"room": room, "id": message_id})
    else:
        print(message_id)
    return 0


def run_listen(session: Session, arguments: Arguments) -> int:
    """Print messages as they are delivered."""
    from queue import SimpleQueue
    from threading import Thread

    from wakeq.fanout.office import FanoutTerms
    from wakeq.fanout.worker import FanoutWorker

    if arguments.by_hand and not sys.stdin.isatty():
        warn("acknowledging each message for a line of stdin")
    told: SimpleQueue[RoomMessage | str | WakeqError] = SimpleQueue()
    worker = FanoutWorker(
        told.put,
        session.url,
        FanoutTerms(auto_ack=False),
        on_ejected=lambda _room, _client, reason: told.put(reason),
    )
    with worker:
        mode = "sync" if arguments.ack or arguments.by_hand else "observer"
        worker.subscribe(arguments.room, worker.create_client_id(), mode=mode)
        Thread(target=_watch, args=(worker, told.put), daemon=True).start()
        warn(f"listening to {arguments.room} as {mode}; Ctrl+C ends it")
        for shown in itertools.count(1):
            message = told.get()
            if isinstance(message, str):
                raise UnavailableError(f"{arguments.room}: not a client any more: {message}")
            if isinstance(message, WakeqError):
                raise message
            _show_delivery(message, arguments.json)
            if message.awaits and not _agreed_to_acknowledge(arguments.by_hand):
                return 0
            if message.awaits:
                message.ack()
            if shown == arguments.count:
                if message.awaits:
                    _wait_until_counted(session, message)
                return 0
    return 0


def _watch(worker: "FanoutWorker", tell: Callable[[WakeqError], object]) -> None:
    """Tell why a worker has ended by itself."""
    try:
        worker.wait()
    except WakeqError as error:
        tell(error)


def _agreed_to_acknowledge(by_hand: bool) -> bool:
    """Wait for Enter, if that is wanted; False: there is nobody to press it any more."""
    if not by_hand:
        return True
    print("Enter acknowledges ", end="", file=sys.stderr, flush=True)
    return bool(sys.stdin.readline())


def _wait_until_counted(session: Session, message: "RoomMessage") -> None:
    """Return when the last acknowledgement, which is sent a moment later, has counted."""
    with _client(session) as rooms:
        for pause in _pauses():
            state = rooms.room_state(message.room)
            client = state.clients.get(message.client)
            current = state.message is not None and state.message.id == message.id
            if client is None or not current or not client.waiting:
                return
            time.sleep(pause)  # bare, because it is a command that does nothing else


def _pauses() -> Iterator[float]:
    pause = 0.005
    while pause < 1:
        yield pause
        pause *= 2


def _show_delivery(message: "RoomMessage", json: bool) -> None:
    if json:
        made = _as_json(message.message) | {"room": message.room, "oob": message.oob}
        print_json(made | {"latency_seconds": round(message.latency, 6)})
    else:
        on = colours()
        mark = paint("  out of band", "dim", on) if message.oob else ""
        print(f"{_line(message.message, on)}{mark}")
    sys.stdout.flush()
