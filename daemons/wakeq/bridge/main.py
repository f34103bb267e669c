"""The executable wakeq-bridge: wires its parts to the shared runner."""

from wakeq import journal
from wakeq.bridge.keeper import Keeper
from wakeq.sections import Bridge
from wakeq.service import Program, Service, run

PROGRAM = Program(
    "wakeq-bridge", "Publishes messages of channels or of a list to a stream.", Bridge, "NAME"
)


def main() -> None:
    """Run wakeq-bridge."""
    run(PROGRAM, _bridge)


def _bridge(service: Service) -> int:
    # It runs for long and says little: at once, then.
    journal.open_log()
    return Keeper(service).run()
