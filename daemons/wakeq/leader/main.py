"""The executable wakeq-leader: wires its parts to the shared runner."""

from wakeq import journal
from wakeq.leader.keeper import Keeper
from wakeq.sections import Leader
from wakeq.service import Program, Service, run

PROGRAM = Program(
    "wakeq-leader", "Leads under a name, on one host of many at a time.", Leader, "NAME"
)


def main() -> None:
    """Run wakeq-leader."""
    run(PROGRAM, _leader)


def _leader(service: Service) -> int:
    # It runs for long and says little: at once, then.
    journal.open_log()
    return Keeper(service).run()
