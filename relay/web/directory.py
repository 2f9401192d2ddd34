"""Where a run lives: which upstream knows a run id, and what its canonical form is.

What this process watches and what the log holds needs no upstream at all. Else the upstreams are asked, each run by one
request at a time however many ask us, and both answers are remembered for a moment: a flood of unknown ids must not
become a flood of upstream requests.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from relay.core.errors import InvalidRequest, NotFound, RelayError
from relay.core.events import TERMINAL
from relay.core.ids import RunKey, checked_upstream
from relay.fanout.hub import Hub
from relay.ingest.own_upstream import OwnUpstream
from relay.ingest.upstream import Upstream
from relay.store.log import Log, LogState

AnyUpstream: TypeAlias = Upstream | OwnUpstream

_KNOWN_S: Final = 60.0
_UNKNOWN_S: Final = 2.0
_MOST: Final = 10_000


class _Asking:
    """A look-up under way: others wait for it instead of asking too."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.trouble: RelayError | None = None


class Directory:
    def __init__(self, upstreams: Mapping[str, AnyUpstream], log: Log, hub: Hub) -> None:
        self.upstreams = upstreams
        self._all = tuple(upstreams.values())
        self._log = log
        self._hub = hub
        self._known: OrderedDict[tuple[str, str], tuple[RunKey | None, float]] = OrderedDict()
        self._asking: dict[tuple[str, str], _Asking] = {}

    def candidates(self, hint: str | None) -> Sequence[AnyUpstream]:
        """The upstream somebody named, or all of them. InvalidRequest for one that is not configured."""
        if not hint:
            return self._all
        checked_upstream("upstream", hint)
        if hint not in self.upstreams:
            raise InvalidRequest.field("upstream", "not configured here", ", ".join(sorted(self.upstreams)))
        return [self.upstreams[hint]]

    def only(self, hint: str | None) -> AnyUpstream:
        """The one upstream a request that creates something goes to."""
        found = self.candidates(hint)
        if len(found) > 1:
            raise InvalidRequest.field("upstream", "needed, there are several", ", ".join(sorted(self.upstreams)))
        return found[0]

    async def find(self, run_id: str, hint: str | None, thread_id: str | None = None) -> RunKey:
        """The run's full name. Raises NotFound, or the upstream's own refusal, or that it cannot be asked now.

        `thread_id` is needed for a run nobody has asked for yet, of a system that keeps runs in threads.
        """
        at = _place(run_id, hint, thread_id)
        while (known := self.known(run_id, hint, thread_id)) is None:
            asking = self._asking.get(at)
            if asking is None:
                keys = [RunKey(upstream.name, run_id) for upstream in self.candidates(hint)]
                return await self._look_up(at, keys, thread_id)
            await asking.over.wait()
            if asking.trouble is not None:  # what the one who asked was told holds for all who waited
                raise asking.trouble
        return known

    def known(self, run_id: str, hint: str | None, thread_id: str | None = None) -> RunKey | None:
        """As `find`, where nobody has to be asked; None where somebody has to be."""
        for upstream in self.candidates(hint):
            key = self._hub.watched(upstream.name, run_id)
            if key is not None:
                return key
        known = self._known.get(_place(run_id, hint, thread_id))
        if known is None or known[1] <= time.monotonic():
            return None
        if known[0] is None:
            raise NotFound("no upstream knows this run")
        return known[0]

    async def _look_up(self, at: tuple[str, str], keys: Sequence[RunKey], thread_id: str | None) -> RunKey:
        asking = self._asking[at] = _Asking()
        try:
            found = await self._in_log(keys) or await self._upstream_of(keys, thread_id)
            self._remember(at, found)
            self._remember((at[0], found.run_id), found)  # from now on it is found without its thread too
        except NotFound:
            self._remember(at, None)
            raise
        except RelayError as error:
            asking.trouble = error
            raise
        finally:
            del self._asking[at]
            asking.over.set()
        return found

    async def _in_log(self, keys: Sequence[RunKey]) -> RunKey | None:
        for key, state in zip(keys, await self._log.states(keys), strict=True):
            if state is not None and state.last_seq:
                return key
        return None

    async def _upstream_of(self, keys: Sequence[RunKey], thread_id: str | None) -> RunKey:
        trouble: RelayError | None = None
        for key in keys:
            try:
                await self.fetch(key, thread_id)
                return key
            except NotFound:
                continue
            except InvalidRequest:
                continue  # an id this system cannot even read is none of its runs
            except RelayError as error:
                trouble = error
        raise trouble or self._unknown(keys, thread_id)

    def _unknown(self, keys: Sequence[RunKey], thread_id: str | None) -> NotFound:
        threaded = [key.upstream for key in keys if isinstance(self.upstreams[key.upstream], OwnUpstream)]
        if threaded and thread_id is None:
            where = ", ".join(threaded)
            return NotFound(f"no upstream knows this run; a run of {where} is found in its thread: add thread_id=")
        return NotFound("no upstream knows this run")

    def _remember(self, at: tuple[str, str], key: RunKey | None) -> None:
        self._known[at] = (key, time.monotonic() + (_UNKNOWN_S if key is None else _KNOWN_S))
        self._known.move_to_end(at)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)

    # --- runs in canonical form -------------------------------------------------------------------------------------
    async def fetch(self, key: RunKey, thread_id: str | None = None) -> dict[str, Any]:
        """The run as its upstream describes it, in native names."""
        upstream = self.upstreams[key.upstream]
        if isinstance(upstream, OwnUpstream):
            return await self._fetch_in_thread(upstream, key, thread_id)
        return self._named(upstream, await upstream.read(upstream.provider.run, upstream.provider.get_run(key.run_id)))

    async def _fetch_in_thread(self, upstream: OwnUpstream, key: RunKey, thread_id: str | None) -> dict[str, Any]:
        thread_id = thread_id or await self.thread_of(key)
        run, _ = await upstream.get_run(thread_id, key.run_id)
        await self.note_thread(key, thread_id)
        return self._named(upstream, run)

    async def thread_of(self, key: RunKey) -> str:
        """The thread a run was made or looked up in. Raises NotFound."""
        upstream = self.upstreams[key.upstream]
        assert isinstance(upstream, OwnUpstream)
        found = upstream.thread_of(key.run_id) or await self._log.thread_of(key)
        if found is None:
            raise self._unknown([key], None)
        return found

    async def note_thread(self, key: RunKey, thread_id: str) -> None:
        """Remember where a run is, for every process; what this one has noted already is noted."""
        upstream = self.upstreams[key.upstream]
        if isinstance(upstream, OwnUpstream) and upstream.thread_of(key.run_id) != thread_id:
            await self._log.note_thread(key, thread_id)
            upstream.note_thread(key.run_id, thread_id)

    def _named(self, upstream: AnyUpstream, run: dict[str, Any]) -> dict[str, Any]:
        return {**run, "upstream": upstream.name, "provider": upstream.provider.name}

    async def complete(self, upstream: AnyUpstream, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Native runs with what only our log knows: `last_seq`, `ended`, and a status derived from the events."""
        if not runs:
            return []
        states = await self._log.states([RunKey(upstream.name, str(run["run_id"])) for run in runs])
        current = isinstance(upstream, OwnUpstream) and upstream.provider.tells_waiting
        return [
            _completed(self._named(upstream, run), state, current=current)
            for run, state in zip(runs, states, strict=True)
        ]

    async def run(self, key: RunKey) -> dict[str, Any]:
        return (await self.complete(self.upstreams[key.upstream], [await self.fetch(key)]))[0]


def _place(run_id: str, hint: str | None, thread_id: str | None) -> tuple[str, str]:
    """Where is noted what is known of a run that is asked for like this."""
    return hint or "", f"{thread_id}/{run_id}" if thread_id else run_id


def _completed(run: dict[str, Any], state: LogState | None, *, current: bool) -> dict[str, Any]:
    """`current`: where the run stands its row knows first, and our log after it."""
    status = str(run["status"])
    if state is not None and state.last_seq and not current and status not in TERMINAL and status != "cancelling":
        # The row lags behind its events, and knows no waiting_for_input; once it is terminal it is right.
        status = state.status
    ended = state.sealed if state is not None and state.last_seq else status in TERMINAL
    return {**run, "status": status, "last_seq": state.last_seq if state is not None else 0, "ended": ended}
