"""wakeq-consumer as a process: what its handlers get, and what becomes of what they return."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consumer_host import ConsumerHost
from redis_servers import RedisServer, wait_until

RETRY = "wakeq:{orders}:retry:orders"


@pytest.fixture
def host(short_dir: Path, redis: RedisServer) -> Iterator[ConsumerHost]:
    host = ConsumerHost(short_dir, redis)
    yield host
    host.close()


# -- kinds of handlers -------------------------------------------------------------------------


def test_calls_a_function_for_each_message_in_order_and_acknowledges(host: ConsumerHost) -> None:
    host.configure(handler=host.handler("def handle(message): record(message.text())\n"))
    host.publish(*range(2500))
    consumer = host.start()
    host.wait_done()
    assert host.records == [str(n) for n in range(2500)]
    assert host.stats()["handled"] == "2500"
    assert consumer.stop() == 0
    assert host.alive() is None
    assert consumer.count("handled=2500") == 1


def test_awaits_a_coroutine_function(host: ConsumerHost) -> None:
    code = """
import asyncio
async def handle(message):
    await asyncio.sleep(0)
    record(message.text())
"""
    host.configure(handler=host.handler(code), concurrency=3)
    host.publish(*range(100))
    host.start()
    host.wait_done()
    assert sorted(host.records, key=int) == [str(n) for n in range(100)]
    assert host.stats()["handled"] == "100"


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_gives_a_batch_handler_as_many_as_it_takes(host: ConsumerHost, kind: str) -> None:
    code = f"""
import wakeq
@wakeq.batch(7)
{kind} handle(messages):
    assert 1 <= len(messages) <= 7
    record(*(message.text() for message in messages))
"""
    host.configure(handler=host.handler(code))
    host.publish(*range(200))
    host.start()
    host.wait_done()
    batches = [line.split() for line in host.records]
    assert [n for batch in batches for n in batch] == [str(n) for n in range(200)]
    assert max(map(len, batches)) == 7
    assert host.stats()["handled"] == "200"


def test_messages_of_a_batch_fail_together(host: ConsumerHost) -> None:
    code = """
import wakeq
@wakeq.batch(10)
def handle(messages):
    if any(message.text() == "bad" for message in messages): raise ValueError("one is bad")
"""
    host.configure(handler=host.handler(code), prefetch=1)
    (bad,) = host.publish("bad")
    host.publish("good")
    consumer = host.start()
    consumer.wait_log("one is bad")
    wait_until(lambda: host.stats().get("handled") == "1")
    assert host.pending() == 0
    assert [message.id for message in host.delayed()] == [bad.decode()]
    assert host.stats()["failed"] == "1"
    consumer.wait_log(bad.decode())


CALLABLES = {
    "partial": "handle = functools.partial(_handle, 'partial')",
    "partial of a coroutine function": "handle = functools.partial(_async, 'partial of a coroutine function')",  # noqa: E501
    "partial of a batch": "handle = functools.partial(_batch, 'partial of a batch')",
    "object": "handle = Handler('object')",
    "async object": "handle = AsyncHandler('async object')",
    "method": "handle = Handler('method').method",
    "lambda": "handle = lambda message: record('lambda')",
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_calls_whatever_can_be_called(host: ConsumerHost, kind: str) -> None:
    code = f"""
import functools, wakeq
def _handle(word, message): record(word)
async def _async(word, message): record(word)
@wakeq.batch(5)
def _batch(word, messages): record(word) if isinstance(messages, list) else 1/0
class Handler:
    def __init__(self, word): self.word = word
    def __call__(self, message): record(self.word)
    def method(self, message): record(self.word)
