"""Failures on demand, for the tests that kill a daemon at a chosen point.

    WAKEQ_FAILPOINT=after_read:kill@3      the third time: SIGKILL
    WAKEQ_FAILPOINT=before_exit:sleep=0.2  every time: sleep that many seconds

Several are separated by spaces. Without the variable a point costs one look at an empty dict.
"""

import os

_points: dict[str, tuple[str, int]] = {}
_hits: dict[str, int] = {}

for _word in os.environ.get("WAKEQ_FAILPOINT", "").split():
    _name, _, _action = _word.partition(":")
    _action, _, _count = _action.partition("@")
    _points[_name] = (_action, int(_count or 0))


def hit(name: str) -> None:
    """Do what the environment says for this point."""
    if _points:
        _hit(name)


def _hit(name: str) -> None:
    if name not in _points:
        return
    action, wanted = _points[name]
    _hits[name] = _hits.get(name, 0) + 1
    if wanted and _hits[name] != wanted:
        return
    if action == "kill":
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        import signal

        os.kill(os.getpid(), signal.SIGSTOP)  # until somebody has it go on
    elif action.startswith("sleep="):
        import time

        time.sleep(float(action[6:]))  # the pause is what the test asks for
