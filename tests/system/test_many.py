"""Many runs on one connection, over SSE and over WebSocket: exact, resumed at any place, and fair."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from relay.core.events import Event, encode
from relay.core.fold import Fold
from tests.support.many import ManyViewer, SocketViewer, SseViewer
from tests.support.relay import RunningRelay
from tests.support.upstream import ScriptedUpstream
from tests.system.rig import metrics, relay_here, seeds
from tests.system.watching import difference, native

pytestmark = pytest.mark.system

BRIEF = {"unwanted_s": 0.5, "lease_s": 0.9}
"""Runs here do not end: give them up soon after the last viewer left."""


def script(count: int, size: int = 20) -> list[tuple[str, dict[str, Any]]]:
    deltas = [("message.delta", {"content_delta": f"{i} " + "x" * size}) for i in range(count)]
    return [("run.started", {}), *deltas, ("run.completed", {})]


def many(relay: RunningRelay, query: str = "") -> str:
    return f"{relay.url}/v1/events{'?' + query if query else ''}"


def exact(viewer: ManyViewer, upstream: ScriptedUpstream, run_id: str, *, after: int = 0) -> None:
    """Exactly the upstream's events, once each, in order, unaltered; one end."""
    truth = [native(event) for event in upstream.truth(run_id) if event["seq"] > after]
    assert viewer.seqs(run_id) == [event["seq"] for event in truth], difference(
        viewer.seqs(run_id), [event["seq"] for event in truth]
    )
    assert viewer.events[run_id] == truth
    if 204 not in viewer.statuses:  # all there is, and nothing left but to say so
        assert viewer.ended[run_id] == {"run_id": run_id, "last_seq": truth[-1]["seq"], "status": "completed"}


@pytest.fixture
async def session() -> Any:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


# ── whole ───────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_hundred_runs_on_one_connection_are_exact(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        runs = [upstream.play(script(30), rate=60) for _ in range(100)]
        sse = SseViewer(many(relay, f"runs={','.join(runs)}"))
        socket = SocketViewer(many(relay), runs)
        async with asyncio.timeout(60):
            await asyncio.gather(sse.watch(session), socket.watch(session))
        for viewer in (sse, socket):
            for run_id in runs:
                exact(viewer, upstream, run_id)
            assert viewer.connections == 1
            assert viewer.repeated == 0
        assert sse.polite_ends == 1
        assert max(map(len, sse.cursors)) < 1_400
        again = SseViewer(sse.url)
        again.cursor = sse.cursor
        await again.watch(session)
        assert again.statuses == [204]


@pytest.mark.parametrize("seed", seeds(3))
async def test_readers_who_come_and_go_at_any_frame_see_all_of_it_once(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession, seed: int
) -> None:
    chance = random.Random(seed)

    def restless(dice: random.Random) -> Callable[[ManyViewer], bool]:
        return lambda _: dice.random() < 0.03

    async with relay_here(upstream.url, redis_url) as relay:
        runs = [upstream.play(script(chance.randint(0, 60)), rate=chance.choice([30, 200, None])) for _ in range(12)]
        sse = SseViewer(many(relay, f"runs={','.join(runs)}"))
        socket = SocketViewer(many(relay), runs)
        async with asyncio.timeout(60):
            await asyncio.gather(
                sse.watch(session, leave=restless(random.Random(seed))), socket.watch(session, leave=restless(chance))
            )
        for viewer in (sse, socket):
            assert viewer.connections > 2
            for run_id in runs:
                exact(viewer, upstream, run_id)
        assert socket.repeated == 0