class AsyncHandler(Handler):
    async def __call__(self, message): record(self.word)
{CALLABLES[kind]}
"""
    host.configure(handler=host.handler(code))
    host.publish("a")
    host.start()
    host.wait_done()
    assert host.records == [kind]


def test_finds_a_handler_in_a_package_and_below_a_class(host: ConsumerHost) -> None:
    host.handler("", "market/__init__.py")
    host.handler("class Orders:\n    @staticmethod\n    def handle(m): record(__name__)\n",
                 "market/orders.py")  # fmt: skip
    host.configure(handler="market.orders:Orders.handle")
    host.publish("a")
    host.start(PYTHONPATH=str(host.app_dir))
    host.wait_done()
    assert host.records == ["market.orders"]


def test_a_file_may_import_what_stands_beside_it(host: ConsumerHost) -> None:
    host.handler("PRICE = 7\n", "prices.py")
    code = "import prices\ndef handle(message): record(prices.PRICE)\n"
    host.configure(handler=host.handler(code))
    host.publish("a")
    host.start()
    host.wait_done()
    assert host.records == ["7"]


def test_an_instance_reads_the_file_of_its_consumer(host: ConsumerHost) -> None:
    host.configure("orders", handler=host.handler("def handle(m): record(m.text())\n"))
    host.publish("a")
    host.start("orders:2")
    host.wait_done()
    assert host.alive("orders:2")
    assert not host.alive("orders")
    (group,) = host.redis.xinfo_groups("orders")
    assert group["name"] == b"orders"


def test_a_handler_on_the_command_line_needs_no_file(host: ConsumerHost) -> None:
    handler = host.handler("def handle(message): record(message.text())\n")
    host.publish("a", stream="letters")
    host.start("mail", "--handler", handler, "--stream=letters")
    host.wait_done(stream="letters", group="mail")
    assert host.records == ["a"]


# -- what is refused at the start ---------------------------------------------------------------


REFUSED = {
    "a generator": ("def handle(message):\n    yield\n", "has a yield"),
    "an asynchronous generator": ("async def handle(m):\n    yield\n", "has a yield"),
    "no such name": ("def other(message): pass\n", "has no attribute 'handle'"),
    "not callable": ("handle = 7\n", "is 7, which cannot be called"),
    "an error": ("import nowhere\n", "ModuleNotFoundError: No module named 'nowhere'"),
    "a syntax error": ("def handle(:\n", "SyntaxError"),
    "a script": ("import sys\nsys.exit(0)\n", "SystemExit: 0"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_says_what_is_wrong_with_a_handler(host: ConsumerHost, what: str) -> None:
    code, said = REFUSED[what]
    host.configure(handler=host.handler(code))
    consumer = host.start()
    assert consumer.wait_exit() == 78
    assert said in consumer.output
    assert "consumer orders: handler" in consumer.output
    assert "Traceback" not in consumer.output
    assert len(consumer.lines) == 1


def test_says_in_which_line_a_handler_cannot_be_imported(host: ConsumerHost) -> None:
    handler = host.handler("\n\n1 / 0\n")
    host.configure(handler=handler)
    consumer = host.start()
    assert consumer.wait_exit() == 78
    line = (host.app_dir / "shop.py").read_text().splitlines().index("1 / 0") + 1
    assert f"ZeroDivisionError: division by zero ({handler[:-7]}, line {line})" in consumer.output


def test_refuses_a_file_that_is_not_the_module_of_its_name(host: ConsumerHost) -> None:
    # queue is loaded already, so importing it would not give the file.
    host.configure(handler=host.handler("def handle(message): pass\n", "queue.py"))
    consumer = host.start()
    assert consumer.wait_exit() == 78
    assert "there is another module queue" in consumer.output
    assert "give the file another name" in consumer.output


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        ("shop", "must be package.module:callable or /a/file.py:callable"),
        ("shop:", "must be package.module:callable or /a/file.py:callable"),
        (":handle", "must be package.module:callable or /a/file.py:callable"),
        ("/nowhere/shop.py:handle", "there is no file /nowhere/shop.py"),
        ("nowhere.shop:handle", "No module named 'nowhere'"),
    ],
)
def test_says_how_a_handler_is_written(host: ConsumerHost, handler: str, said: str) -> None:
    host.configure(handler=handler)
    consumer = host.start()
    assert consumer.wait_exit() == 78
    assert said in consumer.output


# -- failures -----------------------------------------------------------------------------------


FAILURES = {
    "an exception": ('raise ValueError("no such order")', "ValueError: no such order"),
    "retry": ('raise wakeq.Retry("later")', "Retry: later"),
    "reject": ('raise wakeq.Reject("never")', "Reject: never"),
    "an exit": ("sys.exit(3)", "SystemExit: 3"),
    "a promise": ("return asyncio.sleep(0)", "declare it with async def"),
    "an iterator": ("return iter([])", "return a list instead"),
    "a mixture": ('return [wakeq.Publish("b", 1), None]', "not everything is to be published"),
}


@pytest.mark.parametrize("what", FAILURES)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_failed_message_is_logged_and_neither_pending_nor_lost(
    host: ConsumerHost, what: str, kind: str
) -> None:
    action, said = FAILURES[what]
    code = f"""
