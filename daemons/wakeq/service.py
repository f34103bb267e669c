"""What every daemon shares: its command line, its signals, its life as seen by systemd.

`run` is called by each daemon's `main`. It reads options and configuration, catches signals,
calls the daemon, and turns whatever it raises into one clear line and an exit code. Signals,
arguments, notifications and exit codes are dealt with here and in `systemd` only.
"""

from __future__ import annotations

# What is C of signal: the rest makes enums, and loading enum takes long.
import _signal  # type: ignore[import-not-found]
import io
import os
import sys
from collections.abc import Callable, Iterable

from wakeq import journal
from wakeq.config import Common, Config, Place
from wakeq.errors import EX_SOFTWARE, UsageError, WakeqError
from wakeq.settings import Section, Setting, format_duration, nearest
from wakeq.systemd import Notifier

TYPE_CHECKING = False  # typing itself takes longer to import than it is worth here
if TYPE_CHECKING:
    from typing import NoReturn


RUN, DRAIN, NOW = 0, 1, 2
_STDERR = 2


class Program:
    """What a daemon is to its user.

    Args:
        name: the executable's name, `wakeq-` and its folder's name.
        summary: one line for --help.
        own: the section of settings that are its options.
        argument: what it is started with: `NAME`, or nothing.
    """

    def __init__(
        self, name: str, summary: str, own: type[Section], argument: str | None = None
    ) -> None:
        self.name = name
        self.summary = summary
        self.own = own
        self.argument = argument

    @property
    def settings(self) -> list[Setting]:
        """All settings that may stand on its command line."""
        return [s for kind in (self.own, Common, Place) for s in kind.table.values()]


class Service:
    """A running daemon: its configuration, its signals, its word to systemd.

    Attributes:
        name: what it was started for, empty if it takes no argument.
        stop: RUN; DRAIN after a first SIGTERM or SIGINT: finish what is in hand; NOW after a
            second one: leave at once.
        reload: True after a SIGHUP; who has seen to it sets it back.
        signal_fd: readable when a signal came, for a selector; emptied by `clear_signal`.
    """

    def __init__(self, program: Program, name: str, options: dict[str, str]) -> None:
        self.program = program
        self.name = name
        self.options = options
        self.log = journal.Log(program.name.removeprefix("wakeq-"))
        self.notifier = Notifier()
        self.config = Config(options, own=program.own)
        self.common = self.config.common()
        self.stop = RUN
        self.reload = False
        self.signal_fd, self._signal_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def read_config(self) -> Config:
        """Read the configuration anew, for a reload.

        Raises:
            ConfigError: it is wrong; the one that was read before still holds.
        """
        config = Config(self.options, own=self.program.own)
        self.common = config.common()
        self.config = config
        return config

    def catch_signals(self) -> None:
        """Take SIGTERM, SIGINT and SIGHUP from now on."""
        _signal.set_wakeup_fd(self._signal_write, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGTERM, self._on_stop)
        _signal.signal(_signal.SIGINT, self._on_stop)
        _signal.signal(_signal.SIGHUP, self._on_reload)

    def clear_signal(self) -> None:
        """Empty `signal_fd`."""
        try:
            os.read(self.signal_fd, 4096)
        except BlockingIOError:
            pass  # emptied before

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than until a signal comes."""
        import select

        poll = select.poll()
        poll.register(self.signal_fd, select.POLLIN)
        poll.poll(seconds * 1000)
        self.clear_signal()

    def _on_stop(self, _number: int, _frame: object) -> None:
        self.stop = min(self.stop + 1, NOW)

    def _on_reload(self, _number: int, _frame: object) -> None:
        self.reload = True


def run(
    program: Program, body: Callable[[Service], int | None], argv: list[str] | None = None
) -> NoReturn:
    """Run a daemon and end the process with the exit code that fits.

    Args:
        program: what it is to its user.
        body: the daemon; returns an exit code, or None for 0.
        argv: the arguments, those of the process if None.
    """
    _prepare_standard_files()
    arguments = sys.argv[1:] if argv is None else argv
    log = journal.Log(program.name.removeprefix("wakeq-"))
    code: int | None = EX_SOFTWARE
    try:
        name, options = parse(program, arguments)
        service = Service(program, name, options)
        journal.set_level(service.common.log_level)
        service.catch_signals()
        code = body(service)
    except UsageError as error:
        print(f"{program.name}: {error}\nTry '{program.name} --help'.", file=sys.stderr)
        code = error.exit_code
    except WakeqError as error:
        log.last(str(error))
        code = error.exit_code
    except Exception as error:
        log.error("stopped by a fault in wakeq itself", detail=full_traceback(error))
    finally:
        journal.open_log()
    sys.stdout.flush()
    sys.exit(code or 0)


def _prepare_standard_files() -> None:
    """Have stdin, stdout and stderr open, and what is printed written line by line."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass  # else the next socket would be taken for one of them
    os.close(fd)
    if sys.stdout is None or sys.stderr is None:
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (until the end)
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a handler prints is in the journal at once, and not lost if the process is killed.
        sys.stdout.reconfigure(line_buffering=True)


def full_traceback(error: Exception) -> str:
    """Return the traceback of a fault of ours, for the log."""
    import traceback

    return "".join(traceback.format_exception(error))


def parse(program: Program, arguments: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Return the NAME and the options of a command line, by the settings' names.

    By hand, because argparse takes a third of a consumer's start-up time.

    Raises:
        UsageError: an option is unknown or lacks its value, or NAME is missing.
        SystemExit: --help or --version was answered.
    """
    known = {setting.option: setting for setting in program.settings}
    names: list[str] = []
    options: dict[str, str] = {}
    rest = iter(arguments)
    for word in rest:
        if word in ("-h", "--help"):
            print(usage(program), end="")
            raise SystemExit(0)
        if word == "--version":
            from wakeq import __version__

            print(f"{program.name} {__version__}")
            raise SystemExit(0)
        if not word.startswith("-"):
            names.append(word)
            continue
        option, equals, value = word.partition("=")
        if option not in known:
            raise UsageError(f"unknown option {option!r}{nearest(option, known)}")
        if known[option].default is False and not equals:
            value = "yes"
        elif not equals:
            following = next(rest, None)
            if following is None:
                raise UsageError(f"{option} needs a value")
            value = following
        options[known[option].name] = value
    if len(names) != (1 if program.argument else 0):
        what = f"one {program.argument}" if program.argument else "no argument"
        raise UsageError(f"takes {what}, not {len(names)}: {' '.join(names)}".rstrip(": "))
    return (names[0] if names else ""), options


def usage(program: Program) -> str:
    """Return what --help prints."""
    argument = f" {program.argument}" if program.argument else ""
    lines = [f"usage: {program.name}{argument} [OPTION]...", "", program.summary, "", "options:"]
    for setting in program.settings:
        value = "" if setting.default is False else f"={setting.describe}"
        lines.append(f"  {setting.option}{value}")
        lines.append(f"        {setting.help}{shown_default(setting)}")
    lines += ["  --help", "        show this and exit"]
    lines += ["  --version", "        show the version and exit", ""]
    lines += [f"Each may also be set in the environment, as {program.settings[0].variable} and"]
    lines += ["so on, or in the files under the configuration directory.", ""]
    return "\n".join(lines)


def shown_default(setting: Setting) -> str:
    """Return ` (default: X)` for a setting's help line, or nothing if there is none to show."""
    if setting.default is False or setting.default in ("", []):
        return ""
    default = setting.default
    text = format_duration(default) if isinstance(default, float) else str(default)
    return f" (default: {text})"
