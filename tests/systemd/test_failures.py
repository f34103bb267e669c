"""What fails under a real systemd, and how it heals: by itself, or by mending what is wrong."""

from __future__ import annotations

import pytest
from wakeq_machine import PRINTS, WAKEUP, Load, WakeqMachine, service, socket

from redis_servers import wait_until
from wakeq import journal

# As a library would that is not made for this processor.
CRASHES = "import os, signal\n\nos.kill(os.getpid(), signal.SIGSEGV)\n"
# A call into C that does not give the interpreter free: no thread of it goes on.
HANGS = """
import ctypes
import os

def handle(message):
    if os.path.exists("/srv/hang"):
        print("hanging", flush=True)
        ctypes.PyDLL(None).sleep(600)
    print("handled", message.text(), flush=True)
"""


def test_a_handler_that_crashes_at_each_start_heals_when_it_is_mended(
    machine: WakeqMachine,
) -> None:
    machine.configure("orders", CRASHES)
    machine.enable("orders")
    machine.publish("orders", "one")
    # Longer than the ten seconds in which systemd counts starts.
    wait_until(lambda: int(machine.show(service("orders"), "NRestarts")) >= 4, 120)
    assert machine.show(service("orders"), "Result") != "start-limit-hit"
    assert machine.state(socket("orders")) == "active"
    wait_until(lambda: "1 backing off" in machine.status_text(WAKEUP))

    machine.configure("orders", PRINTS)

    machine.wait_for_handled("orders", "one")
    wait_until(lambda: machine.is_asleep("orders"))
    backed_off = machine.journal(f"MESSAGE_ID={journal.CONSUMER_BACKED_OFF}")
    assert len(backed_off) == 1, "said once, not for each try"


def test_a_handler_that_cannot_be_imported_exits_78_and_heals_when_it_is_mended(
    machine: WakeqMachine,
) -> None:
    machine.configure("orders", "import there_is_no_such_module\n")
    machine.enable("orders")
    machine.publish("orders", "one")
    # Again and again, whenever it is woken.
    wait_until(lambda: machine.has(service("orders"), ActiveState="failed", ExecMainStatus="78"))
    entry = machine.journal("-u", service("orders"), "SYSLOG_IDENTIFIER=wakeq-consumer")[0]
    assert "there_is_no_such_module" in entry["MESSAGE"]
    assert (entry["PRIORITY"], "Traceback" in entry["MESSAGE"]) == ("3", False)
    wait_until(lambda: "1 backing off" in machine.status_text(WAKEUP))
    assert machine.state(socket("orders")) == "active"

    machine.configure("orders", PRINTS)

    machine.wait_for_handled("orders", "one")
    wait_until(lambda: machine.is_asleep("orders"))


def test_a_wrong_configuration_is_one_clear_line_and_heals_when_it_is_mended(
    machine: WakeqMachine,
) -> None:
    machine.configure("orders", settings="concurency = 4")
    machine.enable("orders")
    machine.publish("orders", "one")
    machine.systemctl("start", service("orders"), check=False)
    assert machine.state(service("orders")) == "failed"
    assert machine.show(service("orders"), "ExecMainStatus") == "78"
    (entry,) = machine.journal("-u", service("orders"), "SYSLOG_IDENTIFIER=wakeq-consumer")
    assert entry["MESSAGE"] == (
        "/etc/wakeq/consumers/orders.toml: unknown setting 'concurency'"
        " (did you mean 'concurrency'?)"
    )
    assert machine.state(socket("orders")) == "active"
    warnings = ("SYSLOG_IDENTIFIER=wakeq-wakeup", "--priority=warning")
    (told,) = wait_until(lambda: machine.journal(*warnings))
    assert "concurency" in str(told)

    machine.configure("orders")

    machine.wait_for_handled("orders", "one")
    wait_until(lambda: machine.is_asleep("orders"))


