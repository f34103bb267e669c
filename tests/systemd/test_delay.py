"""wakeq-delay in a booted system: it delivers, and its sandbox lets it and a repair do so."""

from __future__ import annotations

from wakeq_machine import WakeqMachine

from redis_servers import wait_until

SERVICE = "wakeq-delay.service"
REPAIR = "def repair(message):\n    print('looked at', message.id)\n    return {'body': 'better'}\n"
# As fail.lua has it, of the group g.
FAIL = (
    "redis.call('HSET', KEYS[2], '7-0@g', cmsgpack.pack({'g', '7-0', 'wakeq.first_id', '7-0',"
    " 'wakeq.attempt', '2', 'wakeq.error', 'E: no', 'body', 'x'}))"
    " redis.call('ZADD', KEYS[1], 1, '7-0@g') redis.call('PUBLISH', 'wakeq:doorbell', 'orders')"
)


def start(machine: WakeqMachine) -> None:
    """Enable it and start it; that returns when it is ready."""
    machine.systemctl("enable", "--quiet", "--now", SERVICE)
    assert machine.state(SERVICE) == "active"


def length(machine: WakeqMachine, key: str) -> int:
    """Return how many entries a stream has."""
    with machine.redis() as client:
        return int(client.xlen(key))


def test_delivers_what_is_published_with_a_delay(machine: WakeqMachine) -> None:
    start(machine)
    machine.run("wakeq", "publish", "orders", "x", "--delay", "500ms")
    wait_until(lambda: length(machine, "orders") == 1, message="it was delivered")
    wait_until(lambda: "1 moved" in machine.status_text(SERVICE), message="it says so")


def test_a_repair_runs_in_its_sandbox(machine: WakeqMachine) -> None:
    machine.write("/srv/repairs.py", REPAIR)
    machine.write("/etc/wakeq/wakeq.toml", '[delay]\nrepair = "/srv/repairs.py:repair"\n')
    start(machine)
    with machine.redis() as client:
        client.eval(FAIL, 2, "wakeq:{orders}:delayed", "wakeq:{orders}:delayed:data")
    wait_until(lambda: length(machine, "wakeq:{orders}:retry:g") == 1, message="it was repaired")
    with machine.redis() as client:
        ((_, fields),) = client.xrange("wakeq:{orders}:retry:g")
    assert fields["body"] == "better"
    assert "looked at 7-0" in machine.log("--output=cat", "-u", SERVICE)


def test_it_hangs_on_the_target(machine: WakeqMachine) -> None:
    machine.systemctl("enable", "--quiet", SERVICE, "wakeq.target")
    machine.systemctl("start", "wakeq.target")
    assert machine.state(SERVICE) == "active"
    machine.systemctl("stop", "wakeq.target")
    wait_until(lambda: machine.state(SERVICE) == "inactive", message="it has stopped")


def test_a_wrong_repair_is_said_once_and_not_tried_again(machine: WakeqMachine) -> None:
    machine.write("/etc/wakeq/wakeq.toml", '[delay]\nrepair = "no_such:thing"\n')
    assert machine.call("systemctl", "start", SERVICE).returncode != 0
    assert machine.show(SERVICE, "ExecMainStatus") == "78"
    assert machine.show(SERVICE, "NRestarts") == "0"
    log = machine.log("--output=cat", "SYSLOG_IDENTIFIER=wakeq-delay")
    assert "No module named 'no_such'" in log
    assert "Traceback" not in log
