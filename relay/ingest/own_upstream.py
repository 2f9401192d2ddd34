"""One configured upstream that keeps runs in threads: which calls it has, and in which thread a run is.

Some of these calls are documented nowhere, so each is tried once and the answer is believed for a while: 405, 501, or 404
for something that exists, mean that there is no such call here.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Literal, NamedTuple

import aiohttp
import msgspec

from relay import telemetry
from relay.core.errors import InvalidRequest, NotFound, RelayError, Unsupported, UpstreamError
from relay.core.events import encode
from relay.core.times import unix
from relay.ingest.options import IngestOptions, UpstreamOptions
from relay.ingest.upstream import Client
from relay.providers.contract import Ask
from relay.providers.own import OwnSeqProvider, Page, ThreadQuery

_BELIEVED_S: Final = 600.0
"""How long a call that was not there is not tried again: a vendor may add it while we run."""
_THREADS: Final = 20_000
_PAGES: Final = 20
"""Most pages of messages, or of steps, looked through for one run's."""

_ASKED: Final = 3
"""How often we ask which run a stream is of that does not say so."""
_COARSE_S: Final = 2.0
"""The upstream's clock is known to the second, and its `created_at` may be another machine's."""


class Listed(NamedTuple):
    """A run's messages or steps, in the order the system lists them."""

    items: list[dict[str, Any]]
    whole: bool
    """False: there are more, or may be, and no way to them."""


