"""The smaller parts of the consumer: processes, acknowledgements, leases, programs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wakeq.config import Consumer as Settings
from wakeq.consumer import process
from wakeq.consumer.acknowledger import Acknowledger, Failure
from wakeq.consumer.hand import RETRY, STREAM, Hand, Member
from wakeq.consumer.handler import Handler, batch, load
from wakeq.consumer.keeper import Keeper
from wakeq.consumer.main import PROGRAM
from wakeq.consumer.program import Runner
from wakeq.consumer.reporter import Reporter
from wakeq.consumer.wakesocket import WakeSocket
from wakeq.errors import BusyError, ConfigError, HandlerFailure, Reject, Retry
from wakeq.message import Message, Publish, pack_failed
from wakeq.scripts import Script
from wakeq.selector import Selector
from wakeq.service import Service
from wakeq.wire import ServerError


def message(number: int, source: int = STREAM, *items: bytes) -> Message:
    return Message("orders", source, b"%d-0" % number, items or (b"body", b"x"))


# -- processes --------------------------------------------------------------------------------


def test_this_process_is_not_gone() -> None:
    assert not process.is_gone(process.describe_self())
    assert process.pid_of(process.describe_self()) == str(os.getpid())


def test_a_process_that_has_ended_is_gone_also_before_anybody_waits_for_it() -> None:
    command = [sys.executable, "-c", "input()"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE)
    boot, namespace, _, _ = process.describe_self().split("/")
    started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    name = f"{boot}/{namespace}/{child.pid}/{started}"
    assert not process.is_gone(name)
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.is_gone(name)
    child.wait()
    assert process.is_gone(name)


def test_a_process_id_that_another_has_now_is_gone() -> None:
    boot, namespace, pid, start = process.describe_self().split("/")
    assert process.is_gone(f"{boot}/{namespace}/{pid}/{int(start) - 1}")


def test_nothing_is_known_of_a_process_in_another_namespace() -> None:
    boot, namespace, _, _ = process.describe_self().split("/")
    assert not process.is_gone(f"{boot}/{int(namespace) + 1}/999999999/1")


@pytest.mark.parametrize("name", ["", "x", "a/b", "a/b/c/d/e", "no-boot/1/2/3"])
def test_a_process_of_another_boot_is_gone_however_it_is_written(name: str) -> None:
    assert process.is_gone(name)
    assert process.pid_of(name)


def test_a_process_that_lives_is_not_gone_whatever_boot_it_says() -> None:
    _, namespace, pid, start = process.describe_self().split("/")
    assert not process.is_gone(f"other-boot/{namespace}/{pid}/{start}")
    assert process.is_gone(f"other-boot/{namespace}/{pid}/{int(start) - 1}")
    assert process.is_gone(f"other-boot/{int(namespace) + 1}/{pid}/{start}")


def test_a_process_of_this_boot_that_is_no_number_is_not_known_to_be_gone() -> None:
    boot, namespace, _, _ = process.describe_self().split("/")
    assert not process.is_gone(f"{boot}/{namespace}/x/1")


# -- acknowledging ----------------------------------------------------------------------------


class FakeChannel:
    """Collects what is asked; the test answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._waiting: list[Callable[[object], None]] = []

    def ask(self, command: Any, on_reply: Callable[[object], None], patience: float = 0) -> None:
        self.asked.append(tuple(command))
        self._waiting.append(on_reply)

    def run(self, script: Script, keys: Any, arguments: Any, on_reply: Any) -> None:
        self.asked.append((script.name, *keys, *arguments))
        self._waiting.append(on_reply)

    def answer(self, reply: object) -> None:
        self._waiting.pop(0)(reply)


def acknowledger() -> tuple[Acknowledger, Hand, FakeChannel]:
    hand = Hand()
    some = Acknowledger(Member("orders", "billing", "me"), hand)
    some.is_sure = lambda: False
    some.on_confirmed = lambda: None
    return some, hand, FakeChannel()


def test_sends_each_stream_by_itself_and_forgets_when_confirmed() -> None:
    some, hand, channel = acknowledger()
    messages = [message(1), message(2), message(3, RETRY)]
    hand.take(messages)
    some.add_ids(STREAM, [b"1-0", b"2-0"])
    some.add_ids(RETRY, [b"3-0"])
    assert some.has_ready
    some.send(channel, b"2-0")  # type: ignore[arg-type]
    stats, retry = "wakeq:{orders}:stats:billing", "wakeq:{orders}:retry:billing"
    assert channel.asked == [
        ("acknowledge", "orders", stats, "billing", b"2-0", 0, b"1-0", b"2-0"),
        ("acknowledge", retry, stats, "billing", b"2-0", 1, b"3-0"),
    ]
    assert not some.has_ready
    assert not some.is_settled
    assert hand.holds(messages[0]), "a read of the own pending would return it"
    channel.answer(2)
    assert not hand.holds(messages[0])
    assert hand.holds(messages[2])
    channel.answer(1)
    assert some.is_settled


