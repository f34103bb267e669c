"""Every setting of wakeq, by the section it stands in; `config` says where a value comes from.

Those of a consumer are in `first_sections`, because it is started often.
"""

from __future__ import annotations

from wakeq.backoff import Growth
from wakeq.first_sections import Consumer
from wakeq.settings import (
    Section,
    choice,
    command,
    duration,
    flag,
    growth,
    integer,
    numbered,
    patterns,
    text,
)


class Wakeup(Section):
    """wakeq-wakeup: [wakeup] of wakeq.toml."""

    recheck = duration("look at everything again this often, should a hint be lost", 60.0, low=1.0)
    starts = integer("start at most this many consumers at once (0: two for each CPU)", 0,
                     low=0, high=1000)  # fmt: skip
    discover = flag("also wake groups whose name is the path of a socket")


class Trim(Section):
    """wakeq-trim and wakeq trim: [trim] of wakeq.toml."""

    keep = integer("leave at least so many of the newest messages of each stream", 1000,
                   low=0, high=1_000_000_000)  # fmt: skip
    max_length = integer(
        "LOSES MESSAGES: remove all but so many, even those that a group needs (0: never)", 0,
        low=0, high=1_000_000_000,
    )  # fmt: skip
    streams = patterns("trim these streams, too, not only those that wakeq has seen")


class Delay(Section):
    """wakeq-delay: [delay] of wakeq.toml."""

    recheck = duration("look at everything again this often, should a hint be lost", 60.0, low=1.0)
    repair = text("what to call for each failed message before it is delivered again:"
                  " package.module:callable or /a/file.py:callable", "")  # fmt: skip
    repair_exec = command("what to run for each failed message instead: a program, arguments")
    repair_timeout = duration("a repair that takes longer has failed", 30.0, low=0.1)


class Leader(Section):
    """wakeq-leader: [leader] of wakeq.toml."""

    lease = duration("after a crash or a cut of the network another host leads after this long",
                     10.0, low=1.0)  # fmt: skip
    stop_timeout = duration("how long what is bound to the target may take to stop: at least as"
                            " long as any TimeoutStopSec= of it", 2.0)  # fmt: skip


class Node(Section):
    """A node: nodes/NAME.toml, with defaults for all in [node] of wakeq.toml."""

    stream = text("the stream to publish to and to consume (default: NAME)", "")
    list_ = text("use a list instead of a stream: LPUSH at its left, taken from its right", "",
                 "KEY")  # fmt: skip
    error_list = text("the list for messages of a list that failed (default: a key of the node)",
                      "", "KEY")  # fmt: skip
    group = text("the consumer group of a stream (default: NAME)", "")
    handler = text("what to call for each message: package.module:callable or /a/file.py:callable",
                   "")  # fmt: skip
    exec_ = command("what to run for each message instead: a program with its arguments")
    python = text("run handler and generate with this interpreter, of the application's own"
                  " environment", "", "FILE")  # fmt: skip
    workers = integer("how many messages are handled at once", 100, low=1, high=1000)
    timeout = duration("a message that takes longer has failed (0: no limit)", 0.0,
                       low=0.001, off=True)  # fmt: skip
    max_attempts = integer("a message of a stream that failed so often is a dead letter (0: never)",
                           10, low=0, high=1_000_000)  # fmt: skip
    max_crashes = integer("so is a message whose handler ended the whole process so often", 3,
                          low=1, high=1000)  # fmt: skip
    backoff = growth("how long to wait at most before another try, each time a random part of it",
                     Growth(1.0, 2.0, 600.0))  # fmt: skip
    drain_timeout = duration("at a stop, how long to wait for messages being handled", 60.0)
    claim_after = duration("take over messages of a process that is gone after this long", 60.0,
                           low=1.0)  # fmt: skip
    interval = duration("the leader publishes this often", 0.5, low=0.01)
    calendar = text("the leader publishes at these times instead, as in systemd.time(7)", "",
                    "TIMES")  # fmt: skip
    missed = choice("what becomes of times at which nobody published: skip them, make up for them"
                    " once, or for all", "skip", "skip", "once", "all")  # fmt: skip
    generate = text("what to call for the messages: package.module:callable or"
                    " /a/file.py:callable (default: a unique id and the time)", "")  # fmt: skip
    generate_exec = command("what to run for the messages instead: a program with its arguments")
    generate_timeout = duration("messages that take longer to make are left out", 30.0, low=0.1)
    leader_consumes = flag("the leader consumes, too")
    lease = duration("after a crash another node leads after this long", 10.0, low=1.0)


class Bridge(Section):
    """A bridge: bridges/NAME.toml, with defaults for all in [bridge] of wakeq.toml."""

    channel = text("take the messages published to this channel", "", "CHANNEL")
    pattern = text("or to all channels whose names match, as in news.*", "", "PATTERN")
    shard_channels = numbered("or to so many channels, log:0..7 for eight, by SPUBLISH or PUBLISH")
    list_ = text("or take the elements of this list", "", "KEY")
    list_end = choice("the end of the list that they are taken from: right, what LPUSH has put"
                      " there first, or left", "right", "right", "left")  # fmt: skip
    stream = text("the stream to publish to", "messages:processed")
    workers = integer("how many processes handle messages", 1, low=1, high=64)
    transform = text("what to call for each message: package.module:callable or"
                     " /a/file.py:callable (default: its JSON object becomes the fields)",
                     "")  # fmt: skip
    exec_ = command("what to run for each message instead: a program with its arguments")
    timeout = duration("a message that takes longer has failed (0: no limit)", 0.0,
                       low=0.001, off=True)  # fmt: skip
    max_crashes = integer("so has a message that ended its whole worker so often", 3,
                          low=1, high=1000)  # fmt: skip
    memory_mib = integer("have at most this much in memory that was received and not published",
                         256, low=1, high=1_000_000)  # fmt: skip
    ids = text("the list of the ids of all workers that live", "consumer:ids", "KEY")
    lease = duration("after a cut of the network another instance takes over after this long",
                     5.0, low=1.0)  # fmt: skip
    drain_timeout = duration("at a stop, how long to wait for what was received to be published",
                             60.0)  # fmt: skip


class Fanout(Section):
    """wakeq-fanout: [fanout] of wakeq.toml."""

    timeout = duration("clients of a gateway that was killed are timed out after this long", 30.0,
                       low=1.0)  # fmt: skip
    queue_limit = integer("a send to a room where so many messages wait is refused (0: no limit)",
                          0, low=0, high=1_000_000_000)  # fmt: skip
    connections = integer("at most so many connections; more wait until one ends", 10_000,
                          low=1, high=1_000_000)  # fmt: skip
    line_kib = integer("the longest request, in KiB", 1024, low=1, high=524_288)
    unread_kib = integer("how much may wait for a client that reads slowly, in KiB", 4096,
                         low=1, high=4_194_304)  # fmt: skip
    slow_timeout = duration("a client that leaves half of that unread for so long is ejected", 10.0,
                            low=0.1)  # fmt: skip
    idle_timeout = duration("exit when nobody was connected for this long", 30.0, low=2.5)


# Tables of wakeq.toml, by name; the top level is Common.
TABLES: dict[str, type[Section]] = {
    "consumer": Consumer,
    "wakeup": Wakeup,
    "delay": Delay,
    "trim": Trim,
    "leader": Leader,
    "node": Node,
    "bridge": Bridge,
    "fanout": Fanout,
}
