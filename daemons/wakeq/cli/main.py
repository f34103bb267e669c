"""The command `wakeq`: finds the subcommand, runs it, and ends with the exit code that fits."""

import os
import sys

from wakeq.cli import (
    check,
    dead,
    delayed,
    errors,
    parser,
    pause,
    peek,
    produce,
    publish,
    room,
    status,
    trim,
    wake,
)
from wakeq.cli.session import Session
from wakeq.errors import UsageError, WakeqError

FAMILIES = (publish, produce, status, peek, dead, delayed, errors, room, pause, wake, trim, check)

# 128 and the signal's number, as a shell says it.
_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return the exit code.

    What an operator can cause is one line on stderr, never a traceback.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        arguments = parser.parse(FAMILIES, words)
        code = int(arguments.run(Session(arguments), arguments))
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _complain(f"{error}\nTry 'wakeq --help'.", error.exit_code)
    except WakeqError as error:
        return _complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def _complain(text: str, code: int) -> int:
    print(f"wakeq: {text}", file=sys.stderr)
    return code
