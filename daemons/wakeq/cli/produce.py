"""wakeq produce: publish messages as load, with a progress bar."""

import sys
from typing import TYPE_CHECKING, Any

from wakeq.cli.parser import Arguments, Subparsers, add_json, count, name, positive, seconds
from wakeq.cli.progress import Progress
from wakeq.cli.screen import print_json
from wakeq.cli.session import Session

if TYPE_CHECKING:
    from wakeq.cli.load import Load, Pace
    from wakeq.publisher import Publisher

_EXAMPLES = """\
  wakeq produce orders                              1000 messages, as fast as it goes
  wakeq produce orders --count 50 --interval 200ms  one message every 200 ms
  wakeq produce orders --workers 10 --interval 1s   10 producers, each one message a second
  wakeq produce orders --count 0 --rate 500         500 messages a second until Ctrl+C
  wakeq produce orders --size 1000000 --count 100   large bodies

Each message has the fields seq (0, 1, 2 ..., over all) and worker; what else it has is said
by --payload-keys or --size.
"""


def add(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = subparsers.add("produce", "Publish messages as load.", _EXAMPLES, run)
    parser.add_argument("stream", metavar="STREAM", type=name)
    parser.add_argument("--count", metavar="N", type=count, default=1000,
                        help="how many messages, 0 for no end (default: 1000)")  # fmt: skip
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--interval", metavar="SPAN", type=seconds, default=0.0,
                      help="between two messages of a worker (default: none)")  # fmt: skip
    pace.add_argument("--rate", metavar="N", type=positive,
                      help="messages a second, over all workers")  # fmt: skip
    parser.add_argument("--workers", metavar="N", type=positive, default=1,
                        help="how many producers to be (default: 1)")  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--payload-keys", metavar="K", type=count, default=1,
                      help="fields key_0 ... of 32 characters each (default: 1)")  # fmt: skip
    what.add_argument("--size", metavar="BYTES", type=positive, help="a body of this size instead")
    parser.add_argument("--words", action="store_true",
                        help="values are words, not hexadecimal digits")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_json(parser)


def run(session: Session, arguments: Arguments) -> int:
    """Publish until the count is reached or Ctrl+C is pressed, and print a summary."""
    from wakeq.cli.load import Load, Pace

    load = Load(
        arguments.stream, arguments.workers, arguments.payload_keys, arguments.size,
        arguments.words,
    )  # fmt: skip
    interval_s = 1 / arguments.rate if arguments.rate else arguments.interval / arguments.workers
    pace = Pace(interval_s, 1 if arguments.rate else arguments.workers)
    interrupted = False
    publisher = session.publisher()
    progress = Progress(arguments.count, quiet=arguments.quiet)
    try:
        with publisher:
            _produce(publisher, load, pace, progress)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        # Also after a lost connection: how far it came.
        progress.close()
        _summarise(arguments, progress, interrupted)
    return 130 if interrupted else 0


def _produce(publisher: "Publisher", load: "Load", pace: "Pace", progress: Progress) -> None:
    from wakeq.publisher import UnconfirmedError

    while not progress.complete:
        due = pace.wait(progress.left)
        try:
            publisher.publish_many(load.messages(due), batch=max(1, due))
        except UnconfirmedError as error:
            progress.advance(error.confirmed)
            raise
        progress.advance(due)


def _summarise(arguments: Arguments, progress: Progress, interrupted: bool) -> None:
    elapsed_s = progress.elapsed_seconds
    summary: dict[str, Any] = {
        "stream": arguments.stream,
        "published": progress.done,
        "seconds": round(elapsed_s, 3),
        "per_second": round(progress.done / elapsed_s, 1) if elapsed_s else 0.0,
        "interrupted": interrupted,
    }
    if arguments.json:
        print_json(summary)
    else:
        print(
            f"published {progress.done:,} messages to {arguments.stream} in {elapsed_s:.2f} s"
            f" ({summary['per_second']:,.0f}/s){', interrupted' if interrupted else ''}"
        )
    sys.stdout.flush()
