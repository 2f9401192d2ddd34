"""The scripted upstream: the demo's Arkloop server with faults at chosen points, and an oracle of what is true.

For tests in one process: `async with ScriptedUpstream() as up:`. In a process of its own:
`python -m tests.support.upstream`, driven by `UpstreamClient` (`upstream_client.py`), which has the same method names.
What happens in the runs is in `upstream_runs.py`; what may go wrong, in `upstream_faults.py`; how a stream goes wrong, in
`upstream_stream.py`; what was asked and counted, in `upstream_traffic.py`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterable
from contextvars import ContextVar

from aiohttp import web

from relay.demo import http, wire
from relay.demo.ledger import Run
from tests.support import upstream_control
from tests.support import upstream_faults as faults
from tests.support.upstream_faults import HEALTHY, Fault
from tests.support.upstream_plan import Plan, target_of
from tests.support.upstream_runs import ScriptedRuns
from tests.support.upstream_stream import Stream, reset
from tests.support.upstream_synth import Track, synth
from tests.support.upstream_traffic import Asked, Traffic

_CODES = {
    401: "auth.invalid_token",
    403: "policy.denied",
    404: "runs.not_found",
    409: "runs.not_active",
    422: "validation.error",
    429: "ratelimit.exceeded",
    503: "overload.busy",
}
# Of the request this task is answering.
_FATE: ContextVar[Fault] = ContextVar("fate", default=HEALTHY)
_QUEUED_FOR: ContextVar[list[str | None]] = ContextVar("queued_for")


class ScriptedUpstream(ScriptedRuns):
    """An upstream whose every word and every failure the test decides.

    Run ids are free text here unless `uuid_ids`. Without `token` and `tokens` everybody may come in. With `control` the
    methods answer under `/_control/` too (`upstream_control.py`).
    """

    def __init__(
        self, *, token: str | None = None, heartbeat_s: float = 15.0, uuid_ids: bool = False, control: bool = False
    ) -> None:
        super().__init__(token=token, heartbeat_s=heartbeat_s, uuid_ids=uuid_ids)
        self.tokens: dict[str, set[str] | None] = {}
        """Who may come in, each with the run ids it owns (None: all). A run it does not own: 403 policy.denied."""
        self.traffic = Traffic()
        self._plan = Plan()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reserved: socket.socket | None = None
        self._control = control

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        # A bound socket that never listens keeps the port ours while `refuse` has nobody listening on it.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserved.bind((host, port))
        await super().start(host, self._reserved.getsockname()[1])

    async def _listen(self, host: str, port: int) -> None:
        assert self._runner is not None
        await web.TCPSite(self._runner, host, port, reuse_address=True, reuse_port=True).start()

    async def stop(self) -> None:
        for task in (tasks := list(self._tasks)):
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await super().stop()
        if self._reserved is not None:
            self._reserved.close()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def refuse(self, *, cut: bool = True) -> None:
        """Stop listening, so that connections are refused; `cut` also resets every open connection."""
        assert self._runner is not None
        for site in list(self._runner.sites):
            await site.stop()
        for connection in self._connections() if cut else ():
            reset(connection)

    async def accept(self) -> None:
        """Listen again, on the same port."""
        await self._listen(*self._address)

    def outage(self, seconds: float, *, cut: bool = True, begin_s: float = 0.0) -> asyncio.Task[None]:
        """In the background: `refuse`, and `accept` so much later."""
        return self._own(self._outage(seconds, cut, begin_s), "outage")

    async def _outage(self, seconds: float, cut: bool, begin_s: float) -> None:
        await asyncio.sleep(begin_s)
        await self.refuse(cut=cut)
        await asyncio.sleep(seconds)
        await self.accept()

    def _own(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._settle)
        return task

    def _settle(self, task: asyncio.Task[None]) -> None:
        """Forget a task that ended well; `stop` raises what broke the others."""
        if task.cancelled() or task.exception() is None:
            self._tasks.discard(task)

    def _connections(self) -> list[asyncio.Transport]:
        server = self._runner.server if self._runner else None
        assert isinstance(server, web.Server)
        return [connection.transport for connection in server.connections if connection.transport is not None]

    # ── faults ──────────────────────────────────────────────────────────────────────────────────────────────

    def fault(self, fault: Fault, run_id: str | None = None, *, times: int | None = 1) -> None:
        """The next `times` requests it hits get it, one each, in the order queued; None: every one, from now on.

        A run's own queue comes before the common one (`run_id` None). A lasting fault lies under the queued ones.
        """
        if times is None:
            self._plan.last(run_id, fault)
        else:
            self._plan.queue(run_id, [fault] * times)

    def chaos(self, seed: int, run_id: str | None = None, *, count: int = 20, stall_s: float = 0.5) -> list[Fault]:
        """Queue a seeded random schedule of resumable faults; gives it, for the record."""
        schedule = list(faults.chaos(seed, count, stall_s=stall_s))
        self._plan.queue(run_id, schedule)
        return schedule

    def heal(self, run_id: str | None = None) -> None:
        """Forget the faults planned for this run, or (None) all."""
        self._plan.heal(run_id)

    def pending(self, run_id: str | None = None) -> int:
        """Queued faults that no request has met yet."""
        return self._plan.pending(run_id)

    def cut_now(self, run_id: str | None = None) -> int:
        """Reset the open streams of a run, or of all; gives how many."""
        streams = self.traffic.streams(run_id)
        for stream in streams:
            reset(stream.transport)
        return len(streams)

    # ── the record ──────────────────────────────────────────────────────────────────────────────────────────

    @property
    def requests(self) -> list[Asked]:
        """Every request so far (those to `/_control/` excepted)."""
        return list(self.traffic.requests)

    @property
    def fired(self) -> list[tuple[str | None, Fault]]:
        """Queued faults that have happened, with their run: an answer given, a shape used, an ending reached."""
        return self.traffic.fired

    def following(self, run_id: str) -> int:
        """Open follow=true streams."""
        return self.traffic.counts(run_id)["following"]

    def max_following(self, run_id: str) -> int:
        return self.traffic.counts(run_id)["max_following"]

    def drains(self, run_id: str) -> int:
        """follow=false streams so far."""
        return self.traffic.counts(run_id)["drains"]

    def counters(self, run_id: str) -> dict[str, int]:
        """following, max_following, follows, draining, max_draining, drains."""
        return self.traffic.counts(run_id)

    async def until(self, fact: Callable[[], object], timeout_s: float = 60.0) -> None:
        """Wait for a fact about this upstream. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            while not fact():
                await asyncio.sleep(0.005)

    # ── load ────────────────────────────────────────────────────────────────────────────────────────────────

    def synth(
        self,
        run_ids: Iterable[str],
        *,
        rate: float | None,
        count: int,
        size: int = 200,
        burst: int = 1,
        end: bool = True,
        keep: int | None = None,
    ) -> asyncio.Task[None]:
        """Stamped events for `sseload` on these runs (made if need be); the task is over when all are written.

        `rate` is events/s per run (None: at once), `count` events per run, then run.completed if `end`; `keep` bounds the
        memory: no fewer than the last `keep` events of a run are held, and `truth` forgets the others too.
        """
        rows = [self.run(self.add_run(run_id=id) if self.ledger.get(id) is None else id) for id in run_ids]
        tracks = [Track(row, self.traffic.followers(row.run_id), size=size, count=count, keep=keep) for row in rows]
        return self._own(synth(tracks, rate=rate, burst=burst, end=end), "synth")

    # ── the wire, with faults ───────────────────────────────────────────────────────────────────────────────

    @property
    def open_to_all(self) -> bool:
        return super().open_to_all and not self.tokens

    def knows(self, token: str) -> bool:
        return token in self.tokens or super().knows(token)

    def permit(self, request: web.Request, run: Run, action: str) -> None:
        owned = self.tokens.get(request.headers.get("Authorization", "").partition(" ")[2].strip())
        if owned is not None and run.run_id not in owned:
            raise wire.Refusal(403, "policy.denied", "access denied", details={"action": f"runs.{action}"})

    async def route(self, request: web.Request) -> web.StreamResponse:
        if self._control and request.path.startswith("/_control/"):
            return await upstream_control.answer(self, request)
        self.traffic.ask(request, (await http.body(request)).decode(errors="replace"))
        target, run_id = target_of(request.method, request.path)
        follow = request.query.get("follow", "") not in ("false", "0") if target == "events" else None
        fate, queued = self._plan.draw(target, run_id, follow=follow)
        _FATE.set(fate)
        _QUEUED_FOR.set([run_id] if queued else [])
        if target == "events" and fate.status is None and fate.body is None:
            return await super().route(request)
        return await self._spoiled(request, fate)

    async def _spoiled(self, request: web.Request, fate: Fault) -> web.StreamResponse:
        """An answer that is no stream, as its fate will have it."""
        await asyncio.sleep(fate.delay_s)
        self._fired()
        if fate.body is not None:
            kind = {"Content-Type": fate.content_type or "text/plain"}
            return web.Response(status=fate.status or 200, body=fate.body.encode(), headers=kind)
        if fate.status == 502 and fate.code is None:
            return web.Response(status=502)  # the gateway's, with no body (section 1.1)
        if fate.status is not None:
            retry = {} if fate.retry_after is None else {"Retry-After": str(fate.retry_after)}
            code = fate.code or _CODES.get(fate.status, "internal.error")
            raise wire.Refusal(fate.status, code, "scripted refusal", headers=retry)
        if fate.end == "stall":
            await asyncio.sleep(1e9 if fate.stall_s is None else fate.stall_s)
        if fate.end is not None and request.transport is not None:
            reset(request.transport)
        return await super().route(request)

    async def stream(self, request: web.Request, run: Run, after_seq: int, *, follow: bool) -> web.StreamResponse:
        fate = _FATE.get()
        kind = {"Content-Type": fate.content_type} if fate.content_type else {}
        response = web.StreamResponse(headers={**http.STREAM_HEADERS, **kind})
        assert request.transport is not None
        stream = Stream(response, request.transport, run, fate)
        self._streams.add(request.transport)
        try:
            with self.traffic.open(stream, follow=follow):
                await asyncio.sleep(fate.delay_s)
                await response.prepare(request)
                if fate.end is None:
                    self._fired()
                await stream.serve(after_seq, follow=follow, heartbeat_s=self.heartbeat_s)
        except ConnectionError:
            pass  # the client left between two writes
        finally:
            self._streams.discard(stream.transport)
            if stream.over:
                self._fired()
        return response

    def _fired(self) -> None:
        for run_id in _QUEUED_FOR.get():
            self.traffic.fire(run_id, _FATE.get())


if __name__ == "__main__":
    from tests.support.upstream_process import main

    main(ScriptedUpstream)
