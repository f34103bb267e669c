"""Looks at Redis: what is there to do for a group.

A hint says when to look, the look is the truth. Up to a hundred groups are looked at in one
request, so that looking at everything each minute costs next to nothing; what was hinted at
goes before what is merely due.
"""

from collections import deque
from collections.abc import Callable
from functools import partial

from wakeq import keys
from wakeq.errors import KeyRefusedError
from wakeq.replies import is_of_key
from wakeq.scripts import Script
from wakeq.wakeup.group import LEFT, Group, Look, Sleeper
from wakeq.wakeup.lines import Lines
from wakeq.wire import Argument, Reply, ServerError, explain

_GROUPS_MOST = 100
# More would only wait in Redis, where a hint cannot overtake them.
_REQUESTS_MOST = 2

Asked = list[tuple[Group, list[Sleeper]]]


class Prober:
    """Sends looks and hands on what they tell.

    Attributes:
        on_look: what takes the answers.
    """

    def __init__(self, lines: Lines) -> None:
        self.on_look: Callable[[Group, Look], None]
        self._lines = lines
        self._backlog = Script("backlog")
        self._ensure_group = Script("ensure_group")
        self._hinted: deque[Group] = deque()
        self._due: deque[Group] = deque()
        self._requests = 0

    @property
    def busy(self) -> bool:
        """Whether a look is under way or about to be sent."""
        return bool(self._requests or self._hinted or self._due)

    def ask(self, group: Group, hinted: bool) -> None:
        """Look at a group soon; once more if it is just being looked at."""
        if group.looking:
            group.again = True
            return
        group.looking = True
        (self._hinted if hinted else self._due).append(group)

    def forget(self) -> None:
        """Give up all looks: Redis is lost."""
        self._hinted.clear()
        self._due.clear()
        self._requests = 0

    def send(self) -> None:
        """Send what was asked for: the end of a turn."""
        most = 1 if self._lines.cluster else _GROUPS_MOST
        while (self._hinted or self._due) and self._requests < _REQUESTS_MOST:
            asked: Asked = []
            while len(asked) < most and (queue := self._hinted or self._due):
                group = queue.popleft()
                # Left alone, it is nobody's own: others may have what it has pending.
                asked.append((group, [s for s in group.sleepers if _is_own(s)]))
            self._request(asked)

    def _request(self, asked: Asked) -> None:
        names: list[Argument] = []
        arguments: list[Argument] = []
        for group, sleepers in asked:
            names += group.keys
            arguments += (group.name, group.start, int(group.claim_after * 1000), len(sleepers))
            arguments += (sleeper.consumer for sleeper in sleepers)
        try:
            line = self._lines.to(asked[0][0].keys[0])
        except KeyRefusedError as error:
            # On Cluster, already who asks where a key is must be permitted to use it.
            if not self._lines.cluster:
                raise
            for group, _ in asked:
                self._tell(group, Look([str(error).encode()], []))
            return
        self._requests += 1
        line.ask(
            self._backlog.command(names, arguments),
            partial(self._answered, asked, names, arguments),
        )

    def _answered(
        self, asked: Asked, names: list[Argument], arguments: list[Argument], reply: Reply
    ) -> None:
        if isinstance(reply, ServerError):
            if is_of_key(reply):
                self._not_permitted(asked, reply)
                return
            if reply.code != "NOSCRIPT":
                raise explain(reply, self._lines.url)
            whole = self._backlog.whole(names, arguments)
            again = partial(self._answered, asked, names, arguments)
            self._lines.to(asked[0][0].keys[0]).ask(whole, again)
            return
        self._requests -= 1
        for (group, sleepers), answer in zip(asked, reply, strict=True):
            look = Look(answer, sleepers)
            if not look.error and look.missing:
                self._make(group)
            else:
                self._tell(group, look)

    def _not_permitted(self, asked: Asked, error: ServerError) -> None:
        """Find out of which groups this is: the others are looked at."""
        self._requests -= 1
        if len(asked) == 1:
            self._tell(asked[0][0], Look([str(error).encode()], []))
            return
        middle = len(asked) // 2
        self._request(asked[:middle])
        self._request(asked[middle:])

    def _tell(self, group: Group, look: Look) -> None:
        group.looking = False
        again, group.again = group.again, False
        if again:
            # Something has changed since it was sent: this answer may be too old to go by.
            self.ask(group, hinted=True)
        else:
            self.on_look(group, look)

    def _make(self, group: Group) -> None:
        """Make a group: from here on what is published is for it, and it is rung for."""
        names: list[Argument] = [*group.keys[:2], keys.stats(group.stream, group.name)]
        arguments = [group.name, group.start, ""]
        command = self._ensure_group.whole([*names, group.keys[3]], arguments)
        self._lines.to(group.keys[0]).ask(command, partial(self._made, group))

    def _made(self, group: Group, reply: Reply) -> None:
        group.looking = False
        if isinstance(reply, ServerError):
            self.on_look(group, Look([str(reply).encode()], []))
        else:
            self.ask(group, hinted=True)


def _is_own(sleeper: Sleeper) -> bool:
    return bool(sleeper.consumer) and sleeper.state != LEFT