import wakeq, sys, asyncio
{kind} handle(message):
    record(message.text())
    if message.text() == "bad":
        {action}
"""
    host.configure(handler=host.handler(code))
    _, bad, _ = host.publish("good", "bad", "good")
    consumer = host.start()
    consumer.wait_log(said)
    wait_until(lambda: host.stats().get("handled") == "2")
    host.wait_failed(1)
    host.wait_pending(0)
    (event,) = host.dead() if what == "reject" else [d.fields for d in host.delayed()]
    assert (event[b"wakeq.first_id"], event[b"body"]) == (bad, b"bad")
    assert len(host.dead()) + len(host.delayed()) == 1
    assert consumer.stop() == 0
    words = "message is dead" if what == "reject" else "message failed"
    (line,) = [line for line in consumer.lines if words in line]
    assert f"message_id={bad.decode()}" in line
    assert "attempt=1" in line
    assert ("retry_in=" in line) == (what != "reject")
    assert host.stats()["failed"] == "1"
    assert not host.redis.exists("b")
    assert consumer.count("handled=2 failed=1") == 1


def test_the_traceback_of_a_failed_message_shows_the_handler_alone(host: ConsumerHost) -> None:
    code = "def check(order): raise KeyError(order)\ndef handle(m): check('x')\n"
    host.configure(handler=host.handler(code))
    host.publish("a")
    consumer = host.start()
    consumer.wait_log("Traceback")
    consumer.stop()
    frames = [line for line in consumer.lines if 'File "' in line]
    assert [frame.rpartition(" in ")[2] for frame in frames] == ["handle", "check"]
    assert all("shop.py" in frame for frame in frames)


def test_a_failed_message_is_tried_again_when_it_is_delivered_again(host: ConsumerHost) -> None:
    code = """
import os.path
def handle(message):
    record(message.text())
    if not os.path.exists("GOOD"): raise ValueError("not yet")
""".replace("GOOD", str(host.directory / "good"))
    host.configure(handler=host.handler(code))
    host.publish("a", "b")
    consumer = host.start()
    consumer.wait_log("not yet", times=2)
    host.wait_failed(2)
    host.wait_pending(0)
    consumer.stop()
    assert host.deliver() == 2
    (host.directory / "good").touch()
    host.start()
    wait_until(lambda: host.stats().get("handled") == "2")
    assert host.records[:2] == ["a", "b"]
    assert sorted(host.records[2:]) == ["a", "b"]
    assert host.redis.xlen(RETRY) == 0


# -- what a message has ---------------------------------------------------------------------------


SHOW = """
def handle(message):
    fields = {k.decode("latin-1"): v.decode("latin-1") for k, v in message.fields.items()}
    import json
    record(json.dumps([message.id, message.body.decode("latin-1"), fields,
                       message.key.decode("latin-1"), message.attempt, message.stream]))
