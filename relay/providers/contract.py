"""What a provider must be able to say: how to ask its system, and how to read the answers. Pure: no I/O, no clock.

A provider builds `Ask`s (the shell sends them, with the credentials it alone knows) and turns answers into native
events, native runs and our errors. Ids it is given have been checked; it may put them into a path as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import msgspec

from relay.core.errors import RelayError
from relay.core.events import Draft
from relay.core.sse import Message


class Ask(msgspec.Struct, frozen=True):
    """One HTTP request to an upstream, relative to its base URL."""

    method: str
    path: str
    query: dict[str, str] = {}
    headers: dict[str, str] = {}
    body: bytes | None = None
    """JSON, or None for no body."""


class RunsQuery(msgspec.Struct, frozen=True):
    """Which runs a list asks for, newest first; all but limit and offset are hints, the shell filters what comes back.

    `since` and `until` (RFC 3339) bound the creation, both inclusive.
    """

    limit: int
    offset: int = 0
    status: str | None = None
    until: str | None = None
    since: str | None = None
    thread_id: str | None = None


class Provider(Protocol):
    name: str
    list_limit: int
    """Most runs its list gives in one answer."""
    active: tuple[str | None, ...]
    """For discovery: the values of `RunsQuery.status` whose lists together show every run that is not over, however old;
    (None,) if its list cannot be asked for a status."""
    statuses: Mapping[str, str]
    """The statuses of its runs -> ours. One that is not here is shown as running: never a guessed end."""
    durable_seq: Literal[True]
    """Whether the system numbers its events durably, so that our seq is its seq."""

    def authorization(self, token: str) -> dict[str, str]:
        """Headers that carry the credentials."""

    def events(self, run_id: str, *, after_seq: int, follow: bool) -> Ask:
        """The event stream behind `after_seq`; `follow=False` ends where the system has no more at the moment."""

    def drafts(self, message: Message, *, run_id: str, received_at: str) -> list[Draft]:
        """The native events in one SSE message; none for what is not an event. Never raises for hostile bytes."""

    def get_run(self, run_id: str) -> Ask: ...

    def list_runs(self, query: RunsQuery) -> Ask: ...

    def list_thread_runs(self, thread_id: str, *, limit: int) -> Ask: ...

    def create_run(self, thread_id: str, body: bytes | None) -> Ask: ...

    def cancel_run(self, run_id: str, *, last_seen_seq: int) -> Ask: ...

    def provide_input(self, run_id: str, content: str) -> Ask: ...

    def created(self, answer: object) -> dict[str, Any]:
        """The answer to `create_run`: at least a valid `run_id`, plus what the system says beside it."""

    def run(self, answer: object) -> dict[str, Any]:
        """A native run (docs/protocol.md) without the fields only the relay knows; UpstreamError if it is none."""

    def runs(self, answer: object) -> list[dict[str, Any]]:
        """The native runs of a list answer, newest first. UpstreamError also for a single row that is none."""

    def rows(self, answer: object) -> list[dict[str, Any] | None]:
        """As `runs`, row for row, with None in place of a row that is no run: one bad row must not hide the others."""

    def error(self, status: int, headers: Mapping[str, str], answer: object) -> RelayError:
        """What a refusal means; `answer` is the parsed JSON body, or None if it was no JSON."""
