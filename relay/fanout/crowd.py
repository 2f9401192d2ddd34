"""Live readers who stand at one cursor and are told alike: what is new is taken once, and written to each of them.

This is the hot path of the whole process, so nothing is kept per reader and turn: where a member stands, what it was
told and how much was written to it is the crowd's to know, and each member reads it from there when it is asked, or
leaves. A reader is in a crowd only while there is nothing to do for it but to wait; who cannot take more, or needs
anything of its own, leaves and is looked after alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from itertools import repeat
from operator import call, length_hint
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from relay import telemetry

if TYPE_CHECKING:
    from relay.fanout.subscription import Subscription


class Way(NamedTuple):
    """How bytes get to one reader. Nothing of it ever waits."""

    write: Callable[[bytes], int | None]
    """How many bytes were taken, the rest being for `queue`; None: it keeps the rest itself.

    OSError: none was taken. Anything else that is raised: nobody knows, so this reader is cut.
    """
    queue: Callable[[bytes], object]
    """Behind what is pending. Where it raises, this reader is cut."""
    pending: Callable[[], int] | None = None
    """Bytes that were queued and are not taken yet: while there are any, `write` would overtake them.

    None: there are none, and will be none without this crowd's doing, or its being told (`add`).
    """


class Member(Protocol):
    @property
    def way(self) -> Way:
        """Asked for before the first that is written to it here, and after a `write` that left something to `queue`."""

    def cut(self) -> None:
        """What it was told last could not be written, so nothing more may be: end, not properly."""

    def dismissed(self) -> None:
        """What comes next each does alone: leave."""

    def moved(self, crowd: Crowd) -> None:
        """From now on this is its crowd."""


class Crowd:
    __slots__ = ("_delivered", "_line", "front", "key", "members", "pace_s", "told", "written", "written_at")

    def __init__(self, key: tuple[int, Hashable], front: Subscription) -> None:
        self.key = key
        self.front = front
        """A subscription that is nobody's: it stands where all members stand."""
        self.pace_s = front.pace_s
        """It is flushed no more often than this; 0: whenever there is something new."""
        self.members: dict[Member, Way | None] = {}
        """With their ways, once they have been written to. Change it by `add` and `drop`."""
        self._line: _Line | None = None
        """The members and their ways side by side, until somebody comes or goes."""
        self.written = 0
        """Bytes ever written to one who was here all the time."""
        self.written_at = 0.0
        """When that was last more (monotonic)."""
        self.told = 0
        """The seq of the last event that was."""
        self._delivered = telemetry.delivered(front.wire.form)

    @property
    def wait_s(self) -> float:
        """Until it is due. The first event after a pause is never late."""
        return self.written_at + self.pace_s - time.monotonic()

    def flush(self) -> bool:
        """Write what is new to everybody; whether all there is to do for them then is to wait."""
        part = self.front.take()
        if part is not None and part.data:
            data = part.data
            # Noted before it is written: who is full by this very write leaves at once, and has been given it.
            self.written += len(data)
            self.written_at = time.monotonic()
            self.told = part.told
            self._delivered.inc(part.sent * len(self.members))
            self._write(data)
        return self.front.waiting

    def _write(self, data: bytes) -> None:
        line = self._line = self._line or self._lined()
        took = line.write(data)
        if took.count(len(data)) + took.count(None) < len(took):
            for way, member, count in zip(line.ways, line.members, took, strict=True):
                if count is not None and count < len(data):
                    self._ask_anew(member)
                    _or_cut(member, way.queue, data[count:])

    def _lined(self) -> _Line:
        for member in [member for member, way in self.members.items() if way is None]:
            try:
                self.members[member] = member.way
            except Exception as error:  # the others are to get their bytes
                _cut(member, error)
        known = {member: way for member, way in self.members.items() if way is not None}
        return _Line(tuple(known), tuple(known.values()))

    def _ask_anew(self, member: Member) -> None:
        if member in self.members:
            self.add(member)

    def add(self, member: Member) -> None:
        """A new one, or one whose way is another now."""
        self.members[member] = None
        self._line = None

    def drop(self, member: Member) -> None:
        self.members.pop(member, None)
        self._line = None

    def dismiss(self) -> None:
        for member in tuple(self.members):
            member.dismissed()

    def join(self, other: Crowd) -> None:
        """Become part of another crowd that stands where this one does."""
        other.members |= self.members
        other._line = self._line = None
        for member in self.members:
            member.moved(other)
        self.members = {}


class _Line:
    """The members of a crowd as columns, so that the loops over them are C's: a fifth less than Python's own."""

    __slots__ = ("_pending", "_write", "members", "ways")

    def __init__(self, members: tuple[Member, ...], ways: tuple[Way, ...]) -> None:
        self.members = members
        self.ways = ways
        self._write = tuple(way.write for way in ways)
        self._pending = tuple(way.pending for way in ways if way.pending)

    def write(self, data: bytes) -> list[int | None]:
        """To each, as its way says; what each took of it."""
        writes = iter(self._in_order())
        took: list[Any] = []
        while True:
            try:
                took.extend(map(call, writes, repeat(data)))
                return took
            except OSError:  # it can take nothing now, or is gone: the transport is to find out
                took.append(0)
            except Exception as error:  # whatever it was: the others get their bytes, and this one never a gap
                took.append(None)
                _cut(self.members[len(took) - 1], error)
            assert len(took) == len(self.members) - length_hint(writes)

    def _in_order(self) -> Sequence[Callable[[bytes], object]]:
        """How each is written to now: nothing may overtake what its transport still holds."""
        if not any(map(call, self._pending)):
            return self._write
        return [way.queue if way.pending and way.pending() else way.write for way in self.ways]


def _or_cut(member: Member, queue: Callable[[bytes], object], data: bytes) -> None:
    try:
        queue(data)
    except Exception as error:
        _cut(member, error)


def _cut(member: Member, error: Exception) -> None:
    if not isinstance(error, ConnectionError):  # who has just left is no trouble
        telemetry.logger().warning("viewer.cut", error=repr(error))
    member.cut()
