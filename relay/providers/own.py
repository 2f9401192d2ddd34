"""What a provider must be able to say whose system keeps runs in threads, numbers no events and resumes no stream.

As in `contract.py`: pure, `Ask`s out, answers in. What it reads of a run are observations (`core.observed`), which the
assembler numbers. Optional parts of such a system answer None: then there is no such call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


class Page(msgspec.Struct, frozen=True):
    """What one answer lists of messages or steps."""

    items: tuple[dict[str, Any], ...]
    count: int
    """How many rows the answer had; those that are no objects are left out of `items`."""
    last_id: str | None = None
    """What the next page begins behind, where pages begin behind an id."""
    more: bool = False
    """There may be more: the answer says so, or does not say."""


class OwnSeqProvider(Protocol):
    name: str
    list_limit: int
    """Most runs one answer lists."""
    statuses: Mapping[str, str]
    """The statuses of its runs -> ours. One that is not here is shown as running: never a guessed end."""
    durable_seq: Literal[False]
    named_parts: bool
    """Whether text parts carry names that mean the same on every connection and in the messages."""
    streams_on_create: bool
    """Whether `create_run` answers with the run's stream: the only one there will ever be."""
    tells_waiting: bool
    """Whether a run's row says that it waits, and for what; else only its stream does."""
    pages_by: Literal["offset", "id"]
    """How a thread's runs are paged: by how many to leave out, or by the id a page begins or ends at."""
    page_limit: int
    """How many messages or steps are asked for at once."""

    creates: tuple[str, ...]
    """The ways to make a run, each as the end of its path, the usual one first (`upstreams[].create`)."""

    def creating(self, how: str) -> OwnSeqProvider:
        """This provider, making runs in this one of its ways."""

    def authorization(self, token: str) -> dict[str, str]: ...

    def create_run(self, thread_id: str, body: dict[str, Any]) -> Ask: ...

    def created(self, answer: object) -> dict[str, Any]:
        """The answer to `create_run`, or the first event of its stream: a valid `run_id` and what was said beside it."""

    def created_in(self, message: Message) -> dict[str, Any] | None:
        """The same from one message of the stream that `create_run` opened; None if it does not say."""

    def marked(self, body: dict[str, Any], mark: str) -> dict[str, Any] | None:
        """`body` so that the run it makes can be told from all others by `mark`; None if there is no room for that."""

    def marked_run(self, answer: object, mark: str) -> dict[str, Any] | None:
        """The run of a list answer that carries `mark`, as `created` tells it."""

    def thread(self, thread_id: str) -> Ask | None:
        """The thread itself, where it tells which run it is busy with; None where streams say which run they are."""

    def busy_with(self, answer: object) -> str | None:
        """The run a thread is busy with; UpstreamError if the answer is no thread."""

    def get_run(self, thread_id: str, run_id: str) -> Ask: ...

    def list_thread_runs(self, thread_id: str, query: ThreadQuery) -> Ask: ...

    def cancel_run(self, thread_id: str, run: Mapping[str, Any]) -> Ask:
        """`run` is the native run: some systems want to be told its agent."""

    def provide_input(self, thread_id: str, run: Mapping[str, Any], body: Mapping[str, Any]) -> Ask | None:
        """InvalidRequest if the body does not say what this system needs."""

    def attach(self, thread_id: str, run_id: str) -> Ask | None:
        """The stream of a run that somebody else made."""

    def messages(self, thread_id: str, run_id: str, page: Page | None, have: int) -> Ask:
        """The thread's messages, newest first; with `page` those that follow this one, when `have` came before them."""

    def steps(self, thread_id: str, run_id: str, page: Page | None) -> Ask | None:
        """The run's steps, oldest first."""

    def run(self, answer: object) -> dict[str, Any]:
        """A native run (docs/protocol.md); UpstreamError if it is none."""

    def runs(self, answer: object) -> list[dict[str, Any]]: ...

    def snapshot(self, run: Mapping[str, Any]) -> Snapshot:
        """A native run as an observation."""

    def reader(self) -> Callable[[Message], list[Observation]]:
        """Reads one stream's messages, in order. Never raises for hostile bytes."""

    def page(self, answer: object) -> Page:
        """A page of messages or steps; UpstreamError if it is none."""

    def owns(self, run: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
        """Whether a message of the thread is of this run."""

    def is_past(self, run: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether these (newest first) go back to before the run: no older one can be of it."""

    def reconciled(
        self,
        run: Mapping[str, Any],
        messages: list[dict[str, Any]] | None,
        steps: list[dict[str, Any]] | None,
        *,
        final: bool,
    ) -> list[Observation]:
        """All that messages and steps (in order; None: not to be had) tell of the run."""

    def error(self, status: int, headers: Mapping[str, str], answer: object) -> RelayError: ...
