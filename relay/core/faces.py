"""How a face other than the native one tells a run: one event at a time, or as a fold that remembers what it opened.

A face whose frames each stand for one event is a `FaceWire` and shares bytes like any wire. Where frames have to fit
together (an opened text part, a message's whole text at its end) the face is a `Fold`: pure, from the run's events and
nothing else, so that all readers who began at the same place have the same state at the same cursor, and share bytes too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from relay.core.events import Event
from relay.core.wires import Notice


@dataclass(frozen=True, slots=True)
class FaceWire:
    """A face's bytes: what `core.wires.Wire` is to the native face."""

    form: str
    """The face's name, for metrics."""
    number: int
    """Stands for this face in the keys of what is remembered; even, and above those of the native wires."""
    unframed_ping: bytes
    event: Callable[[Event], bytes]
    words: Callable[[Notice], bytes]
    """What a notice of ours becomes: possibly nothing, for clients that cannot bear a frame they do not know."""
    chunked: bool = False

    @property
    def key(self) -> int:
        return self.number + self.chunked

    def events(self, events: Sequence[Event]) -> bytes:
        return self.wrap(b"".join([self.event(event) for event in events]))

    def notice(self, notice: Notice) -> bytes:
        return self.wrap(self.words(notice))

    @property
    def ping(self) -> bytes:
        return self.wrap(self.unframed_ping)

    def wrap(self, payload: bytes) -> bytes:
        if not self.chunked or not payload:
            return payload
        return b"%x\r\n%b\r\n" % (len(payload), payload)


class Fold(Protocol):
    """A face as a fold over a run's events. States are immutable; `tell` never raises for what an event holds."""

    @property
    def key(self) -> Hashable:
        """Folds with equal keys tell the same events alike."""

    def begin(self) -> Any:
        """The state before the first event that is told."""

    def tell(self, state: Any, event: Event) -> tuple[bytes, Any]:
        """The frames of one event, and the state after it."""

    def over(self, state: Any) -> bool:
        """All is told: whatever the log may still get, this face has no words for it."""

    def resting(self, state: Any) -> bool:
        """This face ends its stream here if nothing more is there at the moment (a run that waits for its input)."""


def nothing(_: Event) -> bytes:
    """The `event` of a wire whose events a fold tells."""
    return b""
