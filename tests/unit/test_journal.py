"""Logging: what reaches the terminal or the journal, and when."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

_PROGRAM = """\
import sys
from wakeq import journal
log = journal.Log("consumer")
{}
journal.open_log()
"""

# Stands for systemd.journal, and prints what is sent.
_JOURNAL = """\
import os, sys, types
fake = types.ModuleType("systemd.journal")
def sendv(*fields):
    print(*fields)
fake.sendv = sendv
package = types.ModuleType("systemd")
package.journal = fake
sys.modules["systemd"], sys.modules["systemd.journal"] = package, fake
stat = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{stat.st_dev}:{stat.st_ino}"
"""


def logged(program: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program that logs."""
    return subprocess.run(
        [sys.executable, "-c", before + _PROGRAM.format(program)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip


def test_a_line_has_time_level_component_and_fields() -> None:
    err = logged('log.info("consumer woke", stream="orders", count=3)').stderr
    assert re.match(r"\d\d:\d\d:\d\d\.\d\d\d \[info +\] consumer woke +\[wakeq-consumer\] ", err)
    assert "stream=orders" in err and "count=3" in err
    assert "\x1b" not in err


def test_events_wait_until_the_log_is_opened_and_keep_their_order_and_time() -> None:
    program = (
        'log.info("first"); log.warning("second"); assert "structlog" not in sys.modules;'
        ' journal.open_log(); log.error("third")'
    )
    err = logged(program).stderr
    assert re.findall(r"(first|second|third)", err) == ["first", "second", "third"]
    assert [level.strip() for level in re.findall(r"\[(\w+ *)\]", err)] == [
        "info", "warning", "error"
    ]  # fmt: skip


def test_logs_nothing_below_the_level() -> None:
    program = 'log.debug("no"); journal.set_level("warning"); log.info("no"); log.warning("yes")'
    err = logged(program).stderr
    assert "yes" in err and "no" not in err
    assert "yes" in logged('journal.set_level("debug"); log.debug("yes")').stderr


def test_a_detail_follows_on_lines_of_its_own() -> None:
    err = logged('log.error("failed", detail="line 1\\nline 2")').stderr
    assert err.endswith("\nline 1\nline 2\n")


def test_keeps_only_so_many_events_waiting() -> None:
    err = logged('[log.info("event") for _ in range(5000)]').stderr
    assert len(err.splitlines()) == 1000


def test_sends_fields_to_the_journal() -> None:
    done = logged(
        'log.error("message failed", message_id="5-0", key=b"\\xff", count=3, detail="why",'
        ' event_id="ab12")',
        before=_JOURNAL,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == (
        r"b'MESSAGE=message failed\nwhy' b'PRIORITY=3' b'SYSLOG_IDENTIFIER=wakeq-consumer'"
        r" b'WAKEQ_MESSAGE_ID=5-0' b'WAKEQ_KEY=\xff' b'WAKEQ_COUNT=3' b'MESSAGE_ID=ab12'"
    )


def test_what_a_process_ends_for_is_printed_after_all_else_so_that_its_unit_is_known() -> None:
    done = logged('log.info("first"); log.last("no handler\\nin line 2")', before=_JOURNAL)
    assert "b'MESSAGE=first'" in done.stdout
    assert done.stderr == "<3>no handler\n<3>in line 2\n"
    nothing_else = 'log.last("no"); assert "structlog" not in sys.modules'
    assert logged(nothing_else, before=_JOURNAL).stderr == "<3>no\n"
    assert re.search(r"\[error +\] no handler ", logged('log.last("no handler")').stderr)


def test_a_journal_that_is_down_stops_nobody() -> None:
    before = _JOURNAL.replace("print(", "raise OSError(); print(")
    assert logged('log.info("lost")', before).returncode == 0
    nowhere = "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)\nstat = os.fstat(2)\n"
    before = _JOURNAL.replace("stat = os.fstat(2)\n", nowhere)
    assert logged('log.last("lost")', before).returncode == 0


def test_logs_plainly_where_the_journal_cannot_be_loaded() -> None:
    before = _JOURNAL + "del package.journal, sys.modules['systemd.journal']\n"
    assert "consumer woke" in logged('log.info("consumer woke")', before).stderr


def test_a_terminal_that_is_gone_stops_nobody() -> None:
    program = "import os; os.close(2); os.open('/dev/full', os.O_WRONLY); log.info('lost')"
    assert logged(program).returncode == 0


def test_describes_an_error_of_the_users_code_without_our_frames() -> None:
    from wakeq import journal
    from wakeq.settings import integer

    def handler() -> None:
        integer("x", 1, low=0, high=1).parse("x")  # type: ignore[attr-defined]

    with pytest.raises(Exception) as caught:
        handler()
    text = journal.describe(caught.value)
    assert text.startswith("Traceback (most recent call last):\n")
    assert "in handler" in text
    assert "daemons/wakeq/settings.py" not in text
    assert text.splitlines()[-1].startswith("wakeq.settings.Wrong: must be")
