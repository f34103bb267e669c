"""wakeq-trim in a booted system: its timer starts it, and its sandbox lets it do what it does."""

from __future__ import annotations

from wakeq_machine import WakeqMachine

from redis_servers import wait_until

SERVICE, TIMER = "wakeq-trim.service", "wakeq-trim.timer"
# Often, but not as often as systemd lets a service start.
OFTEN = "[Timer]\nOnCalendar=\nOnCalendar=*:*:0/3\nRandomizedDelaySec=0\nAccuracySec=10ms\n"


def fill(machine: WakeqMachine, stream: str, count: int) -> None:
    """Add messages that a group has handled, to a stream that wakeq has seen."""
    with machine.redis() as client:
        pipe = client.pipeline(transaction=False)
        for _ in range(count):
            pipe.xadd(stream, {"a": "b"})
        pipe.xgroup_create(stream, "g", "$")
        pipe.sadd("wakeq:streams", stream)
        pipe.execute()


def length(machine: WakeqMachine, stream: str) -> int:
    """Return how many messages a stream has."""
    with machine.redis() as client:
        return int(client.xlen(stream))


def test_the_timer_has_streams_trimmed(machine: WakeqMachine) -> None:
    machine.drop_in(TIMER, OFTEN)
    fill(machine, "orders", 1500)

    machine.systemctl("enable", "--quiet", "--now", TIMER)

    wait_until(lambda: length(machine, "orders") == 1000, message="orders was trimmed")
    machine.systemctl("stop", TIMER)
    wait_until(lambda: machine.state(SERVICE) == "inactive", message="it has ended")
    assert machine.show(SERVICE, "Result") == "success"
    (entry,) = machine.journal("SYSLOG_IDENTIFIER=wakeq-trim", "WAKEQ_STREAM=orders")
    assert (entry["WAKEQ_REMOVED"], entry["WAKEQ_LEFT"]) == ("500", "1000")


def test_it_hangs_on_the_target(machine: WakeqMachine) -> None:
    machine.systemctl("enable", "--quiet", TIMER, "wakeq.target")
    machine.systemctl("start", "wakeq.target")
    assert machine.state(TIMER) == "active"
    machine.systemctl("stop", "wakeq.target")
    machine.wait_for_state(TIMER, "inactive")  # systemctl does not wait for the parts


def test_without_redis_it_fails_and_says_why(machine: WakeqMachine) -> None:
    machine.systemctl("stop", "redis-server")
    machine.write("/etc/wakeq/wakeq.toml", 'start_timeout = "1s"\n')
    assert machine.call("systemctl", "start", SERVICE).returncode != 0
    assert machine.show(SERVICE, "ExecMainStatus") == "69"
    assert "cannot be reached" in machine.log("SYSLOG_IDENTIFIER=wakeq-trim")
