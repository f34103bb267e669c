"""What a bridge tells: its status, its rate, and what goes wrong, each once."""

import time

from wakeq import journal, keys
from wakeq.bridge.channel import describe
from wakeq.bridge.crew import Crew
from wakeq.bridge.holder import Holder
from wakeq.bridge.link import Link
from wakeq.bridge.reader import Closed
from wakeq.errors import RefusedError, WakeqError
from wakeq.loop import Loop
from wakeq.sections import Bridge
from wakeq.service import Service

_SAY_SECONDS = 1.0
_LOG_SECONDS = 3.0
_MIB = 1 << 20
_CUT = (
    "{}: more waited for this bridge than client-output-buffer-limit"
    " pubsub allows, or somebody closed it"
)


class Reporter:
    """Tells systemd and the log how things are.

    Attributes:
        is_ready: the service manager has been told so.
        cuts: how often messages may have been lost, because a subscription was.
    """

    def __init__(
        self, loop: Loop, service: Service, settings: Bridge, crew: Crew, holder: Holder
    ) -> None:
        self.is_ready = False
        self.cuts = 0
        self._loop = loop
        self._service = service
        self._log = service.log
        self._settings = settings
        self._crew = crew
        self._holder = holder
        self._source = describe(settings)
        self._server = b""
        self._cause: WakeqError | None = None  # of a cut that is not logged yet
        self._counted = 0  # cuts that stand in Redis
        self._is_lost = False
        self._is_full = False
        self._said_at = self._logged_at = 0.0  # monotonic
        self._logged = 0  # messages
        self._waits = False

    def note_server(self, link: Link) -> None:
        """Look which server it is, and log why a subscription was cut, if one was.

        Raises:
            WakeqError: Redis cannot be asked.
        """
        try:
            found = link.call(self._settings.stream, "INFO", "server")
        except RefusedError:
            found = None  # the user may do without it
        lines = found.split(b"\r\n") if isinstance(found, bytes) else []
        server = next((line for line in lines if line.startswith(b"run_id:")), b"")
        # One that was started anew had no such limit to keep.
        self.log_cut(may_be_limit=server == self._server)
        self._server = server

    def log_cut(self, may_be_limit: bool = True) -> None:
        """Log why a subscription was cut, if one was, and that is not logged yet."""
        if self._cause is not None:
            is_limit = isinstance(self._cause, Closed) and may_be_limit
            self._log.warning(
                "a subscription was cut, messages may be lost", event_id=journal.BRIDGE_CUT,
                bridge=self._service.name, source=self._source, count=self.cuts,
                error=_CUT.format(self._cause) if is_limit else str(self._cause),
            )  # fmt: skip
            self._cause = None

    def count_cuts(self, link: Link) -> None:
        """Write down in Redis how often a subscription was cut.

        Raises:
            WakeqError: Redis cannot be asked.
        """
        if self.cuts > self._counted:
            stats = keys.stats(
                self._settings.stream, keys.bridge_group(self._service.name.partition(":")[0])
            )
            link.call(stats, "HINCRBY", stats, "cuts", self.cuts - self._counted)
            self._counted = self.cuts

    def ready(self) -> None:
        """Say that the service is ready."""
        if not self.is_ready:
            self.is_ready = True
            self._service.notifier.ready()
            self._said_at = 0.0

    def cut(self, error: WakeqError) -> None:
        """Note that a subscription was lost by which messages came, and why."""
        self.cuts += 1
        self._cause = self._cause or error

    def lost(self, error: WakeqError, tries: int) -> None:
        """Say that Redis is lost."""
        if self.is_ready and not self._is_lost:
            self._is_lost = True
            self._log.warning(
                "Redis was lost, trying again", event_id=journal.REDIS_LOST, error=str(error)
            )
        self.say(f"waiting for Redis, try {tries}: {error}")

    def back(self) -> None:
        """Say that Redis is back, if it was lost."""
        if self._is_lost and not self._crew.trouble:
            self._is_lost = False
            self._log.info("Redis is back", event_id=journal.REDIS_BACK)

    def left_over(self) -> None:
        """Say that not all that was received could be published."""
        size = sum(subscription.size for subscription in self._holder.subscriptions)
        self._log.error(
            "stopped before all that was received was published: messages are lost",
            event_id=journal.BRIDGE_CUT, bridge=self._service.name, source=self._source,
            count=self._crew.in_hand, bytes=size, error=self._crew.trouble or "there was no time",
        )  # fmt: skip

    def put_back(self, count: int) -> None:
        """Say that not all was done that was taken from the list, and where it is."""
        self._log.warning(
            "stopped before all was done that was taken: the rest is in the list again",
            bridge=self._service.name, source=self._source, count=count,
        )  # fmt: skip

    def left_taken(self, error: WakeqError) -> None:
        """Say that what was taken from the list could not be put back."""
        self._log.error(
            "stopped before all was done that was taken: the next one to run puts it back",
            bridge=self._service.name, source=self._source, error=str(error),
        )  # fmt: skip

    def say(self, text: str) -> None:
        """Say something in place of the status."""
        self._service.notifier.status(text)
        self._said_at = time.monotonic()

    def look(self) -> None:
        """Say what is to be said: the end of a turn."""
        self._look_whether_full()
        if self._crew.trouble and self.is_ready and not self._is_lost:
            self._is_lost = True
            self._log.warning(
                "Redis was lost, trying again", event_id=journal.REDIS_LOST,
                error=self._crew.trouble,
            )  # fmt: skip
        crew, now = self._crew, time.monotonic()
        if self._crew.handled != self._logged and now - self._logged_at >= _LOG_SECONDS:
            self._logged, self._logged_at = self._crew.handled, now
            self._log.info(
                "messages were handled", bridge=self._service.name, stream=self._settings.stream,
                per_second=self._crew.meter.rate(), handled=self._crew.handled,
                dead=self._crew.dead,
            )  # fmt: skip
        if self.is_ready and not self._is_lost and now - self._said_at >= _SAY_SECONDS:
            self.say(self._status())
        if not self._waits and (crew.handled != self._logged or crew.meter.rate()):
            self._waits = True
            self._loop.after(_SAY_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._waits = False  # the end of this turn looks

    def _look_whether_full(self) -> None:
        full = any(subscription.full for subscription in self._holder.subscriptions)
        if full and not self._is_full:
            self._log.warning(
                "memory is at its bound, reading stands still; Redis keeps what comes now up to its"
                " own limit, then it cuts the subscription", event_id=journal.BRIDGE_FULL,
                bridge=self._service.name, source=self._source, mib=self._settings.memory_mib,
            )  # fmt: skip
        elif self._is_full and not full:
            self._log.info("reading goes on", bridge=self._service.name, source=self._source)
        self._is_full = full

    def _status(self) -> str:
        crew, holder = self._crew, self._holder
        parts = [self._source]
        if holder.channels and not holder.taken:
            others = sorted({c.holder for c in holder.channels if c.holder})
            parts.append(f"standing by, {', '.join(others) or 'nobody'} takes the messages")
        elif len(holder.channels) > 1:
            parts.append(f"{holder.taken} of {len(holder.channels)} channels")
        parts += [f"{crew.handled:,} handled", f"{crew.meter.rate():,}/s"]
        if crew.dead:
            parts.append(f"{crew.dead:,} dead letters")
        size = sum(subscription.size for subscription in holder.subscriptions)
        if size >= _MIB:
            parts.append(f"{size // _MIB:,} MiB wait in memory")
        if self._is_full:
            parts.append("memory is at its bound, reading stands still")
        if self.cuts:
            parts.append(f"cut off {self.cuts} times, messages may be lost")
        return ", ".join(parts)