def test_sends_at_most_a_thousand_together() -> None:
    some, _, channel = acknowledger()
    some.add_ids(STREAM, [b"%d-0" % n for n in range(2500)])
    some.send(channel, b"")  # type: ignore[arg-type]
    assert [len(command) - 6 for command in channel.asked] == [1000, 1000, 500]


def test_what_was_not_confirmed_is_sent_again() -> None:
    some, hand, channel = acknowledger()
    joint, plain, failed, dead = map(message, range(1, 5))
    hand.take([joint, plain, failed, dead])
    some.add_ids(STREAM, [b"2-0"])
    some.add_joint([joint], [Publish("mail", "x")])
    some.discard(RETRY, [b"9-0"])
    some.add_failure(Failure(failed, 1500, [b"body", b"x"]))
    some.add_failure(Failure(dead, -1, [b"body", b"x"]))
    some.send(channel, b"")  # type: ignore[arg-type]
    first = list(channel.asked)
    some.lost()
    assert some.has_ready
    assert some.unsettled == {joint, failed, dead}
    again = FakeChannel()
    some.send(again, b"")  # type: ignore[arg-type]
    assert again.asked == first
    while not some.is_settled:
        again.answer(1)
    assert not any(map(hand.holds, (joint, plain, failed, dead)))
    assert not some.unsettled
    some.lost()
    assert some.is_settled


def test_moves_failed_messages_together_but_each_stream_by_itself() -> None:
    some, hand, channel = acknowledger()
    messages = [message(1), message(2, RETRY, b"wakeq.first_id", b"0-7"), message(3)]
    hand.take(messages)
    for failed, delay_ms in zip(messages, (1500, 0, -1), strict=True):
        some.add_failure(Failure(failed, delay_ms, [b"body", b"x"]))
    some.send(channel, b"3-0")  # type: ignore[arg-type]
    prefix = "wakeq:{orders}"
    stats, retry = f"{prefix}:stats:billing", f"{prefix}:retry:billing"
    targets = (f"{prefix}:delayed", f"{prefix}:delayed:data")
    head = ("billing", "me", b"3-0", "orders", "wakeq:doorbell")
    items = [b"body", b"x"]
    first, second, third = (pack_failed("billing", each, items) for each in ("1-0", "0-7", "3-0"))
    both = (b"1-0", "1-0@billing", 1500, *first, b"3-0", "3-0@billing", -1, *third)
    assert channel.asked == [
        ("fail", "orders", stats, *targets, f"{prefix}:dead:billing", *head, 1500, *both),
        ("fail", retry, stats, *targets, *head, 0, b"2-0", "0-7@billing", 0, *second),
    ]
    assert hand.holds(messages[0]), "a read of the own pending would return it"
    channel.answer([1, 0])
    assert [hand.holds(each) for each in messages] == [False, True, False]
    channel.answer([1])
    assert some.is_settled
    assert not hand.holds(messages[1])


def test_has_looked_whose_the_failed_are_unless_it_is_sure() -> None:
    some, _, channel = acknowledger()
    for is_sure in (False, True):
        some.is_sure = lambda is_sure=is_sure: is_sure  # type: ignore[misc]
        some.add_failure(Failure(message(1), 0, [b"body", b"x"]))
        some.send(channel, b"")  # type: ignore[arg-type]
    assert [command[6] for command in channel.asked] == ["me", ""]


