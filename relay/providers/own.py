"""What a provider must be able to say whose system keeps runs in threads, numbers no events and resumes no stream.

As in `contract.py`: pure, `Ask`s out, answers in. What it reads of a run are observations (`core.observed`), which the
assembler numbers. Optional parts of such a system answer None: then there is no such call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import msgspec

from relay.core.errors import RelayError
from relay.core.observed import Observation, Snapshot
from relay.core.sse import Message
from relay.providers.contract import Ask


class ThreadQuery(msgspec.Struct, frozen=True):
    """A page of a thread's runs, in the paging of whichever system is asked."""

    limit: int
    order: Literal["asc", "desc"] = "desc"
    offset: int = 0
    after: str | None = None
    before: str | None = None


class MessagesPage(msgspec.Struct, frozen=True):
    """Messages of one answer, newest first, and how to ask for the older ones (None: there are none, or no way)."""

    items: tuple[dict[str, Any], ...]
    after: str | None = None


class OwnSeqProvider(Protocol):
    name: str
    list_limit: int
    """Most runs one answer lists."""
    durable_seq: Literal[False]
    named_parts: bool
    """Whether text parts carry names that mean the same on every connection and in the messages."""
    streams_on_create: bool
    """Whether `create_run` answers with the run's stream: the only one there will ever be."""
    pages_by: Literal["offset", "id"]
    """How a thread's runs are paged: by how many to leave out, or by the id a page begins or ends at."""

    def authorization(self, token: str) -> dict[str, str]: ...

    def create_run(self, thread_id: str, body: dict[str, Any]) -> Ask: ...

    def created(self, answer: object) -> dict[str, Any]:
        """The answer to `create_run`, or the first event of its stream: a valid `run_id` and what was said beside it."""

    def created_in(self, message: Message) -> dict[str, Any] | None:
        """The same from one message of the stream that `create_run` opened; None if it does not say."""

    def get_run(self, thread_id: str, run_id: str) -> Ask: ...

    def list_thread_runs(self, thread_id: str, query: ThreadQuery) -> Ask: ...

    def cancel_run(self, thread_id: str, run: Mapping[str, Any]) -> Ask:
        """`run` is the native run: some systems want to be told its agent."""

    def provide_input(self, thread_id: str, run: Mapping[str, Any], body: Mapping[str, Any]) -> Ask | None:
        """InvalidRequest if the body does not say what this system needs."""

    def attach(self, thread_id: str, run_id: str) -> Ask | None:
        """The stream of a run that somebody else made."""

    def messages(self, thread_id: str, run_id: str, *, after: str | None) -> Ask: ...

    def steps(self, thread_id: str, run_id: str) -> Ask | None: ...

    def run(self, answer: object) -> dict[str, Any]:
        """A native run (docs/protocol.md); UpstreamError if it is none."""

    def runs(self, answer: object) -> list[dict[str, Any]]: ...

    def snapshot(self, run: Mapping[str, Any]) -> Snapshot:
        """A native run as an observation."""

    def reader(self) -> Callable[[Message], list[Observation]]:
        """Reads one stream's messages, in order. Never raises for hostile bytes."""

    def messages_page(self, answer: object) -> MessagesPage:
        """UpstreamError if it is none."""

    def reconciled(
        self, run: Mapping[str, Any], messages: list[dict[str, Any]] | None, steps: object, *, final: bool
    ) -> list[Observation]:
        """All that messages (in order; None: not to be had) and steps tell of the run."""

    def error(self, status: int, headers: Mapping[str, str], answer: object) -> RelayError: ...
