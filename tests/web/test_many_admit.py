"""Who may read which runs on a connection that reads many: exactly what a connection of its own would say of each."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from relay.web import conversation
from tests.support.relay import RunningRelay
from tests.support.upstream import ScriptedUpstream
from tests.web.raw import ADMIN_KEY, KEY, bearer, fetch, frames
from tests.web.test_admit import guarded, refused, token_for

SCRIPT = [("run.started", {}), ("run.completed", {})]
Said = dict[str, Any]


async def told(socket: aiohttp.ClientWebSocketResponse, message: Said, *ops: str) -> list[Said]:
    """The answers to a message, up to the last of these."""
    await socket.send_json(message)
    found: list[Said] = []
    async with asyncio.timeout(60):
        while not found or found[-1]["op"] not in ops:
            found.append(await socket.receive_json())
    return found


def talk(relay: RunningRelay, query: str = "", **headers: str) -> Any:
    return relay.session.ws_connect(f"{relay.url}/v1/events{query}", headers=headers)


async def test_over_sse_credentials_are_needed_and_a_viewer_token_sees_its_run_alone(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    async with guarded(upstream, redis_url) as relay:
        mine, other = upstream.add_run(SCRIPT), upstream.add_run(SCRIPT)
        target = f"/v1/events?runs={mine},{other}"
        refused(await fetch(relay.url, target), 401, "auth.missing_token")
        refused(await fetch(relay.url, target, bearer("rk_wrong")), 401, "auth.invalid_api_key")
        seen = frames((await fetch(relay.url, target, bearer(KEY))).body)
        assert sum(one.get("event") == "relay.end" for one in seen) == 2
        token = await token_for(relay, mine)
        answer = await fetch(relay.url, f"{target}&access_token={token}")
        assert other.encode() in answer.body
        [error] = [one["data"] for one in frames(answer.body) if one.get("event") == "relay.error"]
        assert f'"run_id":"{other}","code":"runs.not_found"' in error
        assert sum("event" not in one for one in frames(answer.body)) == 2
        refused(await fetch(relay.url, f"/v1/events?thread=t&access_token={token}"), 403, "auth.forbidden")


async def test_a_websocket_may_send_its_credentials_first(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with guarded(upstream, redis_url) as relay:
        run_id = upstream.add_run(SCRIPT)
        subscribe = {"op": "subscribe", "run_id": run_id}
        async with talk(relay) as socket:
            [error] = await told(socket, subscribe, "error")
            assert (error["code"], error["run_id"]) == ("auth.missing_token", run_id)
            [error] = await told(socket, {"op": "auth", "token": "rk_wrong"}, "error")
            assert error["code"] == "auth.invalid_api_key"
            [error] = await told(socket, {"op": "auth", "token": "a.b.c"}, "error")
            assert error["code"] == "auth.invalid_token"
            assert await told(socket, {"op": "auth", "token": KEY}, "authorized") == [
                {"op": "authorized", "name": "viewer"}
            ]
            assert [one["op"] for one in await told(socket, subscribe, "end")] == ["event", "event", "end"]
        async with talk(relay, **bearer(ADMIN_KEY)) as socket:
            assert [one["op"] for one in await told(socket, subscribe, "end")] == ["event", "event", "end"]
        with pytest.raises(aiohttp.WSServerHandshakeError) as error_at_the_door:
            async with talk(relay, **bearer("rk_wrong")):
                pass
        assert error_at_the_door.value.status == 401


async def test_a_viewer_token_in_a_message_reads_its_run_alone(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with guarded(upstream, redis_url) as relay:
        mine, other = upstream.add_run(SCRIPT), upstream.add_run(SCRIPT)
        token = await token_for(relay, mine)
        async with talk(relay) as socket:
            assert (await told(socket, {"op": "auth", "token": token}, "authorized"))[0]["op"] == "authorized"
            assert (await told(socket, {"op": "subscribe", "run_id": mine}, "end"))[-1]["op"] == "end"
            [error] = await told(socket, {"op": "subscribe", "run_id": other}, "error")
            assert error["code"] == "runs.not_found"
        async with talk(relay) as socket:  # a token for each run
            for run_id, its in ((mine, token), (other, await token_for(relay, other))):
                message = {"op": "subscribe", "run_id": run_id, "token": its}
                assert (await told(socket, message, "end"))[-1]["run_id"] == run_id
            [error] = await told(socket, {"op": "subscribe", "run_id": other, "token": token}, "error")
            assert error["code"] == "runs.not_found"


async def test_a_right_of_one_run_ends_with_its_token_and_the_others_go_on(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    async with guarded(upstream, redis_url, ingest={"unwanted_s": 0.5}) as relay:
        brief, lasting = (upstream.add_run(SCRIPT[:1]) for _ in range(2))
        async with talk(relay) as socket, asyncio.timeout(60):
            for run_id, seconds in ((lasting, 600), (brief, 3)):
                token = await token_for(relay, run_id, seconds)
                await told(socket, {"op": "subscribe", "run_id": run_id, "token": token}, "event")
            error = await socket.receive_json()
            assert (error["op"], error["run_id"], error["code"]) == ("error", brief, "auth.token_expired")
            for run_id in (brief, lasting):
                upstream.append(run_id, "message.delta", {"content_delta": "x"})
            assert (await socket.receive_json())["run_id"] == lasting


async def test_another_runs_token_does_not_prolong_the_right_to_this_one(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    brief, other = (upstream.add_run(SCRIPT[:1]) for _ in range(2))
    async with guarded(upstream, redis_url) as relay:
        token = await token_for(relay, brief, 3)
        async with talk(relay, f"?access_token={token}") as socket, asyncio.timeout(60):
            await told(socket, {"op": "subscribe", "run_id": brief}, "event")
            await told(socket, {"op": "auth", "token": await token_for(relay, other, 600)}, "authorized")
            error = await socket.receive_json()
            assert (error["op"], error["run_id"], error["code"]) == ("error", brief, "auth.token_expired")


async def test_who_reads_nothing_any_more_and_has_no_right_is_sent_away(
    upstream: ScriptedUpstream, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "CREDENTIALS_S", 3.0)
    run_id = upstream.add_run(SCRIPT[:1])
    async with guarded(upstream, redis_url) as relay:
        token = await token_for(relay, run_id, 3)
        async with talk(relay) as socket, asyncio.timeout(60):
            await told(socket, {"op": "subscribe", "run_id": run_id, "token": token}, "event")
            assert (await socket.receive_json())["code"] == "auth.token_expired"
            assert (await socket.receive_json())["code"] == "auth.missing_token"


async def test_a_connection_ends_with_its_token_unless_a_new_one_came(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    async with guarded(upstream, redis_url, ingest={"unwanted_s": 0.5}) as relay:
        run_id = upstream.add_run(SCRIPT[:1])
        token = await token_for(relay, run_id, 2)
        async with talk(relay, f"?access_token={token}") as socket, asyncio.timeout(60):
            await told(socket, {"op": "subscribe", "run_id": run_id}, "event")
            assert (await socket.receive_json())["code"] == "auth.expired"
            await socket.receive()
            assert socket.close_code == 4401
        token = await token_for(relay, run_id, 3)
        async with talk(relay, f"?access_token={token}") as socket, asyncio.timeout(60):
            await told(socket, {"op": "subscribe", "run_id": run_id}, "event")
            await told(socket, {"op": "auth", "token": await token_for(relay, run_id, 600)}, "authorized")
            await asyncio.sleep(4.5)  # longer than the first one lasted
            upstream.append(run_id, "message.delta", {"content_delta": "x"})
            assert (await socket.receive_json())["event"]["seq"] == 2


async def test_who_never_sends_credentials_is_closed(
    upstream: ScriptedUpstream, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "CREDENTIALS_S", 0.1)
    async with guarded(upstream, redis_url) as relay:
        async with talk(relay) as socket, asyncio.timeout(60):
            assert (await socket.receive_json())["code"] == "auth.missing_token"
            await socket.receive()
            assert socket.close_code == 4401


async def test_a_page_of_another_origin_may_not_open_one(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with guarded(upstream, redis_url) as relay:
        with pytest.raises(aiohttp.WSServerHandshakeError) as error:
            async with talk(relay, Origin="https://evil.example"):
                pass
        assert error.value.status == 403