def test_who_takes_a_dead_process_for_its_name_knows_that_it_was_not_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then what was pending may be more by now than when it was looked for."""

    class FakeConnection:
        def __init__(self, *holders: bytes) -> None:
            self.holders = list(holders)

        def call_many(self, commands: Any) -> list[Any]:
            return [self.call(), *(b"then" for _ in commands[1:])]

        def call(self, *_: Any) -> Any:
            return self.holders.pop(0)

    monkeypatch.setattr(process, "is_gone", lambda holder: holder == "dead")
    keeper = Keeper(Member("orders", "billing", "me"), Hand(), 60)
    connection: Any = FakeConnection(b"")
    assert keeper.join(connection, [("PING",)]) == ([b"then"], True)
    assert keeper.is_sure
    connection = FakeConnection(b"dead", b"")
    assert keeper.join(connection, [("PING",)]) == ([b"then"], False)
    assert not keeper.is_sure, "the link was lost, and the name may have been"
    with pytest.raises(BusyError, match="runs already"):
        keeper.join(FakeConnection(b"boot/1/77/3"))  # type: ignore[arg-type]


def test_hands_back_together_what_was_delivered_as_often() -> None:
    hand = Hand()
    keeper = Keeper(Member("orders", "billing", "me"), hand, 60)
    channel: Any = FakeChannel()
    some, begun = [message(n) for n in range(1, 401)], [message(500)]
    some[7].deliveries = begun[0].deliveries = 3
    hand.take([*some, *begun])
    keeper.hand_back(channel, some, begun)
    assert [command[4:6] for command in channel.asked] == [
        (2**31 - 1, 0), (2**31 - 1, 2), (2**31 - 1, ""),
    ]  # fmt: skip
    assert [len(command[6:]) for command in channel.asked] == [399, 1, 1]
    assert channel.asked[1][6:] == (some[7].entry_id,)
    assert not hand.messages[STREAM]


def test_moves_few_failed_messages_together_when_they_are_large() -> None:
    some, _, channel = acknowledger()
    for number in range(1, 251):
        some.add_failure(Failure(message(number), 0, [b"body", b"x"]))
    some.send(channel, b"")  # type: ignore[arg-type]
    assert [(len(command) - 11) / 6 for command in channel.asked] == [100, 100, 50]
    some, _, channel = acknowledger()
    for number in range(1, 6):
        some.add_failure(Failure(message(number), 0, [b"body", b"x" * 600_000]))
    some.send(channel, b"")  # type: ignore[arg-type]
    assert [(len(command) - 11) / 6 for command in channel.asked] == [2, 2, 1]


def test_says_which_keys_may_be_somebody_elses_when_a_failed_message_cannot_be_moved() -> None:
    some, _, channel = acknowledger()
    some.add_failure(Failure(message(1), -1, [b"body", b"x"]))
    some.send(channel, b"")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"wakeq:{orders}:dead:billing holds"):
        channel.answer(ServerError("WRONGTYPE Operation against a key"))


@pytest.mark.parametrize("code", ["OOM", "NOGROUP", "LOADING"])
def test_a_failed_message_stays_in_hand_when_it_could_not_be_moved(code: str) -> None:
    some, hand, channel = acknowledger()
    failed = message(1)
    hand.take([failed])
    some.add_failure(Failure(failed, 0, [b"body", b"x"]))
    some.send(channel, b"")  # type: ignore[arg-type]
    with pytest.raises(ServerError, match=code):
        channel.answer(ServerError(f"{code} no"))
    some.lost()
    assert hand.holds(failed)
    assert some.has_ready


def test_entries_that_are_no_messages_do_not_count() -> None:
    some, _, channel = acknowledger()
    some.discard(STREAM, [b"1-0"])
    some.discard(RETRY, [b"2-0", b"3-0"])
    assert some.has_ready
    some.send(channel, b"")  # type: ignore[arg-type]
    retry = "wakeq:{orders}:retry:billing"
    assert channel.asked == [
        ("XACK", "orders", "billing", b"1-0"),
        ("XDEL", retry, b"2-0", b"3-0"),
        ("XACK", retry, "billing", b"2-0", b"3-0"),
    ]
    for _ in range(3):
        channel.answer(1)
    assert some.is_settled


def test_a_publish_that_is_refused_for_good_fails_its_messages() -> None:
    some, _, channel = acknowledger()
    refused: list[tuple[list[Message], BaseException]] = []
    some.on_refused = lambda messages, error: refused.append((messages, error))
    given = message(1)
    some.add_joint([given], [Publish("mail", "x"), Publish("bills", "y")])
    some.send(channel, b"")  # type: ignore[arg-type]
    (command,) = channel.asked
    assert command[1:5] == ("orders", "wakeq:{orders}:stats:billing", "mail", "bills")
    assert command[-7:] == (b"1-0", 2, b"body", b"x", 2, b"body", b"y")
    channel.answer(error := ServerError("WRONGTYPE bills is a string, not a stream"))
    assert refused == [([given], error)]
    assert some.is_settled


@pytest.mark.parametrize("text", ["READONLY x", "LOADING x", "OOM x"])
def test_an_error_that_passes_is_for_who_holds_the_connection(text: str) -> None:
    some, _, channel = acknowledger()
    some.add_joint([message(1)], [Publish("mail", "x")])
    some.send(channel, b"")  # type: ignore[arg-type]
    with pytest.raises(ServerError):
        channel.answer(ServerError(text))
    some.lost()
    assert some.has_ready


# -- handlers -----------------------------------------------------------------------------------


def sync_handler(_message: Message) -> None: ...


async def async_handler(_message: Message) -> None: ...


@batch(50)
async def batch_handler(_messages: list[Message]) -> None: ...


class Shop:
    @batch(3)
    def __call__(self, messages: list[Message]) -> None: ...


def loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> Handler:
    settings = Settings()
    monkeypatch.setitem(sys.modules, "shop_of_the_test", sys.modules[__name__])
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings.handler = f"shop_of_the_test:{name}"
    return load(settings, "orders")


shop = Shop()


@pytest.mark.parametrize(
    ("name", "is_async", "most"),
    [
        ("sync_handler", False, 0),
        ("async_handler", True, 0),
        ("batch_handler", True, 50),
        ("shop", False, 3),
        ("shop.__call__", False, 3),
    ],
)
def test_tells_what_kind_of_handler_it_is(
    name: str, is_async: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = loaded(name, monkeypatch)
    assert (handler.is_async, handler.batch) == (is_async, most)


@pytest.mark.parametrize("most", [0, -1, 10001])
def test_a_batch_has_a_bound(most: int) -> None:
    with pytest.raises(ValueError, match="a batch has 1 to 10000 messages"):
        batch(most)


def test_a_name_that_is_not_there_is_an_error_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=r"consumer orders: handler .* has no attribute 'nobody'"):
        loaded("nobody", monkeypatch)


# -- programs -------------------------------------------------------------------------------------


def runner(*command: str, timeout: float = 60) -> Runner:
    settings = Settings()
    settings.exec_, settings.timeout = list(command), timeout
    settings.stream = settings.group = "orders"
    return Runner(settings, "consumer orders")


def test_the_environment_of_a_program_has_the_fields_but_not_what_is_ours() -> None:
    given = message(1, STREAM, b"body", b"x", b"a-b", b"1", b"wakeq.attempt", b"4", b"A.B", b"2")
    environment = runner("/bin/true").environment(given)
    ours = {k: v for k, v in environment.items() if k.startswith(b"WAKEQ_FIELD")}
    assert ours == {b"WAKEQ_FIELD_A_B": b"2"}  # of two names that become one, the last
    assert environment[b"WAKEQ_ATTEMPT"] == b"4"
    assert environment[b"PATH"]


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("exit 65", Reject),
        ("exit 75", Retry),
        ("exit 1", HandlerFailure),
        ("kill -9 $$", HandlerFailure),
    ],
)
def test_an_exit_code_is_an_error_or_none(script: str, error: type[Exception]) -> None:
    runner("/bin/sh", "-c", "exit 0").run(message(1))
    with pytest.raises(error):
        runner("/bin/sh", "-c", script).run(message(1))


def test_leaves_no_file_descriptor_behind() -> None:
    some = runner("/bin/sh", "-c", "cat; exit 3")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(HandlerFailure):
            some.run(message(1))
    # Less if garbage of other tests was collected meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= before


# -- what is told ---------------------------------------------------------------------------------


def test_says_that_it_is_ready_before_the_first_message_and_how_it_is_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    service = Service(PROGRAM, "orders", {"config_dir": str(tmp_path)})
    said: list[str] = []
    monkeypatch.setattr(service.notifier, "_send", said.append)
    monkeypatch.setattr(service.notifier, "ready", lambda: said.append("READY=1"))
    report = Reporter(service, Member("orders", "orders", "host/orders"))
    report.ready()
    # The first message goes to its lane before what says the rest is loaded.
    report.tick(0.0)
    assert (report.is_ready, said) == (True, ["READY=1"])
    report.tick(report.next_at)
    assert said[1:] == ["STATUS=starting: 0 in hand, 0 handled"]
    report.ready()
    report.tick(0.0)
    assert said[2:] == []
    late = Reporter(service, Member("orders", "orders", "host/orders"))
    late.ready()
    late.stopping()
    assert said[2:] == ["READY=1", "STOPPING=1"]


# -- the wake socket ------------------------------------------------------------------------------


@pytest.fixture
def lease() -> Any:
    """A wake socket with one connection: `send` and its answers, after each was seen to."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    wake = WakeSocket()
    wake.leases[ours] = b""
    selector = Selector()
    wake.watch(selector, lambda: {"state": "idle"})

    def send(content: bytes) -> bytes:
        theirs.sendall(content)
        for fd in selector.wait(1):
            selector.call(fd)
        try:
            return theirs.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b"-"

    yield send
    ours.close()
    theirs.close()
    selector.close()


def test_answers_each_whole_line_that_asks(lease: Callable[[bytes], bytes]) -> None:
    answer = b'{"state": "idle"}\n'
    assert lease(b"sta") == b"-"
    assert lease(b"tus\nsta") == answer
    assert lease(b"tus\r\n status \nSTATUS\nx\n\n\0\xff\n") == 2 * answer


def test_a_line_has_an_end(lease: Callable[[bytes], bytes]) -> None:
    assert lease(b"x" * 200) == b"-"
    assert lease(b"x" * 57) == b""
