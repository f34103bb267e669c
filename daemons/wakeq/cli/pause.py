"""wakeq pause, wakeq resume: have messages of a stream wait, and go on with them."""

import json
import os
import pwd

from wakeq import keys
from wakeq.cli import streams
from wakeq.cli.parser import Arguments, Subparsers, add_json, name
from wakeq.cli.screen import print_json, readable
from wakeq.cli.session import Session, warn
from wakeq.errors import RefusedError, WakeqError
from wakeq.scripts import Script
from wakeq.wire import client_name

_PAUSE_EXAMPLES = """\
  wakeq pause orders
  wakeq pause orders --reason 'new release, until noon'

Consumers of all groups, on all hosts, finish what they have begun and take nothing more; none is
woken. What arrives waits in Redis. 'wakeq status' says which streams are paused.
"""
_RESUME_EXAMPLES = """\
  wakeq resume orders
"""


def add(subparsers: Subparsers) -> None:
    """Add the subcommands."""
    pauser = subparsers.add(
        "pause", "Have the messages of a stream wait, for all groups.", _PAUSE_EXAMPLES, pause
    )
    resumer = subparsers.add(
        "resume", "Have the messages of a stream handled again.", _RESUME_EXAMPLES, resume
    )
    for parser in (pauser, resumer):
        parser.add_argument("stream", metavar="STREAM", type=name)
    pauser.add_argument("--reason", metavar="TEXT", type=name,
                        help="why, for whoever wonders")  # fmt: skip
    for parser in (pauser, resumer):
        add_json(parser)


def pause(session: Session, arguments: Arguments) -> int:
    """Set the flag, and end the reads that are waiting for messages."""
    stream = arguments.stream
    flag = keys.paused(stream)
    with session.explaining():
        streams.require(session, stream)
        # So that `wakeq status` shows it, to whoever wonders.
        session.call(keys.STREAMS, "SADD", keys.STREAMS, stream)
        seconds, microseconds = session.call(flag, "TIME")
        since = seconds * 1000 + microseconds // 1000
        value = {"since": since, "by": _caller(), "reason": arguments.reason or ""}
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        earlier = None
        while not session.call(flag, "SET", flag, text, "NX"):
            earlier = session.call(flag, "GET", flag)
            if earlier is not None:
                break
        # Also for one that was paused already: somebody may have set the flag by hand.
        names = streams.groups(session, stream)
    told = streams.read_pause(text.encode() if earlier is None else earlier)
    assert told is not None
    if arguments.json:
        print_json({"stream": stream, "paused": earlier is None, **told})
    else:
        was = "is" if earlier is None else "was already"
        print(f"{stream} {was} {readable(streams.pause_told(told).encode(), 500)}", flush=True)
    _unblock(session, flag, names)
    return 0


def resume(session: Session, arguments: Arguments) -> int:
    """Remove the flag, and ring for every group."""
    stream = arguments.stream
    with session.explaining():
        streams.require(session, stream)
    names = [keys.paused(stream), stream, keys.retry(stream, "")]
    value, rung = session.servers.run(Script("resume"), names, [])
    was = streams.read_pause(value)
    if arguments.json:
        print_json({"stream": stream, "resumed": was is not None, "groups_rung": rung})
    elif was is None:
        print(f"{stream} was not paused")
    else:
        print(f"{stream} is resumed; it was {readable(streams.pause_told(was).encode(), 500)}")
    return 0


def _caller() -> str:
    """Return who calls, and on which host."""
    user = os.environ.get("SUDO_USER", "")
    if not user:
        try:
            user = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            user = str(os.getuid())
    return f"{user}@{os.uname().nodename}"


def _unblock(session: Session, flag: str, groups: list[str]) -> None:
    """End the reads of the consumers of some groups, so that they notice at once.

    A group of the same name of another stream is disturbed for nothing: it reads on.
    """
    # As wakeq.consumer.link names them; @ may stand in the name of a group, too.
    starts = tuple(client_name(f"wakeq-consumer/{group}@") for group in groups)
    try:
        with session.explaining():
            clients = session.call(flag, "CLIENT LIST", "TYPE", "NORMAL")
            ids = [each["id"] for each in clients if each["name"].startswith(starts)]
            if ids:
                session.call_many(flag, [("CLIENT UNBLOCK", client_id) for client_id in ids])
    except RefusedError:
        warn("this user may not end the reads of others: consumers notice within 5 seconds")
    except WakeqError as error:
        warn(f"consumers notice within 5 seconds: {error}")
