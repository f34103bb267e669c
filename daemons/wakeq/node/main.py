"""The executable wakeq-node: wires its parts to the shared runner."""

from wakeq import journal
from wakeq.node.keeper import Keeper
from wakeq.sections import Node
from wakeq.service import Program, Service, run

PROGRAM = Program(
    "wakeq-node",
    "Consumes with others of its name; of them all, one at a time is elected and publishes.",
    Node,
    "NAME",
)


def main() -> None:
    """Run wakeq-node."""
    run(PROGRAM, _node)


def _node(service: Service) -> None:
    # It runs for long and says little: at once, then.
    journal.open_log()
    Keeper(service).run()