"""


def shown(host: ConsumerHost, fields: dict[Any, Any], stream: str = "orders") -> list[Any]:
    """Return what a handler sees of a message with these fields."""
    host.configure(handler=host.handler(SHOW))
    entry_id = host.redis.xadd(stream, fields)
    host.start()
    host.wait_done()
    (record,) = host.records
    seen = json.loads(record)
    assert seen.pop() == "orders"
    if stream == "orders":
        assert seen[0] == entry_id.decode()
    return seen[1:]


def test_shows_a_message_without_the_fields_that_are_ours(host: ConsumerHost) -> None:
    fields = {"body": "b", "colour": "red", "wakeq.key": "k", "wakeq.attempt": "3"}
    assert shown(host, fields) == ["b", {"body": "b", "colour": "red"}, "k", 3]


def test_shows_a_message_that_has_fields_of_ours_alone(host: ConsumerHost) -> None:
    assert shown(host, {"wakeq.key": "k"}) == ["", {}, "k", 1]


def test_shows_names_and_values_of_any_bytes(host: ConsumerHost) -> None:
    fields = {b"\xff\x00name": bytes(range(256)), b"": b"", b"body": b"\x80"}
    seen = shown(host, fields)
    assert seen[:2] == ["\x80", {k.decode("latin-1"): v.decode("latin-1") for k, v in
                                 fields.items()}]  # fmt: skip


def test_a_bell_in_the_users_stream_is_a_message(host: ConsumerHost) -> None:
    assert shown(host, {"wakeq.handed_back": "x"}) == ["", {}, "", 1]


def test_reads_the_streams_of_the_group_itself_and_deletes_what_is_done(
    host: ConsumerHost,
) -> None:
    host.configure(handler=host.handler("def handle(m): record(m.id, m.attempt, m.text())\n"))
    host.redis.xadd(
        RETRY, {"body": "again", "wakeq.first_id": "5-7", "wakeq.attempt": "2", "a": "b"}
    )
    host.publish("new")
    host.start()
    host.wait_done()
    wait_until(lambda: host.redis.xlen(RETRY) == 0)
    assert "5-7 2 again" in host.records
    assert host.redis.xlen("orders") == 1
    assert host.pending(RETRY) == 0
    assert host.stats()["handled"] == "2"


def test_acknowledges_what_was_deleted_while_it_was_pending(host: ConsumerHost) -> None:
    host.configure(handler=host.handler("def handle(m): record(m.text())\n"))
    host.redis.xgroup_create("orders", "orders", "0", mkstream=True)
    ids = host.publish("a", "b", "c", "d")
    name = host_name(host)
    host.redis.xreadgroup("orders", name, {"orders": ">"}, count=3)
    host.redis.xdel("orders", ids[0], ids[2])
    host.start()
    host.wait_done()
    assert host.records == ["b", "d"]
    assert host.stats()["handled"] == "2"


def host_name(host: ConsumerHost, name: str = "orders") -> str:
    """Return the name of a consumer in its group."""
    from consumer_host import HOST

    return f"{HOST}/{name}"


# -- groups ------------------------------------------------------------------------------------


def test_each_group_of_a_stream_gets_all(host: ConsumerHost) -> None:
    groups = ("billing", "mail", "search")
    for group in groups:
        code = f"def handle(message): record({group!r}, message.text())\n"
        host.configure(group, handler=host.handler(code, f"{group}.py"), stream="orders")
    for group in groups:
        host.start(group)
    host.publish(*range(50))
    for group in groups:
        host.wait_done(group=group)
        mine = [line.split()[1] for line in host.records if line.startswith(group)]
        assert mine == [str(n) for n in range(50)]
        assert host.stats(group=group)["handled"] == "50"


def test_consumers_of_a_group_share_the_messages(host: ConsumerHost) -> None:
    go = host.directory / "go"
    code = f"""
import os, time
def handle(message):
    record(message.text(), os.getpid())
    while not os.path.exists({str(go)!r}): time.sleep(0.01)
