"""wakeq-fanout as a process: what it does for its clients, what they may do to it, how it ends."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import NotifySocket
from fanout_host import FanoutHost
from redis_servers import Cluster, RedisServer, is_stopped, wait_until
from wakeq import FanoutClient, keys

VALUES: list[Any] = [
    *(None, True, 0, -1.5, "", "text", "5", "null", '{"not": "an object"}', "a\nb\r\u2028", "ü😀"),
    *([], {}, [1, [2, {"x": None}]], {"ü": "é", "data": {"event": "message"}}, 10**30, "\ud800"),
]
NAMES = [
    "a::b",
    "*[a-z]?\\",
    "two words",
    "ünï😀",
    "{tag}",
    '"quoted"',
    "line\nend",
    "\x00",
    "x" * 1000,
]


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[FanoutHost]:
    host = FanoutHost(short_dir, redis.url)
    yield host
    host.close()


# -- what it does ----------------------------------------------------------------------------


def test_delivers_a_message_to_all_and_the_next_when_all_have_acknowledged(
    host: FanoutHost,
) -> None:
    host.start()
    first, second, sender = host.member("r"), host.member("r"), host.client()
    ids = [sender.done("send", room="r", data=n, producer="p")["id"] for n in range(2)]

    for client in (first, second):
        assert client.message() == {
            "event": "message", "room": "r", "id": ids[0], "data": 0, "producer": "p", "oob": False,
        }  # fmt: skip
    first.done("ack", room="r", id=ids[0])
    assert sender.done("state", room="r")["message"]["id"] == ids[0]
    second.done("ack", room="r", id=ids[0])

    assert [client.message()["id"] for client in (first, second)] == [ids[1], ids[1]]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_data_comes_as_it_was_sent(host: FanoutHost, value: Any) -> None:
    host.start()
    client = host.member("r")
    client.done("send", room="r", data=value)
    waiting = client.done("send", room="r", data=value)["id"]

    message = client.message()

    assert message["data"] == value
    assert type(message["data"]) is type(value)
    assert client.done("peek", room="r")["messages"] == [
        {"id": waiting, "data": value, "producer": "", "priority": 0}
    ]
    assert client.done("state", room="r")["message"]["data"] == value


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"plain", {"data": "plain"}),
        (b'{"a":\r\n 1}', {"data": {"a": 1}}),
        (b"5\n", {"data": 5}),
        (b'"x"\r\n', {"data": "x"}),
        (b"NaN", {"data": "NaN"}),
        (b"1e999", {"data": "1e999"}),
        (b"[1e999,\n1]", {"data": "[1e999,\n1]"}),
        (b"\xff\x00", {"data": None, "base64": "/wA="}),
        (b"[" * 5000, {"data": "[" * 5000}),
        (b"", {"data": ""}),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_python_programs_send_comes_as_json_text_or_bytes(
    host: FanoutHost, redis: RedisServer, sent: bytes, expected: dict[str, Any]
) -> None:
    host.start()
    client = host.member("r")
    with FanoutClient(redis.url) as rooms:
        rooms.send("r", sent)
        rooms.send("r", sent)

    message = client.message()

    assert {key: message[key] for key in ("data", "base64") if key in message} == expected
    (waiting,) = client.done("peek", room="r")["messages"]
    assert {key: waiting[key] for key in ("data", "base64") if key in waiting} == expected


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:20])
def test_names_may_be_any_text(host: FanoutHost, name: str) -> None:
    host.start()
    client = host.member(name, client=name)
    message_id = client.done("send", room=name, data=1, producer=name)["id"]

    message = client.message()

    assert (message["room"], message["producer"]) == (name, name)
    client.done("ack", room=name, id=message_id)
    assert list(host.clients_in(name)) == [name]
    client.done("unsubscribe", room=name)
    assert host.clients_in(name) == {}


def test_lower_priorities_come_first_and_equal_ones_as_they_were_sent(host: FanoutHost) -> None:
    host.start()
    client, sender = host.member("r"), host.client()
    sender.done("send", room="r", data="first")
    for data, priority in (("a", 5), ("b", 0), ("c", -1), ("d", 0)):
        sender.say("send", room="r", data=data, priority=priority)
    for _ in range(4):
        assert sender.hear()["ok"]

    seen = []
    for _ in range(5):
        message = client.message()
        seen.append(message["data"])
        client.done("ack", room="r", id=message["id"])

    assert seen == ["first", "c", "b", "d", "a"]


def test_out_of_band_comes_at_once_and_is_not_acknowledged(host: FanoutHost) -> None:
    host.start()
    client = host.member("r")
    sent = client.done("send", room="r", data=1)["id"]
    assert client.message()["id"] == sent

    oob = client.done("oob", room="r", data="now", producer="p")["id"]

    assert client.message() == {
        "event": "message", "room": "r", "id": oob, "data": "now", "producer": "p", "oob": True,
    }  # fmt: skip
    assert client.refused("ack", room="r", id=oob) == "not-outstanding"
    client.done("ack", room="r", id=sent)


def test_async_clients_are_not_waited_for(host: FanoutHost) -> None:
    host.start()
    listener, client = host.member("r", mode="async"), host.member("r")
    ids = [client.done("send", room="r", data=n)["id"] for n in range(3)]
    for message_id in ids:
        assert client.message()["id"] == message_id
        client.done("ack", room="r", id=message_id)

    assert [listener.message()["id"] for _ in ids] == ids
    assert listener.refused("ack", room="r", id=ids[0]) == "not-waited-for"


def test_a_wrong_acknowledgement_is_an_error_to_its_sender_and_changes_nothing(
    host: FanoutHost,
) -> None:
    host.start()
    first, second, stranger = host.member("r"), host.member("r"), host.client()
    one, two = (stranger.done("send", room="r", data=n)["id"] for n in range(2))
    assert first.message()["id"] == second.message()["id"] == one

    assert first.refused("ack", room="r", id=two) == "not-outstanding"  # early
    assert first.refused("ack", room="r", id="1") == "not-outstanding"
    assert first.refused("ack", room="other", id=one) == "not-subscribed"
    assert stranger.refused("ack", room="r", id=one) == "not-subscribed"
    first.done("ack", room="r", id=one)
    assert first.refused("ack", room="r", id=one) == "doubled"
    late = host.member("r")
    assert late.refused("ack", room="r", id=one) == "not-waited-for"
    assert stranger.done("state", room="r")["message"]["id"] == one
    second.done("ack", room="r", id=one)
    # The early one was not kept: it is waited for.
    assert first.message()["id"] == second.message()["id"] == late.message()["id"] == two
    assert stranger.done("metrics", room="r")["metrics"]["waiting"] == 3
    assert first.refused("ack", room="r", id=one) == "not-outstanding"  # late


def test_of_two_acknowledgements_in_one_piece_one_counts(host: FanoutHost) -> None:
    host.start()
    client = host.member("r")
    sent = client.done("send", room="r", data=1)["id"]
    client.message()
    line = json.dumps({"op": "ack", "room": "r", "id": sent}).encode() + b"\n"

    client.write(line * 2)

    answers = [client.hear() for _ in range(2)]
    assert [answer["ok"] for answer in answers] == [True, False]
    assert client.done("metrics", room="r")["metrics"]["acknowledged"] == 1


def test_many_rooms_over_one_connection_hold_up_one_another_not(host: FanoutHost) -> None:
    host.start()
    client = host.client()
    for number in range(50):
        client.done("subscribe", room=f"r{number}")
    stuck = client.done("send", room="r0", data="never acknowledged")["id"]

    for number in range(1, 50):
        client.done("send", room=f"r{number}", data=number)
    for _ in range(50):
        message = client.message()
        if message["id"] != stuck:
            client.done("ack", room=message["room"], id=message["id"])

    metrics = client.done("metrics", top=2, by="waiting")["metrics"]
    assert (metrics["acknowledged"], metrics["clients"]) == (49, 50)
    assert (len(metrics["top"]), metrics["top"][0]["room"]) == (2, "r0")


def test_a_full_room_refuses(host: FanoutHost) -> None:
    host.start("--queue-limit=2")
    client = host.client()
    for n in range(2):
        client.done("send", room="r", data=n)
    assert client.refused("send", room="r", data=2) == "full"


def test_the_backlog_is_dropped_if_the_last_one_wants_that(host: FanoutHost) -> None:
    host.start()
    client, other = host.member("r", backlog="drop"), host.client()
    for n in range(3):
        other.done("send", room="r", data=n)
    client.done("unsubscribe", room="r")
    assert other.done("metrics", room="r")["metrics"]["backlog"] == 0


def test_it_serves_the_network_too(host: FanoutHost) -> None:
    address = host.listen_to_network()
    host.start()
    local, remote = host.member("r"), host.client(address)
    remote.done("subscribe", room="r")
    sent = local.done("send", room="r", data=1)["id"]
    assert local.message()["id"] == remote.message()["id"] == sent


def test_several_gateways_and_python_programs_share_a_room(
    host: FanoutHost, short_dir: Path, redis: RedisServer
) -> None:
    (short_dir / "2").mkdir()
    second = FanoutHost(short_dir / "2", redis.url)
    try:
        host.start()
        second.start()
        here, there = host.member("r"), second.member("r")
        with FanoutClient(redis.url) as rooms:
            ids = [rooms.send("r", n) for n in range(3)]
        for message_id in ids:
            assert here.message()["id"] == message_id
            here.done("ack", room="r", id=message_id)
            assert there.message()["id"] == message_id
            there.done("ack", room="r", id=message_id)
    finally:
        second.close()


def test_on_cluster_rooms_are_on_all_nodes(short_dir: Path) -> None:
    (short_dir / "c").mkdir()
    cluster = Cluster(short_dir / "c")
    host = FanoutHost(short_dir, "")
    try:
        cluster.start()
        host.env["WAKEQ_REDIS_URL"] = cluster.url()
        host.start()
        client = host.client()
        for number in range(12):
            room = f"r{number}"
            client.done("subscribe", room=room)
            sent = client.done("send", room=room, data=number)["id"]
            assert client.message()["id"] == sent
            client.done("ack", room=room, id=sent)
        assert client.done("metrics")["metrics"]["clients"] == 12
    finally:
        host.close()
        cluster.stop()


# -- what clients may do to it ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"garbage", "bad-line"),
        (b"\xff\xfe", "bad-line"),
        (b"[1]", "bad-line"),
        (b"null", "bad-line"),
        (b'"' + b"x" * 2000 + b'"', "bad-line"),
        (b"[" * 5000, "bad-line"),
        (b"9" * 5000, "bad-line"),
        (b'{"op":"send","room":"r","data":NaN}', "bad-line"),
        (b"\x00", "bad-line"),
        (b"{}", "bad-request"),
        (b'{"op":1}', "bad-request"),
        (b'{"op":"shout"}', "bad-request"),
        (b'{"op":"send","data":1}', "bad-request"),
        (b'{"op":"send","room":"r"}', "bad-request"),
        (b'{"op":"send","room":"","data":1}', "bad-request"),
        (b'{"op":"send","room":5,"data":1}', "bad-request"),
        (b'{"op":"send","room":"\\ud800","data":1}', "bad-request"),
        (b'{"op":"send","room":"' + b"x" * 1001 + b'","data":1}', "bad-request"),
        (b'{"op":"send","room":"r","data":1e999}', "bad-request"),
        (b'{"op":"send","room":"r","data":1,"priority":1.5}', "bad-request"),
        (b'{"op":"send","room":"r","data":1,"priority":true}', "bad-request"),
        (b'{"op":"send","room":"r","data":1,"priority":1e999}', "bad-request"),
        (b'{"op":"send","room":"r","data":1,"priority":99999999999999999999}', "bad-request"),
        (b'{"op":"send","room":"r","data":1,"prioriy":1}', "bad-request"),
        (b'{"op":"subscribe","room":"r","mode":"loud"}', "bad-request"),
        (b'{"op":"subscribe","room":"r","client":""}', "bad-request"),
        (b'{"op":"subscribe","room":"r","backlog":"burn"}', "bad-request"),
        (b'{"op":"subscribe","room":"r","timeout":0}', "bad-request"),
        (b'{"op":"ack","room":"r","id":12}', "bad-request"),
        (b'{"op":"ack","room":"r","id":"1","ref":[1e999]}', "not-subscribed"),
        (b'{"op":"ack","room":"r","id":"1","ref":{"a":-1e999}}', "not-subscribed"),
        (b'{"op":"ack","room":"r","id":"1"}', "not-subscribed"),
        (b'{"op":"unsubscribe","room":"r"}', "not-subscribed"),
        (b'{"op":"ping","room":"r"}', "not-subscribed"),
        (b'{"op":"peek","room":"r","limit":1001}', "bad-request"),
        (b'{"op":"peek","room":"r","offset":-1}', "bad-request"),
        (b'{"op":"peek","room":"r","offset":' + b"9" * 4300 + b"}", "bad-request"),
        (b'{"op":"peek","room":"r","limit":' + b"9" * 4300 + b"}", "bad-request"),
        (b'{"op":"metrics","top":' + b"9" * 4300 + b"}", "bad-request"),
        (b'{"op":"send","room":"r","data":1,"priority":-' + b"9" * 4300 + b"}", "bad-request"),
        (b'{"op":"subscribe","room":"r","timeout":' + b"9" * 4300 + b"}", "bad-request"),
        (b'{"op":"metrics","by":"beauty"}', "bad-request"),
        (b'{"op":"metrics","room":"r","top":1}', "bad-request"),
        (b'{"op":"metrics","top":-1}', "bad-request"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_no_request_gets_one_error_and_nothing_else(
    host: FanoutHost, line: bytes, error: str
) -> None:
    gateway = host.start()
    client, other = host.client(), host.member("r")

    client.write(line + b"\n")

    answer = client.hear()
    assert (answer["ok"], answer["error"], answer["ref"]) == (False, error, None)
    assert 0 < len(answer["message"]) < 300
    # It goes on, for this client and for others.
    sent = client.done("send", room="r", data=1)["id"]
    assert other.message()["id"] == sent
    assert gateway.lines == []


def test_an_answer_carries_its_ref_back_whatever_it_is(host: FanoutHost) -> None:
    host.start()
    client = host.client()
    for ref in VALUES:
        client.write(json.dumps({"op": "ping", "ref": ref}).encode() + b"\n")
        assert client.hear() == {"ref": ref, "ok": True}
        client.write(json.dumps({"op": "pong", "ref": ref}).encode() + b"\r\n\n \n")
        assert client.hear()["ref"] == ref


def test_a_line_that_is_too_long_is_passed_over(host: FanoutHost) -> None:
    host.start("--line-kib=1")
    client = host.client()
    client.write(b'{"op":"ping","ref":1}\n' + b"x" * 300_000 + b'\n{"op":"ping","ref":2}\n')
    answers = [client.hear() for _ in range(3)]
    assert [answer.get("error") for answer in answers] == [None, "too-long", None]
    assert [answer["ref"] for answer in answers] == [1, None, 2]


def test_a_line_may_come_in_pieces(host: FanoutHost) -> None:
    host.start()
    client = host.client()
    line = json.dumps({"op": "send", "room": "r", "data": "é" * 100, "ref": 1}).encode() + b"\n"
    for start in range(0, len(line), 7):
        client.write(line[start : start + 7])
    assert client.hear()["ok"]
    assert client.done("peek", room="r")["messages"][0]["data"] == "é" * 100


def test_requests_of_one_connection_keep_their_order(host: FanoutHost) -> None:
    host.start()
    client = host.client()
    lines = [json.dumps({"op": "send", "room": "r", "data": n, "ref": n}) for n in range(2000)]
    client.write(("\n".join(lines) + "\n").encode())
    assert [client.hear()["ref"] for _ in lines] == list(range(2000))
    messages = client.done("peek", room="r", limit=1000, offset=500)["messages"]
    assert [message["data"] for message in messages] == list(range(500, 1500))


def test_who_hangs_up_after_its_requests_has_them_carried_out(host: FanoutHost) -> None:
    host.start()
    hasty = host.client()
    lines = [json.dumps({"op": "send", "room": "r", "data": n}) for n in range(100)]
    hasty.write("\n".join(lines).encode())  # the last one without an end
    hasty.close()
    client = host.client()
    wait_until(lambda: client.done("metrics", room="r")["metrics"]["backlog"] == 100)


def test_hanging_up_leaves_all_rooms_and_ends_the_rounds(host: FanoutHost) -> None:
    host.start()
    stays, goes = host.member("a"), host.member("a")
    goes.done("subscribe", room="b")
    one, two = (stays.done("send", room="a", data=n)["id"] for n in range(2))
    assert stays.message()["id"] == goes.message()["id"] == one
    stays.done("ack", room="a", id=one)

    goes.close()

    assert stays.message()["id"] == two
    host.wait_clients("b", 0)
    assert stays.done("metrics", room="a")["metrics"]["timeouts"] == 0


def test_a_silent_client_is_ejected_if_it_has_asked_for_that(host: FanoutHost) -> None:
    host.start()
    stays, silent = host.member("r"), host.member("r", timeout=1.0)
    one, two = (stays.done("send", room="r", data=n)["id"] for n in range(2))
    stays.message()
    stays.done("ack", room="r", id=one)

    assert stays.message()["id"] == two
    told = silent.event()
    if told["event"] == "message":  # else it was silent for as long before that was sent
        assert told["id"] == one
        told = silent.event()
    assert told == {"event": "ejected", "room": "r", "reason": "timed-out"}
    assert silent.refused("ack", room="r", id=one) == "timed-out"
    silent.done("subscribe", room="r")


def test_pings_keep_such_a_client(host: FanoutHost) -> None:
    host.start()
    # As long as a busy machine may not run one of us.
    client = host.member("r", timeout=4.0)
    end = time.monotonic() + 5.0
    while time.monotonic() < end:
        client.done("ping")
        client.done("ping", room="r")
        time.sleep(0.02)  # the machine is for others, too
    assert client.events == []


def test_the_same_client_id_takes_the_client_over_with_what_is_outstanding(
    host: FanoutHost,
) -> None:
    host.start()
    before = host.member("r", client="ada")
    sent = before.done("send", room="r", data=1)["id"]
    assert before.message()["id"] == sent

    after = host.member("r", client="ada")

    assert before.event() == {"event": "ejected", "room": "r", "reason": "taken-over"}
    assert after.message()["id"] == sent
    assert before.refused("ack", room="r", id=sent) == "taken-over"
    before.close()
    after.done("ack", room="r", id=sent)
    assert list(host.clients_in("r")) == ["ada"]


def test_a_client_may_come_back_at_once_over_and_over(host: FanoutHost) -> None:
    host.start()
    for number in range(30):
        client = host.member("r", client="ada")
        sent = client.done("send", room="r", data=number)["id"]
        assert client.message()["id"] == sent
        client.done("ack", room="r", id=sent)
        client.close()
    host.wait_clients("r", 0)


def test_who_was_unsubscribed_by_others_hears_it(host: FanoutHost, redis: RedisServer) -> None:
    host.start()
    client = host.member("r", client="ada")
    with FanoutClient(redis.url) as rooms:
        rooms.unsubscribe("r", "ada")
    assert client.event() == {"event": "ejected", "room": "r", "reason": "not-subscribed"}


# -- slow readers ----------------------------------------------------------------------------


def test_a_client_that_does_not_read_is_ejected_and_others_go_on(host: FanoutHost) -> None:
    # After as long again it would be hung up on, in the middle of a line.
    gateway = host.start("--unread-kib=64", "--slow-timeout=5s")
    slow, client = host.member("r", mode="async"), host.member("r")
    for _ in range(40):
        sent = client.done("send", room="r", data="x" * 50_000)["id"]
        assert client.message()["id"] == sent
        client.done("ack", room="r", id=sent)

    host.wait_clients("r", 1)

    lines = []
    while not (lines and lines[-1]["event"] == "ejected"):
        lines.append(slow.event())
    assert lines[-1]["reason"] == "too-slow"
    # What it got is without a gap from the first one on, and not all.
    assert len(lines) < 40
    slow.done("subscribe", room="r")
    assert gateway.running


def test_a_client_that_reads_as_fast_as_it_can_is_never_ejected(host: FanoutHost) -> None:
    host.start("--unread-kib=64", "--slow-timeout=10s")
    sender = host.client()
    sent = [sender.done("send", room="r", data="x" * 50_000)["id"] for _ in range(100)]
    # They are given to it all at once.
    listeners = [host.client() for _ in range(2)]
    for listener in listeners:
        listener.done("subscribe", room="r", mode="async", backlog="keep")
    assert [listeners[0].message()["id"] for _ in sent] == sent
    assert listeners[0].events == []


def test_who_never_reads_is_hung_up_on(host: FanoutHost) -> None:
    host.start("--unread-kib=64", "--slow-timeout=300ms")
    slow, client = host.member("r", mode="async"), host.client()
    for _ in range(40):
        client.done("send", room="r", data="x" * 50_000)
    host.wait_clients("r", 0)
    # 32 of what was sent are kept by the kernel at most; the last line may be cut.
    wait_until(lambda: is_closed_at_far_end(slow.socket))


def is_closed_at_far_end(sock: socket.socket) -> bool:
    """Tell whether the other side has hung up, though there may be something to read."""
    try:
        sock.send(b"\n")
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


def test_who_does_not_read_answers_is_not_read_from(host: FanoutHost) -> None:
    gateway = host.start("--unread-kib=64", "--slow-timeout=1h")
    slow, client = host.client(), host.client()
    client.done("send", room="r", data="x" * 10_000)
    slow.socket.settimeout(1)
    line = json.dumps({"op": "peek", "room": "r"}).encode() + b"\n"
    with pytest.raises(TimeoutError):
        while True:
            slow.write(line * 100)
    assert client.done("ping")["ok"]
    status = Path(f"/proc/{gateway.pid}/status").read_text()
    (peak,) = [int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM")]
    assert peak < 200_000  # KiB
    slow.socket.settimeout(30)
    assert slow.hear()["ok"]


def test_no_answer_is_left_out_however_late_it_is_read(host: FanoutHost) -> None:
    host.start("--unread-kib=64", "--slow-timeout=1h")
    other = host.client()
    for _ in range(60):
        other.done("send", room="r", data="x" * 950)
    late = [host.client() for _ in range(8)]
    # Each of them is stopped by what the kernel takes at another place.
    limits = [[5 * number, *[30, 60] * 20] for number in range(len(late))]
    for client, some in zip(late, limits, strict=True):
        requests = [{"op": "peek", "room": "r", "limit": limit} for limit in some]
        client.write(b"".join(json.dumps(each).encode() + b"\n" for each in requests))
    # Nothing is read meanwhile.
    for _ in range(100):
        other.done("peek", room="r", limit=1)

    for client, some in zip(late, limits, strict=True):
        assert [len(client.hear()["messages"]) for _ in some] == some


def test_answers_are_kept_for_who_is_ejected(host: FanoutHost) -> None:
    host.start("--unread-kib=64", "--slow-timeout=1h")
    client, rooms = host.client(), [f"r{number}" for number in range(40)]
    for _ in range(30):
        client.done("send", room="waits", data="x" * 900)
    slow = [host.member(rooms[0]) for _ in range(10)]
    for each in slow:
        for room in rooms[1:]:
            each.done("subscribe", room=room)
    for room in rooms:
        for number, each in enumerate(slow):
            each.say("peek", room="waits", limit=5 + 2 * number)
        client.done("send", room=room, data="x" * 20_000)
    host.wait_clients(rooms[0], 0)

    for each in slow:
        last = each.say("ping")
        told = [each.hear()]
        while told[-1].get("ref") != last:
            told.append(each.hear())
        refs = [told["ref"] for told in told if "ref" in told]
        assert refs == list(range(len(rooms) + 1, last + 1))
        assert [told["reason"] for told in told if "reason" in told] == ["too-slow"] * len(rooms)


def test_an_answer_that_is_too_long_is_an_error(host: FanoutHost) -> None:
    host.start("--unread-kib=64")
    client = host.client()
    for _ in range(10):
        client.done("send", room="r", data="x" * 10_000)
    assert client.refused("peek", room="r") == "too-long"
    client.done("peek", room="r", limit=5)


def test_more_connections_than_there_may_be_wait(host: FanoutHost) -> None:
    host.start("--connections=2")
    first, second, third = (host.client() for _ in range(3))
    for client in (first, second):
        client.done("ping")
    third.say("ping")
    third.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        third.socket.recv(1, socket.MSG_PEEK)
    third.socket.settimeout(30)
    first.close()
    assert third.hear()["ok"]
    second.done("ping")


# -- how it begins and ends ------------------------------------------------------------------


def test_it_ends_when_nobody_was_connected_for_the_idle_timeout(
    host: FanoutHost, notify_socket: NotifySocket
) -> None:
    host.env |= notify_socket.env
    client = host.client()
    gateway = host.start("--idle-timeout=2.5s")
    notify_socket.wait_for("READY=1")
    client.done("ping")
    notify_socket.wait_for("STATUS=1 connections, 0 clients in rooms")
    began = time.monotonic()
    client.close()
    assert gateway.wait_exit() == 0
    assert time.monotonic() - began > 2.4
    notify_socket.wait_for("STOPPING=1")
    assert gateway.lines == []


def test_it_stays_for_who_is_connected_and_silent(host: FanoutHost) -> None:
    client = host.client()
    gateway = host.start("--idle-timeout=2.5s")
    client.done("ping")
    with pytest.raises(AssertionError, match="still running"):
        gateway.wait_exit(4)
    client.done("ping")


def test_who_connects_while_it_leaves_is_left_to_the_next_one(host: FanoutHost) -> None:
    first = host.start("--idle-timeout=2.5s", WAKEQ_FAILPOINT="before_idle_exit:stop")
    wait_until(lambda: is_stopped(first.pid))
    client = host.client()
    ref = client.say("subscribe", room="r")
    first.send(signal.SIGCONT)
    assert first.wait_exit() == 0
    host.start()
    assert client.hear()["ref"] == ref


def test_a_stop_tells_everybody_and_takes_them_out_of_their_rooms(
    host: FanoutHost, redis: RedisServer
) -> None:
    gateway = host.start()
    clients = [host.member("r") for _ in range(3)]
    assert gateway.stop() == 0
    for client in clients:
        assert client.event() == {"event": "ejected", "room": "r", "reason": "stopping"}
        assert client.is_hung_up()
    with FanoutClient(redis.url) as rooms:
        assert rooms.room_state("r").clients == {}
    assert gateway.lines == []


def test_it_serves_before_redis_does(host: FanoutHost, own_redis: RedisServer) -> None:
    own_redis.stop()
    host.env["WAKEQ_REDIS_URL"] = own_redis.url
    gateway = host.start()
    client = host.client()
    client.done("ping")
    assert client.refused("send", room="r", data=1) == "unavailable"
    own_redis.start()
    gateway.wait_log("Redis is back")
    client.done("send", room="r", data=1)
    assert gateway.count("Redis was lost") == 1


def test_a_wrong_password_is_told_to_who_asks(host: FanoutHost, own_redis: RedisServer) -> None:
    own_redis.client().config_set("requirepass", "secret")
    host.env["WAKEQ_REDIS_URL"] = own_redis.url
    host.start()
    client = host.client()
    assert client.refused("send", room="r", data=1) == "refused"
    assert client.refused("subscribe", room="r") == "refused"
    client.done("ping")


def test_what_others_have_written_where_rooms_are_ends_nothing(
    host: FanoutHost, redis: RedisServer
) -> None:
    host.start()
    client = host.member("r")
    client.done("send", room="broken", data=1)
    redis.client().hset(keys.room("broken")[0], "oob", "many")
    redis.client().sadd(keys.ROOMS, b"\xff")
    metrics = client.done("metrics")["metrics"]
    assert (metrics["rooms"], metrics["broken"]) == (1, ["broken"])
    assert client.refused("metrics", room="broken") == "failed"
    assert client.refused("state", room="broken") == "failed"


def test_who_cannot_be_unsubscribed_is_told_why_and_leaves_when_that_is_over(
    host: FanoutHost, own_redis: RedisServer
) -> None:
    host.env["WAKEQ_REDIS_URL"] = own_redis.url
    host.start()
    client, other = host.member("r"), host.member("other")
    redis = own_redis.client()
    members, rights = keys.room("r")[3], ("ACL", "SETUSER", "default")

    redis.execute_command(*rights, "-eval", "-evalsha")
    assert client.refused("unsubscribe", room="r") == "refused"
    redis.execute_command(*rights, "+eval", "+evalsha")
    host.wait_clients("r", 0)

    client.done("subscribe", room="r")
    with redis.pipeline() as at_once:  # else a look in between finds that nobody is a client
        at_once.rename(members, "{r}elsewhere")
        at_once.set(members, "broken")
        at_once.execute()
    assert client.refused("unsubscribe", room="r") == "failed"
    redis.rename("{r}elsewhere", members)
    host.wait_clients("r", 0)
    other.done("ping", room="other")


def test_an_idle_client_costs_one_command_for_each_ping_interval(
    host: FanoutHost, own_redis: RedisServer
) -> None:
    host.env["WAKEQ_REDIS_URL"] = own_redis.url
    host.start("--timeout=3s")
    host.member("r")
    calls = Calls(own_redis)
    wait_until(lambda: calls.are_quiet(0.7))
    began, before = time.monotonic(), calls.count()
    wait_until(lambda: calls.count() >= before + 3)
    # Each second, a third of the time-out, and no more than once.
    assert time.monotonic() - began > 1.9


class Calls:
    """Counts the scripts that a server runs."""

    def __init__(self, server: RedisServer) -> None:
        self._redis = server.client()

    def are_quiet(self, seconds: float) -> bool:
        """Tell whether it runs none for so long."""
        before, until = self.count(), time.monotonic() + seconds
        while time.monotonic() < until:
            if self.count() != before:
                return False
            time.sleep(0.01)
        return True

    def count(self) -> int:
        """Return how many it has run."""
        stats = self._redis.info("commandstats")
        return sum(
            stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha")
        )
