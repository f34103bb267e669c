"""The executable wakeq-wakeup: wires its parts to the shared runner."""

from wakeq import journal
from wakeq.sections import Wakeup
from wakeq.service import Program, Service, run
from wakeq.wakeup.keeper import Keeper

PROGRAM = Program("wakeq-wakeup", "Wakes the consumers of this host that have work.", Wakeup)


def main() -> None:
    """Run wakeq-wakeup."""
    run(PROGRAM, _wakeup)


def _wakeup(service: Service) -> None:
    # It runs for long and says little: at once, then.
    journal.open_log()
    Keeper(service).run()
    service.notifier.stopping()
