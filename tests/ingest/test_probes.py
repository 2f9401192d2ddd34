"""What no document says of a system is found out by meeting it, once, and remembered for all its runs."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any, cast

import aiohttp
import pytest

from relay.core.ids import RunKey
from relay.ingest.options import IngestOptions, UpstreamOptions
from relay.ingest.own_pump import OwnPump
from relay.ingest.own_upstream import OwnUpstream
from relay.providers import OWN_SEQ
from tests.support.sim_threads import SimRun
from tests.support.sim_world import MemoryLog
from tests.support.thread_server import Fault, ThreadServer, hello

OPTIONS = IngestOptions(idle_check_s=0.05, backoff_base_s=0.001, backoff_cap_s=0.01, lease_s=0.05)


class Meeting:
    """A SeekrFlow of which nothing is known yet, and runs that are pumped one after the other."""

    def __init__(self, server: ThreadServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        options = UpstreamOptions("sim", "seekrflow", server.url, poll_s=0.005)
        self.upstream = OwnUpstream(options, OWN_SEQ["seekrflow"], session, OPTIONS)

    async def pump(self, run: SimRun, *cuts: Fault) -> list[str]:
        """The types of what came to be in the log."""
        self.server.runs = {run.run_id: run}
        self.server.faults["attach"] = list(cuts)
        log = MemoryLog(Random(0), 0.0)
        pump = OwnPump(RunKey("sim", run.run_id), self.upstream, cast(Any, log), cast(Any, log), OPTIONS, 2**20)
        async with asyncio.timeout(60):
            await pump.run()
        assert log.rows[-1].type == "run.completed"
        return [event.type for event in log.rows]


@pytest.mark.parametrize("shape", ["vercel", "legacy"])
async def test_whether_attach_replays_is_known_after_the_first_cut(shape: str) -> None:
    async with ThreadServer() as server, aiohttp.ClientSession() as session:
        meeting = Meeting(server, session)
        assert meeting.upstream.attach_joins == "unknown"
        await meeting.pump(hello(shape=shape), Fault(cut_after=6))
        assert meeting.upstream.attach_joins == "replay"
        kinds = await meeting.pump(hello(shape=shape), Fault(cut_after=6), Fault(cut_after=9))
        assert (meeting.upstream.attach_joins, kinds.count("tool.call")) == ("replay", 1)


@pytest.mark.parametrize("shape", ["vercel", "legacy"])
async def test_whether_attach_joins_live_is_known_after_the_first_cut(shape: str) -> None:
    """And then no run is attached to again at its end: there would be nothing to replay."""
    async with ThreadServer() as server, aiohttp.ClientSession() as session:
        meeting = Meeting(server, session)
        first = hello(shape=shape, attach_replays=False)
        first.at = 2
        await meeting.pump(first, Fault(cut_after=2))
        assert meeting.upstream.attach_joins == "live"
        before = server.count("attach")
        over = hello(shape=shape, attach_replays=False)
        over.at, over.ended = len(over.script.steps), True
        kinds = await meeting.pump(over)
        assert server.count("attach") == before
        assert "message.reset" not in kinds


async def test_a_system_known_to_join_live_is_not_taken_for_replaying_by_a_header() -> None:
    """Legacy streams say `node_header` also in the middle: its text would be laid over what is there."""
    async with ThreadServer() as server, aiohttp.ClientSession() as session:
        meeting = Meeting(server, session)
        meeting.upstream.attach_joins = "live"
        run = hello(shape="legacy", attach_replays=False)
        run.at = 2
        tell = run._tell

        def with_header(step: Any, tag: int, opened: set[int]) -> Any:
            yield "", {"type": "node_header", "node_type": "ModelRequestNode", "description": ""}
            yield from tell(step, tag, opened)

        run._tell = with_header  # type: ignore[method-assign]
        kinds = await meeting.pump(run)
        assert "message.reset" not in kinds
        assert meeting.upstream.attach_joins == "live"


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_that_there_is_no_attach_is_known_after_two_refusals(status: int) -> None:
    async with ThreadServer() as server, aiohttp.ClientSession() as session:
        meeting = Meeting(server, session)
        server.always["attach"] = Fault(status=status, body="{}")
        for _ in range(3):
            await meeting.pump(hello())
        assert server.count("attach") == 2
        assert not meeting.upstream.has("attach")
