"""How long a lease may be trusted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wakeq.alarm import Alarm
from wakeq.errors import ConfigError
from wakeq.leader.terms import trust_seconds
from wakeq.sections import Leader
from wakeq.settings import parse_duration

UNIT = Path(__file__).parents[2] / "units/wakeq-leader@.service"
SECONDS = st.floats(0, 10_000)


@given(SECONDS, SECONDS, SECONDS)
def test_all_of_a_host_has_ended_before_the_lease_is_over(
    lease: float, watchdog: float, stop: float
) -> None:
    try:
        trust = trust_seconds(lease, watchdog, stop)
    except ConfigError:
        return
    # The host's clock is slower than that of Redis by half a percent, and systemd takes 200 ms.
    assert (trust + watchdog + stop) * 1.005 + 0.2 < lease
    assert trust >= 1


@given(st.floats(0, 10_000), st.floats(0, 10_000))
@example(3.7, 0.0)
@example(7.66, 0.0)
def test_the_least_lease_that_the_error_names_is_enough(watchdog: float, stop: float) -> None:
    with pytest.raises(ConfigError) as caught:
        trust_seconds(1.0, watchdog, stop)
    least = re.search("^lease must be at least (.+?), not 1s", str(caught.value))
    assert least is not None
    assert 1 <= trust_seconds(parse_duration(least[1]), watchdog, stop) < 1.2


def test_the_error_names_each_of_the_numbers() -> None:
    with pytest.raises(ConfigError) as caught:
        trust_seconds(5.0, 3.0, 2.0)
    assert str(caught.value) == (
        "lease must be at least 6.4s, not 5s: it must cover WatchdogSec= (3s), stop_timeout (2s),"
        " 300ms for systemd and the drift of clocks, and 1s to renew it in"
    )


def test_the_defaults_hold_with_the_watchdog_of_the_unit() -> None:
    watchdog = re.search(r"^WatchdogSec=(.+)$", UNIT.read_text(), re.MULTILINE)
    assert watchdog is not None
    settings = Leader()
    trust = trust_seconds(settings.lease, parse_duration(watchdog[1]), settings.stop_timeout)
    assert trust > 4


def test_an_alarm_goes_off_at_its_time_and_can_be_taken_back() -> None:
    import select

    alarm = Alarm()
    try:
        poll = select.poll()
        poll.register(alarm.fd, select.POLLIN)
        alarm.set(alarm.clock() - 1)
        assert poll.poll(10_000)
        alarm.clear()
        alarm.set(alarm.clock() + 3600)
        assert not poll.poll(0)
        when = alarm.clock() + 0.05
        alarm.set(when)
        assert poll.poll(10_000)
        assert alarm.clock() >= when
        alarm.clear()
        alarm.clear()
        alarm.set(alarm.clock() + 0.001)
        alarm.set(0)
        assert not poll.poll(50)
    finally:
        alarm.close()
