"""What can be seen of a run whose upstream neither numbers its events nor resumes its stream.

A provider reads its wire into these; `core.assemble` makes numbered events of them. An observation says what *is*, not
what is new: the same one may come twice (a replay, a poll) and must then change nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Opens(msgspec.Struct, frozen=True):
    """The stream begins here with the run's beginning: whatever follows on it is a replay, or new."""


class Started(msgspec.Struct, frozen=True):
    """The run has begun."""

    at: str | None = None


class Break(msgspec.Struct, frozen=True):
    """Text that follows under this name belongs to another part than text before: names are used again, or are none."""

    name: str = ""


class Text(msgspec.Struct, frozen=True):
    """Text of one part: what was added to it, or (`whole`) all of it so far."""

    text: str
    name: str = ""
    """What this connection calls the part. Durable only if the provider says so (`named_parts`)."""
    lane: str = "text"
    """text, reasoning, or nested:<path>: parts are counted in each of them."""
    whole: bool = False
    final: bool = False
    """With `whole`: nothing will be added any more."""
    data: dict[str, Any] = {}
    """What an event about it says beside `content` and `part`."""
    at: str | None = None


class Texts(msgspec.Struct, frozen=True):
    """The texts of all assistant messages of the run, in order, where messages and parts have no common names."""

    texts: tuple[str, ...]
    final: bool = False


class Call(msgspec.Struct, frozen=True):
    id: str
    name: str
    arguments: Any = None
    data: dict[str, Any] = {}
    at: str | None = None


class Outcome(msgspec.Struct, frozen=True):
    """The result of a tool call; `call` is emitted before it if nobody has seen it yet."""

    id: str
    output: Any = None
    error: str | None = None
    call: Call | None = None
    data: dict[str, Any] = {}
    at: str | None = None


class Asked(msgspec.Struct, frozen=True):
    """The run waits for somebody to answer these."""

    ids: tuple[str, ...]
    data: dict[str, Any] = {}
    at: str | None = None


class Extra(msgspec.Struct, frozen=True):
    """Something without a counterpart, passed on under a name of its own. Has no identity: counted on each connection."""

    type: str
    data: dict[str, Any] = {}


class Ends(msgspec.Struct, frozen=True):
    """The stream says that it is over. Never that the run is."""

    reason: str
    message: str | None = None


class Odd(msgspec.Struct, frozen=True):
    """Something the wire must not hold: counted, never an event, never an end."""

    what: str


class Snapshot(msgspec.Struct, frozen=True):
    """The run as `GET run`, or an event that carries a run, describes it."""

    status: str
    """Native."""
    raw_status: str = ""
    known: bool = True
    """False for a status nobody has told us of."""
    created_at: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    stamped: str | None = None
    """The native final status that the timestamps speak of, whatever `status` says."""
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    calls: tuple[Call, ...] = ()
    """What `requires_action` wants answered."""


Observation = Opens | Started | Break | Text | Texts | Call | Outcome | Asked | Extra | Ends | Odd | Snapshot
