"""One consumer that lives one life after another, as quickly as there can be a next one."""

from __future__ import annotations

from wakeq_machine import WakeqMachine, service

LIVES = 50
WORN = "worn"
USE = "use.service"
# The next message comes the moment that systemd has seen the consumer end. A life lasts as long as
# its idle_timeout, which is the least there is, so more of them cannot be had in that time.
_USES = f"""
exec < <(journalctl --follow --lines=all --output=cat --unit={service(WORN)} |
    grep --line-buffered 'Deactivated successfully')
for life in {{1..{LIVES}}}; do
    redis-cli xadd {WORN} '*' body "$life"
    read -r deactivated
done
"""


def begin_to_wear(machine: WakeqMachine) -> None:
    """Begin, and leave it to the machine; it takes two and a half minutes."""
    machine.configure(WORN)
    machine.enable(WORN)
    machine.run("systemd-run", "--quiet", f"--unit={USE}", "--property=RemainAfterExit=yes",
                "bash", "-ec", _USES)  # fmt: skip
