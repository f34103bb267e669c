"""The executable wakeq-fanout: wires its parts to the shared runner."""

import socket

from wakeq import journal, systemd
from wakeq.fanout.keeper import Keeper
from wakeq.sections import Fanout
from wakeq.service import Program, Service, run

PROGRAM = Program(
    "wakeq-fanout",
    "Lets programs in any language take part in rooms, over a socket; exits when idle.",
    Fanout,
)


def main() -> None:
    """Run wakeq-fanout."""
    named = systemd.listening_sockets()
    listeners = [sock for some in named.values() for sock in some]
    run(PROGRAM, lambda service: _serve(service, listeners))


def _serve(service: Service, listeners: list[socket.socket]) -> None:
    # It runs for long and says little: at once, then.
    journal.open_log()
    Keeper(service, listeners).run()


if __name__ == "__main__":
    main()
