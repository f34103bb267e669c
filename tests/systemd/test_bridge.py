"""wakeq-bridge in a booted system: enabled, fed, watched, stopped."""

from __future__ import annotations

from wakeq_machine import WakeqMachine

from redis_servers import wait_until
from wakeq import keys

SERVICE = "wakeq-bridge@clicks.service"
SECOND = "wakeq-bridge@clicks:2.service"
CHANNEL, STREAM, IDS = "messages:published", "messages:processed", "consumer:ids"
FILE = "/etc/wakeq/bridges/clicks.toml"
TRANSFORM = """
def transform(message):
    print("saw", message.text())
    return {"said": message.text().upper()}
"""


def start(machine: WakeqMachine, settings: str = "", service: str = SERVICE) -> None:
    """Enable it and start it; that returns when it takes messages or stands by."""
    machine.write(FILE, f'channel = "{CHANNEL}"\n{settings}')
    machine.systemctl("enable", "--quiet", "--now", service)
    assert machine.state(service) == "active"


def publish(machine: WakeqMachine, *words: str) -> None:
    """Publish as an operator would."""
    assert machine.run("wakeq", "publish", "--channel", CHANNEL, *words) == "received by 1\n"


def wait_entries(machine: WakeqMachine, count: int) -> list[dict[str, str]]:
    """Wait until the stream has so many entries, and return their fields."""
    with machine.redis() as client:
        wait_until(lambda: client.xlen(STREAM) == count, message=f"{count} entries")
        return [fields for _, fields in client.xrange(STREAM)]


def ids(machine: WakeqMachine) -> list[str]:
    """Return the ids of the workers that live."""
    with machine.redis() as client:
        return sorted(client.lrange(IDS, 0, -1))


def wait_for_holder(machine: WakeqMachine, instance: str) -> None:
    """Wait until the messages are those of an instance."""
    wanted = [f"{machine.run('uname', '-n').strip()}/{instance}", "1"]
    lease = keys.bridge_lease(CHANNEL, "clicks")
    with machine.redis() as client:
        wait_until(
            lambda: client.hmget(lease, "instance", "begun") == wanted,
            message=f"{instance} takes the messages",
        )


def test_publishes_and_tells_and_stops(machine: WakeqMachine) -> None:
    start(machine, "workers = 2\n")
    publish(machine, '{"user": 7}')
    (entry,) = wait_entries(machine, 1)
    host = machine.run("uname", "-n").strip()
    assert entry["user"] == "7"
    assert ids(machine) == [f"{host}/clicks/1", f"{host}/clicks/2"]
    assert entry["consumer_id"] in ids(machine)
    wait_until(lambda: "1 handled" in machine.status_text(SERVICE))
    assert "messages were handled" in machine.log("--output=cat", "-u", SERVICE)
    assert "clicks" in machine.run("wakeq", "status")

    machine.systemctl("stop", SERVICE)
    assert machine.show(SERVICE, "Result") == "success"
    assert machine.show(SERVICE, "ExecMainStatus") == "0"
    assert ids(machine) == []


def test_a_transform_runs_in_its_sandbox(machine: WakeqMachine) -> None:
    machine.write("/srv/clicks.py", TRANSFORM)
    start(machine, 'transform = "/srv/clicks.py:transform"\n')
    publish(machine, "hello")
    (entry,) = wait_entries(machine, 1)
    assert entry["said"] == "HELLO"
    assert "saw hello" in machine.log("--output=cat", "-u", SERVICE)


def test_another_instance_goes_on_when_one_is_stopped_or_killed(machine: WakeqMachine) -> None:
    start(machine, 'lease = "6s"\n')
    start(machine, 'lease = "6s"\n', SECOND)
    publish(machine, "one")
    machine.systemctl("stop", SERVICE)
    wait_for_holder(machine, "clicks:2")
    publish(machine, "two")
    machine.systemctl("start", SERVICE)
    publish(machine, "three")
    wait_entries(machine, 3)  # what is on its way to it would be lost with it
    machine.systemctl("kill", "--signal=KILL", SECOND)

    with machine.redis() as client:

        def is_published() -> bool:
            # Until Redis has seen its end, or another one has begun, it is lost.
            machine.call("wakeq", "publish", "--channel", CHANNEL, "four")
            return bool(client.xlen(STREAM) >= 4)

        wait_until(is_published, message="the other one takes what comes")
        bodies = [fields["body"] for _, fields in client.xrange(STREAM)]
    assert bodies[:3] == ["one", "two", "three"]
    assert set(bodies[3:]) == {"four"}
    # systemd starts it again, and its ids are there again.
    wait_until(lambda: machine.state(SECOND) == "active" and len(ids(machine)) == 2)


def test_a_list_is_moved_whatever_is_killed(machine: WakeqMachine) -> None:
    machine.write("/etc/wakeq/bridges/jobs.toml", 'list = "jobs"\nworkers = 2\n')
    service = "wakeq-bridge@jobs.service"
    with machine.redis() as client:
        for first in range(0, 50_000, 1000):
            client.lpush("jobs", *range(first, first + 1000))
        machine.systemctl("start", service)
        for part in (1, 2, 3):
            wait_until(lambda part=part: client.xlen(STREAM) >= part * 5000, 120, "it moves")
            machine.systemctl("kill", "--signal=KILL", service)
        wait_until(lambda: client.xlen(STREAM) >= 50_000, 300, "all is moved")
        numbers = [int(fields["body"]) for _, fields in client.xrange(STREAM)]
    assert sorted(numbers) == list(range(50_000))


def test_a_wrong_file_is_said_once_and_not_tried_again(machine: WakeqMachine) -> None:
    machine.write(FILE, "chanel = 'x'\n")
    assert machine.call("systemctl", "start", SERVICE).returncode != 0
    assert machine.show(SERVICE, "ExecMainStatus") == "78"
    assert machine.show(SERVICE, "NRestarts") == "0"
    log = machine.log("--output=cat", "SYSLOG_IDENTIFIER=wakeq-bridge")
    assert "unknown setting 'chanel' (did you mean 'channel'?)" in log