class OwnUpstream(Client):
    def __init__(
        self, options: UpstreamOptions, provider: OwnSeqProvider, session: aiohttp.ClientSession, ingest: IngestOptions
    ) -> None:
        provider = provider.creating(provider.creates[0] if options.create == "auto" else options.create)
        super().__init__(options, provider, session, ingest)
        self.provider = provider
        self.poll_s = options.poll_s
        self.marks_runs = options.mark_runs
        self.attach_joins: Literal["unknown", "replay", "live"] = "unknown"
        """What the last attach to a run that was under way showed: all of it again, or only what followed."""
        self._threads: OrderedDict[str, str] = OrderedDict()
        self._without: dict[str, float] = {}

    # --- threads ----------------------------------------------------------------------------------------------------
    def thread_of(self, run_id: str) -> str | None:
        """As far as this process knows."""
        return self._threads.get(run_id)

    def note_thread(self, run_id: str, thread_id: str) -> None:
        self._threads[run_id] = thread_id
        self._threads.move_to_end(run_id)
        while len(self._threads) > _THREADS:
            self._threads.popitem(last=False)

    # --- what it can do ---------------------------------------------------------------------------------------------
    def has(self, call: str) -> bool:
        return self._without.get(call, 0.0) < time.monotonic()

    def is_without(self, call: str) -> None:
        telemetry.logger(upstream=self.name).warning("upstream.unsupported", call=call)
        self._without[call] = time.monotonic() + _BELIEVED_S

    async def ask_optional(self, call: str, ask: Ask | None) -> Any:
        """The answer of a call that may not exist, about a run that does. Raises Unsupported."""
        if ask is None or not self.has(call):
            raise Unsupported(f"this upstream cannot do this: {call}")
        try:
            return await self.ask(ask)
        except RelayError as error:
            if _is_no_call(error):
                self.is_without(call)
                raise Unsupported(f"this upstream cannot do this: {call}") from error
            raise

    # --- runs -------------------------------------------------------------------------------------------------------
    async def get_run(self, thread_id: str, run_id: str) -> tuple[dict[str, Any], Mapping[str, str]]:
        """The native run, and what the answer's headers say."""
        answer, headers = await self.answer(self.provider.get_run(thread_id, run_id))
        return {"thread_id": thread_id} | _given(self.provider.run(answer)), headers

    async def thread_runs(self, thread_id: str, query: ThreadQuery) -> list[dict[str, Any]]:
        """A page of the thread's runs; an offset where the system has none is counted off here."""
        by_id = self.provider.pages_by == "id"
        if not by_id and (query.after or query.before):
            raise InvalidRequest.field("after", "not available for this upstream", "limit, order and offset")
        if not by_id or not query.offset:
            return self.provider.runs(await self.ask(self.provider.list_thread_runs(thread_id, query)))
        more = msgspec.structs.replace(query, limit=min(query.limit + query.offset, self.provider.list_limit), offset=0)
        found = self.provider.runs(await self.ask(self.provider.list_thread_runs(thread_id, more)))
        return found[query.offset :]

    def finds_made(self, thread_id: str) -> Callable[[], Awaitable[dict[str, Any]]] | None:
        """Finds the run that a create sent now makes; None where the answer itself says which that is."""
        if self.provider.thread(thread_id) is None:
            return None
        began = time.monotonic()
        return lambda: self._made(thread_id, began)

    async def _made(self, thread_id: str, began: float) -> dict[str, Any]:
        """Never a guess: the run its thread is busy with, or the only one made since. UpstreamError if neither tells."""
        for _ in range(_ASKED):
            since_s = self.now_s() - (time.monotonic() - began)
            with suppress(RelayError):  # the run is there: one answer that went wrong must not lose it
                run_id = await self._busy_with(thread_id) or await self._only_one(thread_id, since_s)
                if run_id is not None:
                    return {"run_id": run_id, "thread_id": thread_id, "status": "running"}
            await asyncio.sleep(self.poll_s / _ASKED)
        raise UpstreamError("the upstream did not say which run it made")

    async def _busy_with(self, thread_id: str) -> str | None:
        ask = self.provider.thread(thread_id)
        return None if ask is None else self.provider.busy_with(await self.ask(ask))

    async def _only_one(self, thread_id: str, since_s: float) -> str | None:
        runs = await self.thread_runs(thread_id, ThreadQuery(_ASKED))
        made = [run["run_id"] for run in runs if (unix(run["created_at"]) or 0.0) >= since_s - _COARSE_S]
        return made[0] if len(made) == 1 else None

    async def cancel(self, thread_id: str, run_id: str) -> None:
        run, _ = await self.get_run(thread_id, run_id)
        await self.ask_optional("cancel", self.provider.cancel_run(thread_id, run))

    async def provide_input(self, thread_id: str, run_id: str, body: Mapping[str, Any]) -> None:
        run, _ = await self.get_run(thread_id, run_id)
        await self.ask_optional("input", self.provider.provide_input(thread_id, run, body))

    # --- what a run has made so far ---------------------------------------------------------------------------------
    async def messages(self, thread_id: str, run: Mapping[str, Any]) -> Listed:
        """The run's own messages, oldest first: as many pages as it takes to get behind its first. Raises Unsupported."""
        provider, run_id = self.provider, str(run["run_id"])
        own: list[dict[str, Any]] = []

        def is_past(page: Page) -> bool:
            past = provider.is_past(run, [*own[-1:], *page.items])
            own.extend(item for item in page.items if provider.owns(run, item))
            return past

        whole = await self._walk(
            "messages", lambda page, have: provider.messages(thread_id, run_id, page, have), is_past
        )
        return Listed(own[::-1], whole)

    async def steps(self, thread_id: str, run_id: str) -> Listed | None:
        """The run's steps, oldest first; None if the system has no such thing."""
        found: list[dict[str, Any]] = []

        def collect(page: Page) -> bool:
            found.extend(page.items)
            return False

        try:
            whole = await self._walk("steps", lambda page, _: self.provider.steps(thread_id, run_id, page), collect)
        except Unsupported:
            return None
        return Listed(found, whole)

    async def _walk(
        self, call: str, ask: Callable[[Page | None, int], Ask | None], take: Callable[[Page], bool]
    ) -> bool:
        """Page after page into `take`, until it says that this was enough; whether that, or the end, was reached.

        A page that came before is not taken: a system that does not know our way of paging answers the same again.
        """
        page = self.provider.page(await self.ask_optional(call, ask(None, 0)))
        seen: set[str] = set()
        have = 0
        for _ in range(_PAGES):
            fresh = tuple(item for item in page.items if _name(item) not in seen)
            if page.items and not fresh:
                self.is_without(f"more {call}")
                return have < self.provider.page_limit
            seen.update(map(_name, fresh))
            have += page.count
            if take(msgspec.structs.replace(page, items=fresh)) or not page.more:
                return True
            following = await self._following(call, ask(page, have))
            if following is None:
                return have < self.provider.page_limit
            page = following
        return False

    async def _following(self, call: str, ask: Ask | None) -> Page | None:
        """A page behind another; None if this system has no such thing as far as we know."""
        if ask is None or not self.has(f"more {call}"):
            return None
        try:
            return self.provider.page(await self.ask(ask))
        except RelayError as error:
            if not isinstance(error, InvalidRequest) and not _is_no_call(error):
                raise
        self.is_without(f"more {call}")
        return None


def _is_no_call(error: RelayError) -> bool:
    return isinstance(error, NotFound) or (error.details or {}).get("upstream_status") in (405, 501)


def _name(item: Mapping[str, Any]) -> str:
    """What an item is known by, on whichever page it comes."""
    given = item.get("id")
    return given if isinstance(given, str) and given else encode(item).decode()


def _given(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name != "thread_id" or value is not None}