def test_the_watchdog_ends_a_stuck_consumer_and_its_successor_handles_the_message(
    machine: WakeqMachine,
) -> None:
    machine.configure("orders", HANGS)
    machine.drop_in(service("orders"), "[Service]\nWatchdogSec=6s\n")
    machine.write("/srv/hang", "")
    machine.enable("orders")
    machine.publish("orders", "one")
    stuck = wait_until(lambda: machine.journal("-u", service("orders"), "MESSAGE=hanging"))

    machine.path("/srv/hang").unlink()

    machine.wait_for_handled("orders", "one")
    (handled,) = machine.journal("-u", service("orders"), "MESSAGE=handled one")
    assert handled["_PID"] != stuck[0]["_PID"]
    said = machine.journal("-u", service("orders"), "UNIT_RESULT=watchdog")
    assert said, "systemd says that it was the watchdog"


def test_nothing_is_lost_when_each_is_killed_in_turn(machine: WakeqMachine) -> None:
    machine.configure("orders", settings="prefetch = 10")
    machine.enable("orders")
    kills = 0
    with Load(machine, "orders") as load:
        for unit in (service("orders"), WAKEUP, "redis-server.service") * 2:
            load.go_on_handled(20)
            machine.kill(unit)
            kills += 1
        load.go_on_handled(20)
    load.wait_until_handled()
    repeated = len(machine.handled("orders")) - len(set(machine.handled("orders")))
    # What was read, and what was handled and not acknowledged yet.
    assert repeated <= 2 * 10 * kills
    machine.wait_for_state(WAKEUP, "active")
    wait_until(lambda: machine.is_asleep("orders"))


def test_nothing_is_lost_when_a_consumer_is_stopped_restarted_and_reloaded(
    machine: WakeqMachine,
) -> None:
    machine.configure("orders")
    machine.enable("orders")
    with Load(machine, "orders") as load:
        for verb in ("reload", "restart", "stop"):
            load.go_on_handled(20)
            command = ("systemctl", verb, service("orders"))
            # What sleeps cannot be reloaded.
            wait_until(lambda command=command: machine.call(*command).returncode == 0)
        for verb in ("reload", "restart"):
            load.go_on_handled(20)
            machine.systemctl(verb, WAKEUP)
        load.go_on_handled(20)
        machine.systemctl("stop", WAKEUP)
        machine.systemctl("stop", socket("orders"), service("orders"))
        load.go_on()
        machine.systemctl("start", WAKEUP, socket("orders"))
    load.wait_until_handled()
    handled = machine.handled("orders")
    assert len(handled) == len(set(handled)), "none was repeated"


def test_a_backlog_is_drained_after_a_reboot_without_help(machine: WakeqMachine) -> None:
    machine.configure("orders")
    machine.enable("orders")
    machine.publish("orders", "before")
    machine.wait_for_handled("orders", "before")
    machine.systemctl("stop", WAKEUP)
    machine.systemctl("stop", service("orders"))
    machine.publish("orders", *range(100))
    assert not machine.is_drained("orders")

    machine.reboot()

    machine.wait_for_handled("orders", *range(100))
    wait_until(lambda: machine.is_drained("orders"))
    assert machine.handled("orders") == ["before", *map(str, range(100))]


@pytest.mark.parametrize("unit", ["wakeq.target", "system-wakeq.slice"])
def test_all_of_wakeq_stops_at_once(machine: WakeqMachine, unit: str) -> None:
    # The target stops its parts also where they were started without it.
    assert machine.state("wakeq.target") == "inactive"
    machine.configure("orders")
    machine.enable("orders")
    machine.publish("orders", "one")
    machine.wait_for_handled("orders", "one")

    machine.systemctl("stop", unit)

    # systemctl does not wait for the parts of a target.
    wait_until(lambda: machine.call("pgrep", "-u", "wakeq").returncode == 1)
    if unit == "wakeq.target":
        machine.wait_for_state(socket("orders"), "inactive")
