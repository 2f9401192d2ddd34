"""What all faces stand on: the run of a path, creating one, following one, and what a run waits for.

Everything here is in native words; each face puts them into its own.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final

from aiohttp import hdrs, web

from relay.core.errors import NotFound, RelayError, Unsupported, UpstreamUnavailable
from relay.core.events import FINAL_STATUS, MOVING_STATUS, TERMINAL, Event, decode, encode
from relay.core.faces import FaceWire, Fold
from relay.core.filters import Types
from relay.core.ids import RunKey, checked_id
from relay.delivery.http import EventStream
from relay.delivery.options import DeliveryOptions
from relay.delivery.pulse import Pulse
from relay.fanout.hub import Hub
from relay.fanout.subscription import Subscription
from relay.fanout.topic import Topic
from relay.ingest.own_upstream import OwnUpstream
from relay.ingest.upstream import Upstream
from relay.providers import native, wishes
from relay.providers.own import ThreadQuery
from relay.store.log import Log
from relay.web.directory import Directory
from relay.web.door import FIELDS, HOLD, PRINCIPAL, TRACE_ID
from relay.web.requests import coding_for, the_run, upstream_hint
from relay.web.resends import Attempt, Resends
from relay.web.runs import Pumping

_KNOWN_S: Final = 30.0
_KNOWN: Final = 2000
_TAIL: Final = 8192
_TAIL_BYTES: Final = 16 * 1_048_576
"""How far back a run's last question, or its end, is looked for, in events and in bytes."""
_FIRST_LOOK: Final = 8
"""So many events first: nearly always what is looked for is among them, and an event may be megabytes."""
_LOOK_BYTES: Final = 1_048_576
"""About so much is read at once, going by the events before."""
_CURRENT_S: Final = 5.0
"""How long we wait for the log to hold what the upstream has."""
_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Ground:
    directory: Directory
    hub: Hub
    log: Log
    wants: Pumping
    pulse: Pulse
    delivery: DeliveryOptions
    resends: Resends
    known: OrderedDict[RunKey, tuple[float, dict[str, Any]]] = field(default_factory=OrderedDict)
    """What never changes of runs, with the time it was learnt."""

    # --- which upstream ---------------------------------------------------------------------------------------------
    def upstream(self, request: web.Request, face: str) -> Upstream | OwnUpstream:
        """The one a request goes to that names no run: the named one, the only one, or the only one of this shape."""
        found = self.directory.candidates(upstream_hint(request))
        alike = [upstream for upstream in found if upstream.provider.name == face]
        if len(found) > 1 and len(alike) == 1:
            return alike[0]
        return self.directory.only(upstream_hint(request))

    # --- one run ----------------------------------------------------------------------------------------------------
    async def key(self, request: web.Request) -> RunKey:
        return await the_run(request, self.directory)

    async def run(self, request: web.Request) -> tuple[RunKey, dict[str, Any]]:
        """The run of the path as it is now, in native form; somebody asks for it, so from now on it is pumped."""
        return await self.now(request, await self.key(request))

    async def now(self, request: web.Request, key: RunKey) -> tuple[RunKey, dict[str, Any]]:
        run = await self.named(key, await self.directory.run(key))
        self._check_thread(request, run)
        if run["status"] not in TERMINAL:
            self.wants.want(key)
        return key, run

    async def facts(self, request: web.Request, key: RunKey) -> dict[str, Any]:
        """What never changes of a run, from memory if it is there; also while its upstream is away."""
        at, run = self.known.get(key, (0.0, None))
        if run is None or time.monotonic() - at > _KNOWN_S:
            try:
                run = await self.named(key, await self.directory.fetch(key))
            except NotFound:
                raise
            except RelayError:
                run = run or {"run_id": key.run_id, "thread_id": request.match_info.get("thread_id")}
            else:
                self.known[key] = (time.monotonic(), run)
                while len(self.known) > _KNOWN:
                    self.known.popitem(last=False)
        self._check_thread(request, run)
        return run

    async def named(self, key: RunKey, run: dict[str, Any]) -> dict[str, Any]:
        """The run with its agent and model, from its first event where its row does not say them."""
        if native.agent_of(run) and run.get("model"):
            return run
        head = (await self.log.read([(key, 0, 1)]))[0]
        said = native.read(head[0]).data if head and head[0].type == "run.started" else {}
        agent, model = native.agent_of(run) or native.agent_of(said), run.get("model") or said.get("model")
        return {**run, "agent_id": agent or None, "model": model}

    def _check_thread(self, request: web.Request, run: Mapping[str, Any]) -> None:
        thread_id = request.match_info.get("thread_id")
        if thread_id is not None and run.get("thread_id") not in (None, thread_id):
            raise NotFound("this run is of another thread")

    async def last(self, key: RunKey, wanted: Callable[[Event], bool]) -> native.Said | None:
        """The last event of a log that is wanted; None if it holds none, or none near its end."""
        count = size = 0
        most, before = _FIRST_LOOK, None
        while count < _TAIL and size < _TAIL_BYTES:
            events = await self.log.tail(key, most, before=before)
            for event in reversed(events):
                if wanted(event) and not (said := native.read(event)).nested:
                    return said
            if len(events) < most:
                break
            count += len(events)
            size += sum(len(event.json) for event in events)
            most, before = max(4, min(_PAGE, _LOOK_BYTES * count // size)), events[0].seq
        return None

    async def asked(self, key: RunKey, run: dict[str, Any]) -> native.Asked | None:
        """What a run waits for: by its row, where rows say it. Else by its events, which a row may lag behind."""
        upstream = self.directory.upstreams[key.upstream]
        if isinstance(upstream, OwnUpstream) and upstream.provider.tells_waiting:
            calls = upstream.provider.snapshot(run).calls if run["status"] == "waiting_for_input" else ()
            return native.Asked(tuple(native.Call(one.id, one.name, one.arguments) for one in calls)) if calls else None
        said = await self.last(key, lambda event: event.type in MOVING_STATUS or event.type in FINAL_STATUS)
        return native.asked(said) if said is not None and said.type == "run.waiting_for_input" else None

    async def everything(self, key: RunKey) -> AsyncIterator[Sequence[Event]]:
        """All events there are of a run. Raises rather than leave any out: a list made from them says that it is all."""
        async with self.hub.topic(key) as topic:
            there = await self.hub.primed(topic, _CURRENT_S) and await self.hub.reachable(topic, 0, _CURRENT_S)
            if not there:
                raise UpstreamUnavailable("the run's events cannot be read at the moment", retry_after_s=2.0)
            cursor = 0
            while cursor < topic.state.last_seq:
                behind = await self.hub.read(topic, cursor, _PAGE)
                if behind.where in ("gone", "missing"):
                    raise Unsupported("some of this run's events can no longer be had")
                if not behind.events:
                    return
                yield behind.events
                cursor = behind.events[-1].seq

    # --- creating ---------------------------------------------------------------------------------------------------
    async def create(
        self, request: web.Request, face: str, body: dict[str, Any], thread_id: str
    ) -> tuple[RunKey, dict[str, Any]]:
        """A new run, or that of the same request sent before: its name, and what the upstream said of it."""
        upstream = self.upstream(request, face)
        words = wishes.body_for(upstream.provider.name, face, body)

        async def create() -> dict[str, Any]:
            if isinstance(upstream, OwnUpstream):
                return await self.wants.create(upstream, thread_id, decode(words) if words else {})
            return await upstream.read(upstream.provider.created, upstream.provider.create_run(thread_id, words))

        async def busy_with() -> dict[str, Any] | None:
            newest = next(iter(await self.of_thread(upstream, thread_id)), None)
            return newest if newest is not None and newest["status"] not in TERMINAL else None

        async def active(run_id: str) -> bool:
            state = (await self.log.states([RunKey(upstream.name, run_id)]))[0]
            return state is None or state.status not in TERMINAL

        answer = await self.resends.do(
            RunKey(upstream.name, thread_id),
            _caller(request),
            encode([face, body]),
            _attempt(request),
            listening=lambda: request.transport is not None and not request.transport.is_closing(),
            create=create,
            active=active,
            busy_with=busy_with,
        )
        key = RunKey(upstream.name, str(answer["run_id"]))
        self.wants.want(key)
        return key, answer

    # --- acting -----------------------------------------------------------------------------------------------------
    async def cancel(self, key: RunKey, last_seen_seq: int) -> None:
        upstream = self.directory.upstreams[key.upstream]
        if isinstance(upstream, OwnUpstream):
            await upstream.cancel(await self.directory.thread_of(key), key.run_id)
        else:
            await upstream.ask(upstream.provider.cancel_run(key.run_id, last_seen_seq=last_seen_seq))

    async def answer(self, key: RunKey, outputs: Mapping[str, str]) -> None:
        """What a run waits for: an output for each of its calls, by id."""
        upstream = self.directory.upstreams[key.upstream]
        if isinstance(upstream, OwnUpstream):
            named = [{"tool_call_id": call_id, "output": output} for call_id, output in outputs.items()]
            await upstream.provide_input(await self.directory.thread_of(key), key.run_id, {"tool_outputs": named})
            return
        if len(outputs) != 1:
            raise Unsupported("the upstream behind this face takes one answer at a time")
        [content] = outputs.values()
        await upstream.ask(upstream.provider.provide_input(key.run_id, content))

    # --- lists ------------------------------------------------------------------------------------------------------
    async def of_thread(self, upstream: Upstream | OwnUpstream, thread_id: str) -> list[dict[str, Any]]:
        """A thread's runs in native form, newest first: as many as its upstream gives at once."""
        if isinstance(upstream, OwnUpstream):
            found = await upstream.thread_runs(thread_id, ThreadQuery(upstream.provider.list_limit))
            for run in found:
                upstream.note_thread(str(run["run_id"]), thread_id)
        else:
            ask = upstream.provider.list_thread_runs(thread_id, limit=upstream.provider.list_limit)
            found = await upstream.read(upstream.provider.runs, ask)
        return await self.directory.complete(upstream, [{**run, "thread_id": thread_id} for run in found])

    # --- following --------------------------------------------------------------------------------------------------
    async def tell(
        self, request: web.Request, key: RunKey, wire: FaceWire, fold: Fold, *, cursor: int = 0
    ) -> EventStream:
        """The run as a fold, from behind `cursor` to its end (or to where it waits)."""
        topic = await self.hub.open(key, request[HOLD])
        if topic.state.status == "waiting_for_input":  # is it still? a stream that rests must not rest on old news
            await self.hub.primed(topic, _CURRENT_S)
        return self._stream(request, self.hub.subscribe_fold(topic, cursor, self._framed(wire, request), fold))

    def pass_on(
        self,
        request: web.Request,
        topic: Topic,
        wire: FaceWire,
        *,
        cursor: int,
        types: Types | None,
        follow: bool,
        stay_s: float,
    ) -> EventStream:
        """The run event by event."""
        subscription = self.hub.subscribe(topic, cursor, self._framed(wire, request), types)
        return self._stream(request, subscription, follow=follow, stay_s=stay_s)

    def _stream(
        self, request: web.Request, subscription: Subscription, *, follow: bool = True, stay_s: float = 0.0
    ) -> EventStream:
        return EventStream(
            subscription,
            self.pulse,
            self.delivery,
            request[HOLD],
            request[TRACE_ID],
            request[FIELDS],
            follow=follow,
            expires_at=request[PRINCIPAL].expires_at,
            stay_s=stay_s,
            coding=coding_for(request, self.delivery),
        )

    def _framed(self, wire: FaceWire, request: web.Request) -> FaceWire:
        coded = coding_for(request, self.delivery) is not None
        return _chunked(wire) if request.version >= (1, 1) and not coded else wire


@cache
def _chunked(wire: FaceWire) -> FaceWire:
    return replace(wire, chunked=True)


def thread_of(request: web.Request) -> str:
    return checked_id("thread_id", request.match_info["thread_id"])


def _caller(request: web.Request) -> str:
    """Who sends a request again would send the same credentials."""
    shown = hashlib.sha256(request.headers.get(hdrs.AUTHORIZATION, "").encode("utf-8", "surrogateescape")).hexdigest()
    return f"{request[PRINCIPAL].name} {shown}"


def _attempt(request: web.Request) -> Attempt:
    count = request.headers.get("x-stainless-retry-count")
    if count is None:
        return "unknown"
    return "first" if count.strip() in ("", "0") else "again"
