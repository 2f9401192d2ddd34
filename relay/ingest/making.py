"""Making a run where the upstream keeps them in threads: from the POST to the run's name, whatever becomes of who asked.

The POST goes out once. If its answer is lost the run may exist all the same, so it is looked for among the thread's
runs (C1 rule 6 of the SeekrFlow/Minds reference): by a mark of ours in its metadata, and by nothing else, for a run of
somebody else in the same thread and second looks just alike. What is not found soon stays unknown, as the caller is told.
A stream that was answered but names no run proves that there is one: then its thread may name it too.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp

from relay import telemetry
from relay.core.errors import RelayError, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from relay.ingest.intake import Intake
from relay.ingest.own_upstream import OwnUpstream
from relay.providers.own import ThreadQuery

_LOOKS_S: Final = (0.0, 0.5, 1.0)
"""How long before each look for a run whose creation was not answered; an upstream may need a moment to list it."""
_WITHIN_S: Final = 8.0
"""All looks together, however slowly they are answered: whoever asked still waits."""
_NEWEST: Final = 20


class Making:
    """One run in the making. `run` does it, once; `made` is what became of it, for any number of callers."""

    def __init__(self, upstream: OwnUpstream, thread_id: str, body: dict[str, Any], *, event_bytes: int) -> None:
        self.upstream = upstream
        self.thread_id = thread_id
        self._mark = secrets.token_urlsafe(12)
        marked = upstream.provider.marked(body, self._mark) if upstream.marks_runs else None
        self._findable = marked is not None
        self._ask = upstream.provider.create_run(thread_id, body if marked is None else marked)
        streams = upstream.provider.streams_on_create
        self.intake = Intake(upstream, self._ask, event_bytes=event_bytes) if streams else None
        """The stream that is the answer, if it is one: somebody has to run its `read`."""
        self._find = upstream.finds_made(thread_id) if streams else None
        """Where no such stream says which run it is, its thread may."""
        self._made: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def made(self) -> dict[str, Any]:
        """What the upstream says of the run. Raises its refusal, or that it is not known whether there is a run."""
        return await asyncio.shield(self._made)

    async def run(self, begin: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """`begin` is what is to be done with the run before anybody hears of it."""
        try:
            made = await self._found()
            await begin(made)
            self._made.set_result(made)
        except RelayError as error:
            self._fail(error)
            if self.intake is not None:
                self.intake.drop()
        finally:
            self._fail(UpstreamUnavailable("the run was not waited for"))  # nobody else must wait for ever

    def _fail(self, error: RelayError) -> None:
        if not self._made.done():
            self._made.set_exception(error)
            self._made.exception()  # noted: nobody may be waiting any more

    async def _found(self) -> dict[str, Any]:
        try:
            return await self._posted()
        except (UpstreamError, UpstreamTimeout, UpstreamUnavailable) as error:
            if not _may_be_made(error):
                raise
            found = await self._looked_for() if self._findable else None
            if found is None and not _is_answer(error):  # so that nobody takes it for sure that there is no run
                raise UpstreamUnavailable(error.message) from error
            if found is None:
                raise
            telemetry.logger(upstream=self.upstream.name, run_id=found["run_id"]).warning("run.found_again")
            return found

    async def _posted(self) -> dict[str, Any]:
        if self.intake is None:
            return await self.upstream.read(self.upstream.provider.created, self._ask)
        if self._find is None:
            return await self.intake.created()
        await self.intake.begun.wait()
        if not self.intake.streams:  # an answer in one piece, or none
            return await self.intake.created()
        return (await self._look() if self._findable else None) or await self._find()

    async def _looked_for(self) -> dict[str, Any] | None:
        try:
            async with asyncio.timeout(_WITHIN_S):
                for pause_s in _LOOKS_S:
                    await asyncio.sleep(pause_s)
                    found = await self._look()
                    if found is not None:
                        return found
        except TimeoutError:
            pass
        return None

    async def _look(self) -> dict[str, Any] | None:
        provider = self.upstream.provider
        try:
            answer = await self.upstream.ask(provider.list_thread_runs(self.thread_id, ThreadQuery(_NEWEST)))
            return provider.marked_run(answer, self._mark)
        except RelayError:
            return None


def _may_be_made(error: RelayError) -> bool:
    """Not if the request never reached the upstream, or was turned away at its door."""
    return not isinstance(error.__cause__, aiohttp.ClientConnectorError) and error.code != "upstream.unauthorized"


def _is_answer(error: RelayError) -> bool:
    """An error status is the upstream's word that nothing was made; the others say themselves that nobody knows."""
    return not isinstance(error, UpstreamError) or "upstream_status" in (error.details or {})
