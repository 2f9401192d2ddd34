"""What can go wrong with one request to the scripted upstream, as values.

A `Fault` says *where* (which requests), *what* (an answer, a shape of the bytes, an ending) and *when* (after so many
events or bytes of that connection, or at an age). Faults compose with `|`; the right one wins where both speak:
`drip() | cut(after_bytes=100)`. Pure: no sockets, no clock; randomness only from the seed given.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Literal

Target = Literal["events", "run", "list", "thread", "create", "cancel", "input", "any"]
End = Literal["rst", "drop", "eof", "junk", "stall"]

JUNK = b'{"code":"internal.error","message":"internal error"}\n'
"""What Arkloop's own gateway writes into a stream whose upstream was cut, before it ends it cleanly (section 2.6)."""
HTML = "<!doctype html><html><head><title>Sign in</title></head><body>Please sign in.</body></html>"
RANDOM_SIZES = 0
ALL = 1 << 60


@dataclass(frozen=True, slots=True)
class Fault:
    """One request's fate. The defaults are a healthy answer."""

    target: Target = "events"
    follow: bool | None = None
    """Only `events` requests with this `follow`; None: both."""

    # instead of the true answer
    status: int | None = None
    code: str | None = None
    retry_after: int | str | None = None
    body: str | None = None
    """Sent instead of the answer, with `content_type`."""
    content_type: str | None = None
    delay_s: float = 0.0
    """Before the status line."""

    # the shape of the stream
    first_byte_s: float = 0.0
    """Between the headers and the first byte of the body."""
    chunk: int | None = None
    """Bytes per write, each an HTTP chunk and a TCP write of its own; `RANDOM_SIZES`: 1 to 64, from `seed`."""
    seed: int = 0
    crlf: bool = False
    pings: bool = True
    rewind: int = 0
    """Resume this many stored events too early; `ALL`: from the first, whatever after_seq says."""

    # the end of the stream
    end: End | None = None
    after_events: int | None = None
    after_bytes: int | None = None
    max_age_s: float | None = None
    half: bool = False
    """Write half of the next frame first (waits for there to be one)."""
    stall_s: float | None = None
    """A stall ends in RST after this long; None: never, the client has to leave."""

    def __or__(self, other: Fault) -> Fault:
        said = {f.name: getattr(other, f.name) for f in fields(other) if getattr(other, f.name) != f.default}
        return Fault(**{**asdict(self), **said})

    def hits(self, target: str, follow: bool | None) -> bool:
        return self.target in ("any", target) and self.follow in (None, follow)

    @property
    def immediate(self) -> bool:
        """An ending with no moment given comes before the first event."""
        return self.end is not None and self.after_events is self.after_bytes is self.max_age_s is None

    @property
    def shapes(self) -> bool:
        """Whether the bytes of this stream need looking at; if not they may be written straight through."""
        return self.end is not None or self.chunk is not None or self.crlf


HEALTHY = Fault()


def cut(
    *, after_events: int | None = None, after_bytes: int | None = None, how: Literal["rst", "drop"] = "rst"
) -> Fault:
    """The connection breaks mid-body: `rst` a TCP reset, `drop` a FIN without the last chunk (nothing written is lost)."""
    return Fault(end=how, after_events=after_events, after_bytes=after_bytes)


def clean_eof(*, after_events: int | None = None, after_bytes: int | None = None) -> Fault:
    """The body ends properly, mid-run."""
    return Fault(end="eof", after_events=after_events, after_bytes=after_bytes)


def junk_eof(*, after_events: int | None = None, after_bytes: int | None = None) -> Fault:
    """The gateway's JSON error inside the stream, then a proper end."""
    return Fault(end="junk", after_events=after_events, after_bytes=after_bytes)


def half_frame(*, after_events: int = 0, then: Literal["rst", "drop", "eof"] = "rst") -> Fault:
    """Half of the frame after `after_events` whole ones, then the end."""
    return Fault(end=then, after_events=after_events, half=True)


def stall(*, after_events: int | None = None, after_bytes: int | None = None, for_s: float | None = None) -> Fault:
    """No byte more, no ping, the connection open; for ever, or RST after `for_s`."""
    return Fault(end="stall", after_events=after_events, after_bytes=after_bytes, stall_s=for_s)


def max_age(seconds: float) -> Fault:
    """The 60 s write timeout of section 2.6, scaled: RST at this age whatever the traffic."""
    return Fault(end="rst", max_age_s=seconds)


def status(
    status: int,
    *,
    target: Target = "events",
    code: str | None = None,
    retry_after: int | str | None = None,
    follow: bool | None = None,
) -> Fault:
    """The error envelope with this status."""
    return Fault(target=target, status=status, code=code, retry_after=retry_after, follow=follow)


def html(*, target: Target = "events", status: int = 200) -> Fault:
    """A captive portal's page."""
    return Fault(target=target, status=status, body=HTML, content_type="text/html; charset=utf-8")


def content_type(value: str) -> Fault:
    """The true stream under another content type."""
    return Fault(content_type=value)


def drip() -> Fault:
    """Every byte a chunk and a TCP write of its own."""
    return Fault(chunk=1)


def chunks(size: int = RANDOM_SIZES, *, seed: int = 0) -> Fault:
    """Writes of `size` bytes, whatever the frames; random sizes by default."""
    return Fault(chunk=size, seed=seed)


def crlf() -> Fault:
    """CRLF line ends."""
    return Fault(crlf=True)


def slow_first_byte(seconds: float) -> Fault:
    """Headers at once, the body later."""
    return Fault(first_byte_s=seconds)


def slow_answer(seconds: float, *, target: Target = "any") -> Fault:
    """No status line for a while."""
    return Fault(target=target, delay_s=seconds)


def duplicates(count: int) -> Fault:
    """Sends the `count` events up to the cursor again."""
    return Fault(rewind=count)


def ignore_after_seq() -> Fault:
    """Replays from the first event."""
    return Fault(rewind=ALL)


def chaos(seed: int, count: int = 20, *, stall_s: float = 0.5) -> Iterator[Fault]:
    """`count` faults of a bounded kind, the same for the same seed: each lets the client resume, none lasts for ever."""
    chance = random.Random(seed)
    for _ in range(count):
        yield _ending(chance, stall_s) | _shape(chance)


def _ending(chance: random.Random, stall_s: float) -> Fault:
    events = chance.randint(0, 12)
    kind = chance.randrange(10)
    if kind <= 2:
        return cut(after_events=events, how=chance.choice(["rst", "drop"]))
    if kind == 3:
        return cut(after_bytes=chance.randint(0, 2000))
    if kind == 4:
        return clean_eof(after_events=events)
    if kind == 5:
        return junk_eof(after_events=events)
    if kind == 6:
        return half_frame(after_events=events, then=chance.choice(["rst", "drop", "eof"]))
    if kind == 7:
        return stall(after_events=events, for_s=stall_s)
    if kind == 8:
        return status(chance.choice([500, 502, 503, 429]), retry_after=chance.choice([None, 0]))
    return max_age(chance.uniform(0.02, 0.3))


def _shape(chance: random.Random) -> Fault:
    options = [HEALTHY] * 4 + [drip(), chunks(seed=chance.getrandbits(32)), duplicates(chance.randint(1, 5))]
    return chance.choice([*options, ignore_after_seq()])
