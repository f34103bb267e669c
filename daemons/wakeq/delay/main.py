"""The executable wakeq-delay: wires its parts to the shared runner."""

from wakeq import journal
from wakeq.delay.keeper import Keeper
from wakeq.sections import Delay
from wakeq.service import Program, Service, run

PROGRAM = Program("wakeq-delay", "Delivers delayed messages when they are due.", Delay)


def main() -> None:
    """Run wakeq-delay."""
    run(PROGRAM, _delay)


def _delay(service: Service) -> None:
    # It runs for long and says little: at once, then.
    journal.open_log()
    Keeper(service).run()
