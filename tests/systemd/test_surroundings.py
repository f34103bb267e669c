"""What an admin has around wakeq: a password, another server, other rights, limits."""

from __future__ import annotations

import pytest
from wakeq_machine import GO_ON, WAITS, WAKEUP, WakeqMachine, service

from redis_servers import wait_until

PASSWORD = "correct horse battery staple"


def test_the_password_for_redis_is_a_credential(machine: WakeqMachine) -> None:
    machine.write("/etc/wakeq/redis-password", PASSWORD + "\n", 0o600)
    # For all of wakeq, by the prefix that their names have.
    credential = "LoadCredential=wakeq.redis-password:/etc/wakeq/redis-password"
    machine.drop_in("wakeq-.service", f"[Service]\n{credential}\n")
    with machine.redis() as client:
        client.xadd("orders", {"body": "secret"})
        client.config_set("requirepass", PASSWORD)
    machine.configure("orders")

    machine.enable("orders")

    machine.wait_for_handled("orders", "secret")
    # In nobody's sight.
    assert PASSWORD not in machine.log("--all", "--output=verbose")
    pid = machine.show(WAKEUP, "MainPID")
    assert PASSWORD not in machine.run("cat", f"/proc/{pid}/environ", f"/proc/{pid}/cmdline")


def test_without_its_password_it_says_so(machine: WakeqMachine) -> None:
    with machine.redis() as client:
        client.config_set("requirepass", PASSWORD)
    machine.configure("orders")

    machine.systemctl("start", WAKEUP, check=False)

    (entry,) = machine.journal("SYSLOG_IDENTIFIER=wakeq-wakeup", "PRIORITY=3")
    assert "NOAUTH" in entry["MESSAGE"] or "password" in entry["MESSAGE"]


def test_drop_ins_of_the_admin_take_effect(machine: WakeqMachine) -> None:
    writes = """
import os, pwd

def handle(message):
    with open("/srv/out/written", "w") as file:
        file.write(pwd.getpwuid(os.getuid()).pw_name)
    print("handled", message.text(), flush=True)
"""
    machine.run("useradd", "--system", "shop")
    machine.run("install", "-d", "-o", "shop", "/srv/out")
    machine.configure("orders", writes)
    machine.drop_in(
        service("orders"),
        "[Service]\nUser=shop\nGroup=shop\nReadWritePaths=/srv/out\nMemoryMax=200M\n",
    )
    machine.enable("orders")

    machine.publish("orders", "one")

    machine.wait_for_handled("orders", "one")
    assert machine.path("/srv/out/written").read_text() == "shop"
    assert machine.show(service("orders"), "MemoryMax") == str(200 * 1024 * 1024)


def test_nothing_can_be_written_without_them(machine: WakeqMachine) -> None:
    tries = """
def handle(message):
    for path in ("/srv/x", "/etc/wakeq/x", "/var/lib/x"):
        try:
            open(path, "w")
        except OSError as error:
            print("handled", path, type(error).__name__, flush=True)
"""
    machine.configure("orders", tries)
    machine.enable("orders")
    # So that it is the sandbox that refuses, not the rights.
    machine.run("chmod", "777", "/srv", "/etc/wakeq", "/var/lib")

    machine.publish("orders", "one")

    wait_until(lambda: len(machine.handled("orders")) == 3)
    refused = [line.split()[1] for line in machine.handled("orders")]
    assert refused == ["OSError"] * 3


# Debian 12 has none.
@pytest.mark.parametrize("suite", ["trixie"], indirect=True, scope="session")
def test_it_works_with_valkey(machine: WakeqMachine) -> None:
    machine.systemctl("disable", "--now", "redis-server")
    machine.start_redis("valkey")
    machine.configure("orders", WAITS)
    machine.enable("orders")

    machine.publish("orders", "one")
    machine.wait_for_handled("orders", "one")
    machine.kill(service("orders"))
    machine.kill(WAKEUP)
    machine.kill("valkey-server.service")
    again = {"ActiveState": "active", "NRestarts": "1"}
    wait_until(lambda: machine.has("valkey-server.service", **again))
    wait_until(lambda: machine.call("valkey-cli", "ping").stdout == "PONG\n")
    machine.write(GO_ON, "")
    machine.publish("orders", "two")

    machine.wait_for_handled("orders", "two")
    wait_until(lambda: machine.is_asleep("orders"))
    assert '"redis":"Valkey ' in machine.run("wakeq", "status", "--json")


def test_it_starts_before_redis_does_and_waits(machine: WakeqMachine) -> None:
    machine.systemctl("stop", "redis-server")
    machine.configure("orders")
    machine.systemctl("enable", "--now", "--no-block", WAKEUP, "wakeq-consumer@orders.socket")
    wait_until(lambda: "waiting for Redis" in machine.status_text(WAKEUP))

    machine.systemctl("start", "redis-server")
    machine.publish("orders", "one")

    machine.wait_for_handled("orders", "one")
    machine.wait_for_state(WAKEUP, "active")