"""
    host.configure(handler=host.handler(code))
    consumers = [host.start(name) for name in ("orders", "orders:2", "orders:3")]
    host.publish(*range(300))
    # Each has few in hand until it has handled those.
    wait_until(lambda: len({line.split()[1] for line in host.records}) == 3)
    go.touch()
    host.wait_done()
    assert sorted(int(line.split()[0]) for line in host.records) == list(range(300))
    assert [consumer.stop() for consumer in consumers] == [0, 0, 0]
    for consumer in consumers:
        assert "handled=0" not in consumer.output, "one of them had nothing"


@pytest.mark.parametrize(("start", "seen"), [("0", ["old", "new"]), ("$", ["new"])])
def test_a_new_group_begins_where_it_is_told(
    host: ConsumerHost, start: str, seen: list[str]
) -> None:
    host.configure(handler=host.handler("def handle(m): record(m.text())\n"), start=start)
    host.publish("old")
    host.start()
    wait_until(lambda: host.redis.xinfo_groups("orders"))
    host.publish("new")
    host.wait_done()
    assert host.records == seen


# -- publishing --------------------------------------------------------------------------------


def test_what_a_handler_returns_is_published_with_the_acknowledgement(host: ConsumerHost) -> None:
    code = """
from wakeq import Publish
def handle(message):
    number = int(message.text())
    if number == 0: return Publish("mail", "one", fields={"n": 1})
    if number == 1: return [Publish("mail", {"two": 2}), Publish("bills", b"\\xff", key="k")]
    if number == 2: return []
"""
    host.configure(handler=host.handler(code))
    host.publish(0, 1, 2)
    host.start()
    host.wait_done()
    mail = [fields for _, fields in host.redis.xrange("mail")]
    assert mail == [{b"body": b"one", b"n": b"1"}, {b"body": b'{"two":2}'}]
    (bill,) = [fields for _, fields in host.redis.xrange("bills")]
    assert bill == {b"body": b"\xff", b"wakeq.key": b"k"}
    assert host.stats()["handled"] == "3"
    assert host.stats()["published"] == "3"


def test_a_batch_publishes_once_for_all_its_messages(host: ConsumerHost) -> None:
    code = """
import wakeq
@wakeq.batch(100)
def handle(messages):
    return wakeq.Publish("sums", sum(int(message.text()) for message in messages))
"""
    host.configure(handler=host.handler(code))
    host.publish(*range(100))
    host.redis.xadd(RETRY, {"body": 1000})
    host.start()
    host.wait_done()
    wait_until(lambda: host.redis.xlen(RETRY) == 0)
    assert sum(int(fields[b"body"]) for _, fields in host.redis.xrange("sums")) == 5950
    assert host.stats()["handled"] == "101"


def test_neither_publishes_nor_acknowledges_if_one_target_is_no_stream(host: ConsumerHost) -> None:
    code = """
from wakeq import Publish
def handle(message): return [Publish("mail", "x"), Publish("bills", "x")]
"""
    host.configure(handler=host.handler(code))
    host.redis.set("bills", "text")
    (entry_id,) = host.publish("a")
    consumer = host.start()
    consumer.wait_log("WRONGTYPE bills is a string, not a stream")
    wait_until(lambda: host.stats().get("failed") == "1")
    assert host.pending() == 0
    assert [message.id for message in host.delayed()] == [entry_id.decode()]
    assert not host.redis.exists("mail")
    assert "handled" not in host.stats()
    # It is the target that was wrong, not the consumer: that goes on.
    host.redis.delete("bills")
    host.publish("b")
    wait_until(lambda: host.redis.xlen("mail") == 1)
    assert consumer.stop() == 0
    assert consumer.count(entry_id.decode()) == 1


# -- counters ------------------------------------------------------------------------------------


def test_the_counters_are_exactly_what_was_acknowledged_and_what_failed(
    host: ConsumerHost,
) -> None:
    code = """
from wakeq import Publish
def handle(message):
    number = int(message.text())
    if number % 10 == 0: raise ValueError(number)
    if number % 10 == 1: return Publish("out", number)
"""
    host.configure(handler=host.handler(code), concurrency=4)
    host.publish(*range(1000))
    consumer = host.start()
    host.wait_failed(100)
    host.wait_done()
    assert len(host.delayed()) == 100
    assert host.stats()["handled"] == "900"
    assert host.stats()["published"] == "100"
    assert consumer.stop() == 0
    assert host.stats()["handled"] == "900"
