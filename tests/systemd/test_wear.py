"""What a consumer's lives leave behind: nothing. They were lived beside all the tests before."""

from __future__ import annotations

from wakeq_machine import WAKEUP, WakeqMachine, service, socket
from wear import LIVES, USE, WORN

from redis_servers import wait_until


def test_fifty_lives_in_a_row_leave_service_and_socket_healthy(worn_machine: WakeqMachine) -> None:
    machine = worn_machine

    wait_until(lambda: machine.show(USE, "SubState") == "exited", 1200, f"{LIVES} lives are over")

    assert sorted(map(int, machine.handled(WORN))) == list(range(1, LIVES + 1))
    # Woken once for each message: not a start too many, and none that failed.
    slept = machine.journal("SYSLOG_IDENTIFIER=wakeq-consumer", "WAKEQ_STREAM=" + WORN)
    assert [entry["MESSAGE"] for entry in slept] == ["consumer went to sleep"] * LIVES
    assert len({entry["_PID"] for entry in slept}) == LIVES
    wait_until(lambda: machine.is_asleep(WORN))
    for unit in (service(WORN), socket(WORN)):
        assert machine.show(unit, "Result") == "success"
    for unit in (service(WORN), WAKEUP):
        assert machine.show(unit, "NRestarts") == "0"
    assert machine.systemctl("--failed", "--plain", "--no-legend").strip() == ""
    for match in (
        f"--unit={WAKEUP}",
        f"--unit={service(WORN)}",
        "SYSLOG_IDENTIFIER=wakeq-consumer",
    ):
        said = machine.journal(match, "--priority=warning")
        assert [entry["MESSAGE"] for entry in said] == []
    # And it can be woken once more.
    machine.publish(WORN, "once more")
    machine.wait_for_handled(WORN, "once more")
