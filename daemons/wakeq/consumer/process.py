"""Processes by a name that outlives them: who held a consumer's name, and does it live?

A process is written `BOOT/NAMESPACE/PID/START`: the boot of the machine, the process-id
namespace, the process id and its start time. A process id alone is given to another process
sooner or later; all four together never are.
"""

import os


def describe_self() -> str:
    """Return this process in the form above."""
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        boot = file.read().strip()
    namespace = os.stat("/proc/self/ns/pid").st_ino
    return f"{boot}/{namespace}/{os.getpid()}/{_start_time(os.getpid())}"


def is_gone(process: str) -> bool:
    """Tell whether a process on this host is known to have ended.

    One in another process-id namespace, as in a container with the same host name, cannot be
    seen from here: it is not known to have ended.
    """
    boot, namespace, pid, start = (*process.split("/"), "", "", "")[:4]
    own_boot, own_namespace, _, _ = describe_self().split("/")
    if boot != own_boot:
        # In a container, one that is sandboxed may see the boot of the machine below.
        return namespace != own_namespace or not _is_process(pid, start)
    if namespace != own_namespace or not pid.isdigit():
        return False
    started = _start_time(int(pid))
    if started is None:
        return not _exists(int(pid))
    return started != start


def is_dead(process: str) -> bool:
    """Tell whether a process, of this machine or another one, is known to have ended."""
    return _is_here(process) and is_gone(process)


def watch(process: str) -> int | None:
    """Return a descriptor that is readable once a process has ended; None if it cannot be seen."""
    if not _is_here(process):
        return None
    _, namespace, pid, _ = (*process.split("/"), "", "", "")[:4]
    if namespace != describe_self().split("/")[1] or not pid.isdigit():
        return None
    try:
        return os.pidfd_open(int(pid))
    except OSError:
        return None


def _is_here(process: str) -> bool:
    return process.partition("/")[0] == describe_self().partition("/")[0]


def pid_of(process: str) -> str:
    """Return the process id, for a person to read."""
    return [*process.split("/"), "?", "?", "?"][2]


def _is_process(pid: str, start: str) -> bool:
    return pid.isdigit() and bool(start) and _start_time(int(pid)) == start


def _start_time(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot; None if that cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command's name, in parentheses, may hold anything, so count from its end.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    # State Z: it has ended, only its parent has not looked yet.
    return "" if fields[0] == b"Z" else fields[19].decode()


def _exists(pid: int) -> bool:
    """Tell whether there is a process, also where a sandbox hides it in /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # there is one, of another user
    return True
