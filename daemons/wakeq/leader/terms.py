"""How long a lease may be trusted, if all of this host is to have ended before another one leads.

The leader sends a renewal at a time s, and Redis gives the lease to nobody else before s + lease.
Whatever happens to the leader, what is bound to its target must have ended by then:

1. It trusts its lease until s + trust. While it does, it says WATCHDOG=1 now and then; at the end
   it exits. If Redis is gone or the network is cut, this is all, and the rest is to spare.
2. If it is frozen, even as late as at s + trust, systemd ends it WatchdogSec= after it was last
   heard of: by s + trust + watchdog.
3. systemd then stops what is bound to the target: by s + trust + watchdog + stop, where stop is
   the longest TimeoutStopSec= of that, after which it is killed.
4. slack covers what is left: systemd's own reaction, and that two clocks run at different speeds.

    trust + watchdog + stop + slack <= lease

So trust is what the others leave of the lease, and has to suffice for renewing it.
"""

from wakeq.errors import ConfigError
from wakeq.settings import format_duration

# systemd sees the end of a process, and signals another one, within a few ms on an idle machine.
_REACTION_SECONDS = 0.25
# Of the lease. Clocks that are disciplined differ by 0.05 % at most, free ones by less than 0.1 %.
_DRIFT = 0.01
# Three renewals fit in it, and a reply may take a third of a second.
_TRUST_LEAST_SECONDS = 1.0


def trust_seconds(lease: float, watchdog: float, stop: float) -> float:
    """Return for how many seconds after a renewal was sent the leader may believe that it leads.

    Args:
        lease, stop: the settings `lease` and `stop_timeout`, in seconds.
        watchdog: WatchdogSec=, in seconds; 0 if there is none.

    Raises:
        ConfigError: no time is left.
    """
    slack = _REACTION_SECONDS + _DRIFT * lease
    # Rounded, or the lease that is said to be needed might be refused, too.
    trust = round(lease - watchdog - stop - slack, 6)
    if trust < _TRUST_LEAST_SECONDS:
        needed = (watchdog + stop + _REACTION_SECONDS + _TRUST_LEAST_SECONDS) / (1 - _DRIFT)
        raise ConfigError(
            f"lease must be at least {_rounded_up(needed)}, not {format_duration(lease)}: it must"
            f" cover WatchdogSec= ({format_duration(watchdog)}), stop_timeout"
            f" ({format_duration(stop)}), {format_duration(round(slack, 3))} for systemd and the"
            f" drift of clocks, and {format_duration(_TRUST_LEAST_SECONDS)} to renew it in"
        )
    return trust


def _rounded_up(seconds: float) -> str:
    """Return a time span to a tenth of a second, no shorter than it is."""
    return format_duration(-(-seconds * 10 // 1) / 10)