async def test_a_stream_cut_at_any_byte_is_resumed_exactly(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    """What a client has when its connection breaks is any prefix of the bytes: the cursor of each leads to the rest."""
    async with relay_here(upstream.url, redis_url) as relay:
        runs = [upstream.add_run(script(5)) for _ in range(4)]
        url = many(relay, f"runs={','.join(runs)}")
        async with session.get(url) as response:
            whole = await response.read()
        for at in sorted({*range(0, len(whole), 97), len(whole) - 1, len(whole)}):
            viewer = SseViewer(url)
            *blocks, _ = whole[:at].split(b"\n\n")
            for block in blocks:
                viewer._block(block)
            async with asyncio.timeout(60):
                await viewer.watch(session)
            for run_id in runs:
                exact(viewer, upstream, run_id)


# ── what is asked ───────────────────────────────────────────────────────────────────────────────────────────────────
async def test_an_unknown_run_is_told_and_the_others_go_on(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.add_run(script(3))
        sse = SseViewer(many(relay, f"runs={run_id},nobody-knows-it"))
        await sse.watch(session)
        exact(sse, upstream, run_id)
        [error] = sse.said("error")
        assert (error["run_id"], error["code"], error["retrying"]) == ("nobody-knows-it", "runs.not_found", False)
        await sse.once(session)
        assert sse.statuses == [200, 204]  # nothing more will ever be said here
        socket = SocketViewer(many(relay), [run_id, "nobody-knows-it"])
        task = asyncio.create_task(socket.watch(session))
        await socket.until(lambda viewer: viewer.said("error") and run_id in viewer.ended)
        task.cancel()
        exact(socket, upstream, run_id)


async def test_a_run_may_be_asked_for_behind_a_seq_and_the_later_place_counts(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        one, two = upstream.add_run(script(10)), upstream.add_run(script(10))
        viewer = SseViewer(many(relay, f"runs={one}:5,{two}"))
        await viewer.watch(session)
        exact(viewer, upstream, one, after=5)
        exact(viewer, upstream, two)
        stale = SseViewer(many(relay, f"runs={one}:5,{two}&cursor={viewer.cursors[0]}"))
        stale.cursor = viewer.cursor
        await stale.watch(session)
        assert stale.statuses == [204]


async def test_filtered_events_move_the_cursor(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url, ingest=BRIEF) as relay:
        run_id = upstream.add_run([("run.started", {}), ("message.delta", {"content_delta": "a"})])
        sse = SseViewer(many(relay, f"runs={run_id}&types=run.*"))
        socket = SocketViewer(many(relay), [])
        tasks = [asyncio.create_task(sse.once(session)), asyncio.create_task(converse(socket, session, run_id))]
        for viewer in (sse, socket):
            await viewer.until(lambda viewer: viewer.said("position"))
            assert viewer.seqs(run_id) == [1]
            assert viewer.said("position") == [{"run_id": run_id, "seq": 2}]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        upstream.append(run_id, "message.delta", {"content_delta": "b"})
        back = SseViewer(many(relay, f"runs={run_id}"))
        back.cursor = sse.cursor
        task = asyncio.create_task(back.once(session))
        await back.until(lambda viewer: viewer.seqs(run_id))
        assert back.seqs(run_id) == [3]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def converse(socket: SocketViewer, session: aiohttp.ClientSession, run_id: str) -> None:
    async with session.ws_connect(socket.url) as connection:
        await connection.send_json({"op": "subscribe", "run_id": run_id, "types": ["run.*"]})
        async for message in connection:
            socket.hear(json.loads(message.data))


@pytest.mark.parametrize("wire", ["sse", "websocket"])
async def test_who_joins_late_gets_each_run_folded_and_then_the_tail(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession, wire: str
) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        runs = [upstream.add_run(script(30)[:-1]) for _ in range(3)]
        early = SocketViewer(many(relay), runs)
        watching = asyncio.create_task(early.watch(session))
        await early.until(lambda viewer: all(len(viewer.seqs(run_id)) == 31 for run_id in runs))
        late: ManyViewer
        if wire == "sse":
            late = SseViewer(many(relay, f"runs={','.join(runs)}&snapshot=1"))
            task = asyncio.create_task(late.watch(session))
        else:
            late = SocketViewer(many(relay), runs)
            late.ask = {"snapshot": True}
            task = asyncio.create_task(late.watch(session))
        await late.until(lambda viewer: len(viewer.said("snapshot")) == 3)
        for run_id in runs:
            upstream.append(run_id, "message.delta", {"content_delta": "and on"})
            upstream.finish(run_id)
        await asyncio.wait_for(asyncio.gather(task, watching), 60)
        for snapshot in late.said("snapshot"):
            run_id = snapshot["run_id"]
            assert snapshot["as_of_seq"] == 31
            assert late.seqs(run_id) == [32, 33]
            fold = Fold.restored(encode(snapshot))
            assert fold is not None
            assert told(fold, late.events[run_id]) == told(Fold(), early.events[run_id])


def told(fold: Fold, events: list[dict[str, Any]]) -> Any:
    found = fold.extend(Event(event["seq"], event["type"], encode(event)) for event in events)
    return json.loads(encode(found.data(None)))


# ── fair ────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_long_answer_does_not_hold_up_a_short_one(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    """Forty megabytes of one run are on their way when another one says a word: it comes long before their end."""
    async with relay_here(upstream.url, redis_url, ingest=BRIEF) as relay:
        long = upstream.add_run([("run.started", {})])
        for _ in range(400):
            upstream.append(long, "message.delta", {"content_delta": "x" * 100_000})
        short = upstream.add_run([("run.started", {})])
        for viewer in (SseViewer(many(relay, f"runs={long},{short}")), SocketViewer(many(relay), [long, short])):
            task = asyncio.create_task(viewer.once(session))
            await viewer.until(lambda viewer: len(viewer.seqs(long)) > 20)
            before = len(viewer.order)
            seq = upstream.append(short, "message.delta", {"content_delta": "me too"})
            await viewer.until(lambda viewer, seq=seq: seq in viewer.seqs(short))
            waited = viewer.order[before:].index(short)
            await viewer.until(lambda viewer: len(viewer.seqs(long)) == 401)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert viewer.order.index(short) < 380, "all of the long one came first"
            assert waited < 120, waited


async def test_what_rings_in_one_turn_is_one_write(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url, ingest=BRIEF) as relay:
        runs = [upstream.add_run([("run.started", {})]) for _ in range(20)]
        viewer = SseViewer(many(relay, f"runs={','.join(runs)}"))
        task = asyncio.create_task(viewer.once(session))
        await viewer.until(lambda viewer: len(viewer.order) == 20)
        [multiplex] = relay.app._pulse._streams
        strands = list(multiplex._strands.values())  # type: ignore[attr-defined]
        wrote = len(viewer.cursors)
        for strand in strands:  # as if a bell had rung for each of them in one turn of the loop
            topic = strand.sub.topic
            body = {"seq": topic.last_seq + 1, "run_id": topic.key.run_id}
            topic.window.publish([Event(body["seq"], "x", json.dumps(body).encode())], 1 << 20)
            strand.flush()
        await viewer.until(lambda viewer: len(viewer.order) == 40)
        assert len(viewer.cursors) == wrote + 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# ── the WebSocket's words ───────────────────────────────────────────────────────────────────────────────────────────
async def test_runs_may_be_left_and_taken_up_again(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url, ingest=BRIEF) as relay, asyncio.timeout(60):
        run_id = upstream.add_run([("run.started", {})])
        async with session.ws_connect(many(relay)) as socket:
            await socket.send_json({"op": "ping", "n": 7})
            assert await socket.receive_json() == {"op": "pong", "n": 7}
            await socket.send_json({"op": "subscribe", "run_id": run_id})
            assert (await socket.receive_json())["event"]["seq"] == 1
            await socket.send_json({"op": "subscribe", "run_id": run_id})
            again = await socket.receive_json()
            assert (again["op"], again["run_id"], again["code"]) == ("error", run_id, "runs.subscribed")
            await socket.send_json({"op": "unsubscribe", "run_id": run_id})
            assert await socket.receive_json() == {"op": "unsubscribed", "run_id": run_id}
            upstream.append(run_id, "message.delta", {"content_delta": "unheard"})
            await socket.send_json({"op": "unsubscribe", "run_id": run_id})
            assert (await socket.receive_json())["code"] == "validation.error"
            upstream.append(run_id, "message.delta", {"content_delta": "heard"})
            await socket.send_json({"op": "subscribe", "run_id": run_id, "after_seq": 2})
            assert (await socket.receive_json())["event"]["seq"] == 3


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ('{"op":"subscribe","run_id":"r","snapshot":"yes"}', "snapshot"),
        ("no json", "message"), ("[]", "message"), ("{}", "op"), ('{"op":"shout"}', "op"), ('{"op":["ping"]}', "op"),
        ('{"op":"subscribe"}', "run_id"), ('{"op":"subscribe","run_id":"../x"}', "run_id"),
        ('{"op":"subscribe","run_id":"r","after_seq":-1}', "after_seq"),
        ('{"op":"subscribe","run_id":"r","after_seq":true}', "after_seq"),
        ('{"op":"subscribe","run_id":"r","after_seq":1e3}', "after_seq"),
        ('{"op":"subscribe","run_id":"r","types":[1]}', "types"), ('{"op":"subscribe","run_id":"r","types":"{"}', "types"),
        ('{"op":"subscribe","run_id":"r","upstream":"A B"}', "upstream"),
        ('{"op":"subscribe","run_id":"r","thread_id":7}', "thread_id"), ('{"op":"auth"}', "token"),
        ('{"op":"unsubscribe","run_id":"r"}', "run_id"), ("\\ud800", "message"),
    ],
)  # fmt: skip
async def test_whatever_is_wrong_with_a_message_is_said_and_ends_nothing(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession, said: str, field: str
) -> None:
    async with relay_here(upstream.url, redis_url) as relay, asyncio.timeout(60):
        async with session.ws_connect(many(relay)) as socket:
            await socket.send_str(said)
            error = await socket.receive_json()
            assert (error["op"], error["code"], error["details"]["field"]) == ("error", "validation.error", field)
            await socket.send_json({"op": "ping"})
            assert await socket.receive_json() == {"op": "pong"}


async def test_no_more_runs_than_allowed(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    limits = {"runs_per_connection": 2}
    async with relay_here(upstream.url, redis_url, limits=limits, ingest=BRIEF) as relay, asyncio.timeout(60):
        runs = [upstream.add_run([("run.started", {})]) for _ in range(3)]
        async with session.get(many(relay, f"runs={','.join(runs)}")) as response:
            assert response.status == 422
            assert (await response.json())["details"]["field"] == "runs"
        async with session.ws_connect(many(relay)) as socket:
            for run_id in runs:
                await socket.send_json({"op": "subscribe", "run_id": run_id})
            said = [await socket.receive_json() for _ in range(3)]
            [error] = [message for message in said if message["op"] == "error"]
            assert (error["run_id"], error["code"]) == (runs[2], "limits.runs")
            await socket.send_json({"op": "unsubscribe", "run_id": runs[0]})
            assert (await socket.receive_json())["op"] == "unsubscribed"
            await socket.send_json({"op": "subscribe", "run_id": runs[2]})
            assert (await socket.receive_json())["run_id"] == runs[2]


async def test_a_compressed_stream_of_many_runs_is_the_same_stream(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url, delivery={"compress": True}) as relay:
        runs = [upstream.play(script(50), rate=200) for _ in range(3)]
        url = many(relay, f"runs={','.join(runs)}")
        viewer = SseViewer(url)  # aiohttp asks for gzip by itself
        async with asyncio.timeout(60):
            await viewer.watch(session)
        for run_id in runs:
            exact(viewer, upstream, run_id)
        async with session.get(url, headers={"Accept-Encoding": "gzip"}) as response:
            assert response.headers["Content-Encoding"] == "gzip"
            assert (await response.read()).count(b"relay.end") == 3


async def test_events_that_nobody_has_any_more_are_said_to_be_gone_of_their_run_alone(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        whole, headless = upstream.add_run(script(8)), upstream.add_run(script(8))
        upstream.prune(headless, 4)
        sse = SseViewer(many(relay, f"runs={whole},{headless}"))
        socket = SocketViewer(many(relay), [whole, headless])
        async with asyncio.timeout(60):
            await asyncio.gather(sse.watch(session), socket.watch(session))
        for viewer in (sse, socket):
            assert viewer.said("reset") == [{"run_id": headless, "from_seq": 1, "to_seq": 4, "reason": "trimmed"}]
            exact(viewer, upstream, whole)
            exact(viewer, upstream, headless, after=4)


async def test_silence_is_ended_by_heartbeats(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url, delivery={"heartbeat_s": 2.0}, ingest=BRIEF) as relay:
        run_id = upstream.add_run([("run.started", {})])
        async with asyncio.timeout(60), session.get(many(relay, f"runs={run_id}")) as response:
            pings = 0
            while pings < 3:
                pings += (await response.content.readline()) == b": ping\n"
        async with asyncio.timeout(60), session.ws_connect(many(relay), autoping=False) as socket:
            while (message := await socket.receive()).type is not aiohttp.WSMsgType.PING:
                pass
            assert message.data == b""


async def test_a_client_that_asks_and_does_not_read_is_not_listened_to(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    """Its answers would only fill our memory."""
    async with relay_here(upstream.url, redis_url) as relay:
        async with session.ws_connect(many(relay), max_msg_size=0) as socket:
            message = json.dumps({"op": "ping", "words": "x" * 10_000})
            socket._response.connection.transport.pause_reading()  # type: ignore[union-attr]
            flood = asyncio.create_task(send_for_ever(socket, message))
            [multiplex] = relay.app._pulse._streams
            async with asyncio.timeout(60):
                while not multiplex._connection.full:  # type: ignore[attr-defined]
                    await asyncio.sleep(0.01)
                for _ in range(50):
                    await asyncio.sleep(0.01)
                    assert multiplex._connection.backlog < 200_000  # type: ignore[attr-defined]
            flood.cancel()
            await asyncio.gather(flood, return_exceptions=True)
            socket._response.connection.transport.abort()  # type: ignore[union-attr]


async def send_for_ever(socket: aiohttp.ClientWebSocketResponse, message: str) -> None:
    while True:
        await socket.send_str(message)


# ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_at_the_end_of_the_relay_everybody_is_told_goodbye(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    run_id = upstream.add_run([("run.started", {})])
    sse, socket = SseViewer(""), SocketViewer("", [run_id])
    async with relay_here(upstream.url, redis_url, ingest=BRIEF) as relay:
        sse.url, socket.url = many(relay, f"runs={run_id}"), many(relay)
        tasks = [asyncio.create_task(viewer.once(session)) for viewer in (sse, socket)]
        for viewer in (sse, socket):
            await viewer.until(lambda viewer: viewer.seqs(run_id))
        relay.app._pulse.close()
        outcome = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    assert isinstance(outcome[0], aiohttp.ClientError)  # cut: mid-run no response ends properly
    assert sse.polite_ends == 0
    assert socket.closes == [1012]
    for viewer in (sse, socket):
        [said] = viewer.said("goodbye")
        assert said["code"] == "drain"
        assert said["reconnect"] is True


async def test_a_reader_that_never_reads_is_ended_as_slow_and_costs_a_bounded_backlog(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url, delivery={"slow_s": 1.0}, ingest=BRIEF) as relay:
        runs = [upstream.add_run([("run.started", {})]) for _ in range(10)]
        before = (await metrics(relay.session, relay.admin_url)).get('relay_goodbyes_total{code="slow"}', 0.0)
        _reader, writer = await asyncio.open_connection(*relay.url.removeprefix("http://").split(":"), limit=1024)
        writer.write(f"GET /v1/events?runs={','.join(runs)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        async with asyncio.timeout(60):
            while not relay.app._pulse.count:
                await asyncio.sleep(0.01)
            [multiplex] = relay.app._pulse._streams
            most = 0
            while relay.app._pulse.count:
                for run_id in runs:
                    upstream.append(run_id, "message.delta", {"content_delta": "x" * 50_000})
                most = max(most, multiplex._connection.backlog)  # type: ignore[attr-defined]
                await asyncio.sleep(0.02)
        writer.close()
        assert most < 65_536 + 65_536 + 262_144 + 60_000, "the high water, a slice, a page and an event"
        after = await metrics(relay.session, relay.admin_url)
        assert after['relay_goodbyes_total{code="slow"}'] == before + 1
