"""wakeq-fanout in a booted system: started by its socket, in its sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from wakeq_machine import WakeqMachine

from fanout_host import Client
from redis_servers import wait_until

SERVICE, SOCKET = "wakeq-fanout.service", "wakeq-fanout.socket"
PATH = "/run/wakeq/fanout.sock"


@contextmanager
def connected(machine: WakeqMachine) -> Iterator[Client]:
    """Connect to the gateway."""
    client = Client(machine.path(PATH))
    try:
        yield client
    finally:
        client.close()


def test_it_is_there_while_somebody_is_connected(machine: WakeqMachine) -> None:
    machine.drop_in(SERVICE, "[Service]\nEnvironment=WAKEQ_IDLE_TIMEOUT=2.5s\n")
    machine.systemctl("enable", "--quiet", "--now", SOCKET)
    assert machine.state(SERVICE) == "inactive"

    for _ in range(2):
        with connected(machine) as client:
            client.done("subscribe", room="r")
            sent = client.done("send", room="r", data="ü")["id"]
            assert client.message()["id"] == sent
            client.done("ack", room="r", id=sent)
            assert machine.state(SERVICE) == "active"
            wait_until(lambda: machine.status_text(SERVICE) == "1 connections, 1 clients in rooms")
        wait_until(lambda: machine.state(SERVICE) == "inactive", message="it has ended")

    assert machine.show(SERVICE, "Result") == "success"
    assert machine.state(SOCKET) == "active"


def test_it_is_restarted_with_its_clients_told(machine: WakeqMachine) -> None:
    machine.systemctl("enable", "--quiet", "--now", SOCKET)
    with connected(machine) as client:
        client.done("subscribe", room="r")
        machine.systemctl("restart", SERVICE)
        assert client.event() == {"event": "ejected", "room": "r", "reason": "stopping"}
        assert client.is_hung_up()
    with connected(machine) as client:
        assert client.done("state", room="r")["clients"] == {}


def test_its_socket_belongs_to_its_group(machine: WakeqMachine) -> None:
    machine.systemctl("enable", "--quiet", "--now", SOCKET)
    assert machine.run("stat", "--format=%U %G %a", PATH).split() == ["wakeq", "wakeq", "660"]


def test_a_drop_in_has_it_listen_to_the_network(machine: WakeqMachine) -> None:
    machine.drop_in(SOCKET, "[Socket]\nListenStream=127.0.0.1:7411\nFreeBind=yes\n")
    machine.systemctl("enable", "--quiet", "--now", SOCKET)
    said = machine.run(
        *("python3", "-c"),
        "import socket; s = socket.create_connection(('127.0.0.1', 7411));"
        's.sendall(b\'{"op":"ping","ref":7}\\n\'); print(s.recv(100).decode())',
    )
    assert said.strip() == '{"ref":7,"ok":true}'


def test_it_hangs_on_the_target(machine: WakeqMachine) -> None:
    machine.systemctl("enable", "--quiet", SOCKET, "wakeq.target")
    machine.systemctl("start", "wakeq.target")
    assert machine.state(SOCKET) == "active"
    machine.systemctl("stop", "wakeq.target")
    machine.wait_for_state(SOCKET, "inactive")  # systemctl does not wait for the parts
