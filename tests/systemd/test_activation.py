"""A consumer under a real systemd: asleep, woken, at work, idle, asleep."""

from __future__ import annotations

from wakeq_machine import GO_ON, WAITS, WAKEUP, WakeqMachine, service, socket

from redis_servers import wait_until

FAILS = """
def handle(message):
    raise ValueError(f"no {message.text()} today")
"""


def test_a_consumer_lives_from_its_first_message_until_it_is_idle(machine: WakeqMachine) -> None:
    machine.configure("orders", WAITS)
    machine.enable("orders")
    wait_until(lambda: "1 asleep" in machine.status_text(WAKEUP))
    assert machine.is_asleep("orders")

    machine.run("wakeq", "publish", "orders", "one")

    machine.wait_for_handled("orders", "one")
    machine.wait_for_state(service("orders"), "active")
    wait_until(lambda: "1 awake" in machine.status_text(WAKEUP))
    machine.write(GO_ON, "")
    wait_until(lambda: "1 handled" in machine.systemctl("status", service("orders"), check=False))
    machine.wait_for_state(service("orders"), "inactive")
    assert machine.show(service("orders"), "Result") == "success"
    assert machine.is_asleep("orders")
    (slept,) = machine.journal("SYSLOG_IDENTIFIER=wakeq-consumer", "WAKEQ_STREAM=orders")
    assert (slept["MESSAGE"], slept["WAKEQ_HANDLED"]) == ("consumer went to sleep", "1")
    assert slept["WAKEQ_GROUP"] == "orders"
    wait_until(lambda: "1 asleep" in machine.status_text(WAKEUP))


def test_one_message_can_be_followed_in_the_journal(machine: WakeqMachine) -> None:
    machine.configure("orders", FAILS, idle_timeout="10min")
    machine.enable("orders")

    ids = machine.publish("orders", "tea", "milk")

    found = [f"WAKEQ_MESSAGE_ID={ids[1]}", "WAKEQ_ATTEMPT=1"]
    wait_until(lambda: machine.journal(*found))
    (entry,) = machine.journal(*found)
    assert entry["MESSAGE"].startswith("message failed\nTraceback")
    assert entry["WAKEQ_ERROR"] == "ValueError: no milk today"
    assert entry["WAKEQ_STREAM"] == entry["WAKEQ_GROUP"] == "orders"
    assert entry["_SYSTEMD_UNIT"] == service("orders")
    assert entry["PRIORITY"] == "4"


def test_the_journal_explains_what_happened(machine: WakeqMachine) -> None:
    machine.configure("orders", FAILS, idle_timeout="10min")
    machine.enable("orders")
    message_id, another_id = machine.publish("orders", "tea", "milk")
    wait_until(lambda: machine.journal(f"WAKEQ_MESSAGE_ID={another_id}", "WAKEQ_ATTEMPT=1"))

    shown = machine.run("journalctl", "--catalog", "-u", service("orders"))

    explained = [line.removeprefix("░░ ") for line in shown.splitlines() if line.startswith("░░")]
    assert "Subject: A message of orders failed" in explained
    assert "Defined-By: wakeq" in explained
    assert f"{message_id}, attempt 1:" in explained
    assert "    ValueError: no tea today" in explained
    # What it tells to do shows that message, and no other.
    hint = f"journalctl WAKEQ_MESSAGE_ID={message_id}"
    assert f"    {hint}" in explained
    messages = machine.run(*hint.split())
    assert "no tea today" in messages
    assert "no milk today" not in messages


def test_instances_come_with_the_backlog_and_go(machine: WakeqMachine) -> None:
    names = ["orders:1", "orders:2", "orders:3", "orders:4"]
    machine.configure("orders", WAITS, "scale_lag = 100\nprefetch = 10")
    machine.enable(*names)

    with machine.redis() as client:
        pipeline = client.pipeline(transaction=False)
        for number in range(800):
            pipeline.xadd("orders", {"body": number})
        pipeline.execute()

    wait_until(
        lambda: all(machine.state(service(name)) == "active" for name in names), 120, "all awake"
    )
    machine.write(GO_ON, "")
    wait_until(lambda: machine.is_drained("orders"))
    for name in names:
        wait_until(lambda name=name: machine.is_asleep(name), message=f"{name} sleeps")


def test_two_hundred_sleepers_cost_no_process(machine: WakeqMachine) -> None:
    names = [f"s{number}" for number in range(200)]
    for name in names:
        machine.configure(name)
    machine.enable(*names)
    wait_until(lambda: "200 asleep" in machine.status_text(WAKEUP))
    assert machine.call("pgrep", "-f", "wakeq-consumer").returncode == 1

    for name in names[::40]:
        machine.publish(name, "hello")

    for name in names[::40]:
        machine.wait_for_handled(name, "hello")
    wait_until(lambda: "200 asleep" in machine.status_text(WAKEUP))
    assert machine.systemctl("--failed", "--plain", "--no-legend").strip() == ""
    assert all(machine.state(socket(name)) == "active" for name in names[::40])
