"""Live readers who stand at one cursor and are told alike: what is new is taken once, and written to each of them.

This is the hot path of the whole process, so nothing is kept per reader and turn: where a member stands, what it was
told and how much was written to it is the crowd's to know, and each member reads it from there when it is asked, or
leaves. A reader is in a crowd only while there is nothing to do for it but to wait; who cannot take more, or needs
anything of its own, leaves and is looked after alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable
from itertools import repeat
from operator import call, length_hint
from typing import TYPE_CHECKING, Protocol

from prometheus_client import Counter

from relay import telemetry

if TYPE_CHECKING:
    from relay.fanout.subscription import Subscription


class Member(Protocol):
    @property
    def write(self) -> Callable[[bytes], None]:
        """Never waits. Where it raises all the same, this member alone is cut."""

    def cut(self) -> None:
        """What it was told last could not be written, so nothing more may be: end, not properly."""

    def dismissed(self) -> None:
        """What comes next each does alone: leave."""

    def moved(self, crowd: Crowd) -> None:
        """From now on this is its crowd."""


class Crowd:
    __slots__ = ("_delivered", "_line", "front", "key", "members", "pace_s", "told", "written", "written_at")

    def __init__(self, key: Hashable, front: Subscription) -> None:
        self.key = key
        self.front = front
        """A subscription that is nobody's: it stands where all members stand."""
        self.pace_s = front.pace_s
        """It is flushed no more often than this; 0: whenever there is something new."""
        self.members: dict[Member, Callable[[bytes], None]] = {}
        """Change it by `add` and `drop`."""
        self._line: tuple[tuple[Member, ...], tuple[Callable[[bytes], None], ...]] | None = None
        """The members and their writes side by side, until somebody comes or goes."""
        self.written = 0
        """Bytes ever written to one who was here all the time."""
        self.written_at = 0.0
        """When that was last more (monotonic)."""
        self.told = 0
        """The seq of the last event that was."""
        self._delivered: Counter = telemetry.delivered(front.wire.form)

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
        line = self._line = self._line or (tuple(self.members), tuple(self.members.values()))
        members, writes = line[0], iter(line[1])
        while True:
            try:
                deque(map(call, writes, repeat(data)), maxlen=0)  # the loop is C's: a fifth less than Python's own
                return
            except Exception as error:  # whatever it was: the others get their bytes, and this one never a gap
                telemetry.logger().warning("viewer.cut", error=repr(error))
                members[len(members) - length_hint(writes) - 1].cut()

    def add(self, member: Member) -> None:
        self.members[member] = member.write
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
