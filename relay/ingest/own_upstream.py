"""One configured upstream that keeps runs in threads: which calls it has, and in which thread a run is.

Some of these calls are documented nowhere, so each is tried once and the answer is believed for a while: 405, 501, or 404
for something that exists, mean that there is no such call here.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, Literal

import aiohttp
import msgspec

from relay import telemetry
from relay.core.errors import InvalidRequest, NotFound, RelayError, Unsupported
from relay.ingest.options import IngestOptions, UpstreamOptions
from relay.ingest.upstream import Client
from relay.providers.contract import Ask
from relay.providers.own import OwnSeqProvider, ThreadQuery

_BELIEVED_S: Final = 600.0
"""How long a call that was not there is not tried again: a vendor may add it while we run."""
_THREADS: Final = 20_000
_PAGES: Final = 20
"""Most pages of a thread's messages looked through for one run's."""


class OwnUpstream(Client):
    def __init__(
        self, options: UpstreamOptions, provider: OwnSeqProvider, session: aiohttp.ClientSession, ingest: IngestOptions
    ) -> None:
        super().__init__(options, provider, session, ingest)
        self.provider = provider
        self.poll_s = options.poll_s
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
            if isinstance(error, NotFound) or (error.details or {}).get("upstream_status") in (405, 501):
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

    async def cancel(self, thread_id: str, run_id: str) -> None:
        run, _ = await self.get_run(thread_id, run_id)
        await self.ask_optional("cancel", self.provider.cancel_run(thread_id, run))

    async def provide_input(self, thread_id: str, run_id: str, body: Mapping[str, Any]) -> None:
        run, _ = await self.get_run(thread_id, run_id)
        await self.ask_optional("input", self.provider.provide_input(thread_id, run, body))

    # --- what a run has made so far ---------------------------------------------------------------------------------
    async def messages(self, thread_id: str, run_id: str) -> list[dict[str, Any]]:
        """The thread's messages, oldest first, as far back as this run's go. Raises Unsupported."""
        found: list[dict[str, Any]] = []
        after: str | None = None
        for _ in range(_PAGES):
            ask = self.provider.messages(thread_id, run_id, after=after)
            page = self.provider.messages_page(await self.ask_optional("messages", ask))
            found += page.items
            after = page.after
            if after is None or any(item.get("run_id") not in (None, run_id) for item in page.items[-1:]):
                break
        return found[::-1]

    async def steps(self, thread_id: str, run_id: str) -> Any:
        """What the system answers for the run's steps; None if it has no such thing."""
        try:
            return await self.ask_optional("steps", self.provider.steps(thread_id, run_id))
        except Unsupported:
            return None


def _given(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name != "thread_id" or value is not None}
