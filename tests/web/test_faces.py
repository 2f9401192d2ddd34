"""The faces as a whole: where they are mounted, how each says no, what is passed on and what never is, and shared bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from relay.providers import PROVIDERS
from relay.providers.arkloop.provider import Arkloop
from relay.providers.openai.face_stream import RunFold
from relay.web.admit import hash_of
from relay.web.faces import proxy
from relay.web.options import KeyOptions
from tests.support.relay import RunningRelay, running
from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.timeout(60)
STARTED = ("run.started", {})
DONE = ("run.completed", {})


async def get(relay: RunningRelay, path: str, **options: Any) -> tuple[int, Any]:
    async with relay.session.get(relay.url + path, **options) as response:
        return response.status, await response.json(content_type=None)


# --- mounts ----------------------------------------------------------------------------------------------------------
ENVELOPE = {
    "native": {"code", "message", "trace_id"},
    "arkloop": {"code", "message", "trace_id"},
    "seekrflow": {"detail"},
    "openai": {"error"},
}
RUN = {
    "native": "/v1/runs/{r}",
    "arkloop": "/v1/runs/{r}",
    "seekrflow": "/v1/threads/t1/runs/{r}",
    "openai": "/threads/t1/runs/{r}",
}
OWN_FIELD = {"native": "last_seq", "arkloop": "account_id", "seekrflow": "is_active", "openai": "assistant_id"}


@pytest.mark.parametrize("root", ENVELOPE)
async def test_every_face_is_at_its_name_and_one_at_the_root(
    upstream: ScriptedUpstream, redis_url: str, root: str
) -> None:
    run_id = upstream.add_run([STARTED, DONE], thread_id="t1")
    async with running(upstream.url, redis_url, faces={"root": root}) as relay:
        for face, path in [(face, f"/{face}{path}") for face, path in RUN.items()] + [(root, RUN[root])]:
            status, run = await get(relay, path.format(r=run_id))
            assert (status, OWN_FIELD[face] in run) == (200, True), path
            status, refusal = await get(relay, path.format(r="unknown"))
            assert (status, refusal.keys() & ENVELOPE[face]) == (404, ENVELOPE[face]), path
        async with relay.session.get(f"{relay.url}/ui") as response:
            assert response.status == 200


@pytest.mark.parametrize("face", ["arkloop", "seekrflow", "openai"])
async def test_the_door_refuses_in_the_faces_words(upstream: ScriptedUpstream, redis_url: str, face: str) -> None:
    key = KeyOptions("k", hash_of("secret"))
    async with running(upstream.url, redis_url, auth={"mode": "api_keys", "keys": (key,)}) as relay:
        path = f"/{face}{RUN[face].format(r='r')}"
        for headers, wanted in (
            ({}, 401), ({"Authorization": "Bearer no"}, 401), ({"Host": "evil.example"}, 403)
        ):  # fmt: skip
            async with relay.session.get(relay.url + path, headers=headers) as response:
                body = await response.json()
                assert (response.status, body.keys() & ENVELOPE[face]) == (wanted, ENVELOPE[face])
                assert response.headers["X-Trace-Id"]
                assert (response.headers.get("WWW-Authenticate") == "Bearer") == (wanted == 401)
        headers = {"Authorization": "Bearer secret", "Content-Type": "text/plain"}
        target = {"arkloop": "/v1/threads/t/runs", "seekrflow": "/v1/threads/t/runs", "openai": "/threads/t/runs"}[face]
        async with relay.session.post(f"{relay.url}/{face}{target}", headers=headers, data="{}") as response:
            assert (response.status, (await response.json()).keys() & ENVELOPE[face]) == (415, ENVELOPE[face])


async def test_native_runs_are_not_served_under_a_path_of_no_face(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with running(upstream.url, redis_url, faces={"root": "openai"}) as relay:
        status, body = await get(relay, "/native/v1/nothing")
        assert (status, body["code"]) == (404, "http.not_found")
        status, body = await get(relay, "/nothing")
        assert (status, body["error"]["code"]) == (501, "upstream.unsupported")


async def test_an_unknown_option_is_refused_by_name_and_a_default_is_not(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    async with running(upstream.url, redis_url) as relay:
        for face, path, body, wanted in (
            ("openai", "/threads/t/runs", {"assistant_id": "a", "metadata": {}, "tools": None}, 200),
            ("openai", "/threads/t/runs", {"assistant_id": "a", "temperature": 0.1}, 501),
            ("openai", "/threads/t/runs", {}, 400),
            ("openai", "/threads/t/runs", {"assistant_id": "a", "stream": "yes"}, 400),
            ("seekrflow", "/v1/threads/t/runs", {"agent_id": "default_agent", "group": "default_group"}, 200),
            ("seekrflow", "/v1/threads/t/runs", {"model_settings": {"temperature": 0.1}}, 501),
            ("seekrflow", "/v1/threads/t/runs", {"metadata": {"a": "b"}}, 501),
            ("arkloop", "/v1/threads/t/runs", {"work_dir": "/x"}, 201),
        ):
            async with relay.session.post(f"{relay.url}/{face}{path}", json=body) as response:
                assert response.status == wanted, (face, body, await response.text())
    assert [body for _, body in upstream.created] == [{"persona_id": "a"}, {}, {"work_dir": "/x"}]


# --- what is passed on -----------------------------------------------------------------------------------------------
class Vendor:
    """An upstream's other API: says back what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.raw_path, dict(request.headers), await request.read()))
        if request.path.endswith("/moved"):
            return web.Response(status=302, headers={"Location": "http://elsewhere.example/"})
        if request.path.endswith("/slow"):
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for piece in (b"data: 1\n\n", b"data: 2\n\n"):
                await response.write(piece)
                await asyncio.sleep(0.2)
            if request.query.get("cut"):
                assert request.transport is not None
                request.transport.abort()
            return response
        if not request.headers.get("Authorization"):
            return web.json_response({"error": "who?"}, status=401, headers={"Set-Cookie": "a=b"})
        return web.json_response({"ok": True}, headers={"X-Own": "1", "Set-Cookie": "a=b", "Connection": "close"})


@asynccontextmanager
async def vendor() -> AsyncIterator[Vendor]:
    found = Vendor()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", found.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/base"
    try:
        yield found
    finally:
        await runner.cleanup()


async def test_other_paths_reach_an_upstream_of_that_shape_with_the_viewers_credentials(redis_url: str) -> None:
    async with vendor() as found, running(found.url, redis_url) as relay:
        url = f"{relay.url}/arkloop/v1/threads/t%20x?limit=3&q=%2F"
        headers = {
            "Authorization": "Bearer viewer", "Cookie": "c=d", "X-Relay-Upstream": "main", "X-Vendor": "v",
            "Connection": "keep-alive, X-Hop", "X-Hop": "h", "Content-Type": "application/octet-stream",
        }  # fmt: skip
        async with relay.session.patch(aiohttp.client.URL(url, encoded=True), headers=headers, data=b"\0raw") as answer:
            assert (answer.status, await answer.json()) == (200, {"ok": True})
            assert answer.headers["X-Own"] == "1"
            assert answer.headers["X-Trace-Id"]
            assert "Set-Cookie" not in answer.headers
        [(method, path, sent, body)] = found.asked
        assert (method, path, body) == ("PATCH", "/base/v1/threads/t%20x?limit=3&q=%2F", b"\0raw")
        assert (sent["Authorization"], sent["X-Vendor"]) == ("Bearer viewer", "v")
        assert not sent.keys() & {"Cookie", "X-Hop", "X-Relay-Upstream"}
        assert "upstream-secret" not in str(found.asked)
        # Without credentials of its own a request has none: ours are never lent.
        status, _ = await get(relay, "/arkloop/v1/threads/t")
        assert status == 401
        assert "upstream-secret" not in str(found.asked)


async def test_a_key_of_ours_is_never_passed_on(redis_url: str) -> None:
    auth = {"mode": "api_keys", "keys": (KeyOptions("k", hash_of("our-key")),)}
    async with vendor() as found, running(found.url, redis_url, auth=auth) as relay:
        ours = {"Authorization": "Bearer our-key"}
        assert (await get(relay, "/arkloop/v1/me"))[0] == 401
        assert found.asked == []
        assert (await get(relay, "/arkloop/v1/me", headers=ours))[0] == 401
        theirs = {**ours, "X-Upstream-Authorization": "Bearer theirs"}
        assert (await get(relay, "/arkloop/v1/me", headers=theirs))[0] == 200
        assert found.asked[-1][2]["Authorization"] == "Bearer theirs"
        assert "our-key" not in str(found.asked)
        assert "X-Upstream-Authorization" not in found.asked[-1][2]


async def test_redirects_are_shown_and_not_followed_and_streams_flow(redis_url: str) -> None:
    async with vendor() as found, running(found.url, redis_url) as relay:
        async with relay.session.get(f"{relay.url}/arkloop/v1/moved", allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (302, "http://elsewhere.example/")
        async with relay.session.get(f"{relay.url}/arkloop/v1/slow") as answer:
            assert await answer.content.readuntil(b"\n\n") == b"data: 1\n\n"  # before the rest is there
            assert await answer.content.read() == b"data: 2\n\n"
        async with relay.session.get(f"{relay.url}/arkloop/v1/slow?cut=1") as answer:
            with pytest.raises(aiohttp.ClientPayloadError):  # cut short is not complete
                await answer.read()


@pytest.mark.parametrize("path", ["/v1/..%2f..%2fadmin", "/v1/%2e%2e/x", "/v1//x", "/v1/x\\y", "/v1/a%5cb", "/v1/x%00"])
async def test_a_path_that_may_mean_another_one_is_refused(redis_url: str, path: str) -> None:
    async with vendor() as found, running(found.url, redis_url) as relay:
        url = aiohttp.client.URL(f"{relay.url}/arkloop{path}", encoded=True)
        async with relay.session.get(url) as answer:
            assert answer.status == 404
        assert found.asked == []


async def test_a_body_passed_on_is_bounded(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "BODY_BYTES", 1000)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 100

    async with vendor() as found, running(found.url, redis_url) as relay:
        for body in (b"x" * 1001, endless()):
            async with relay.session.post(f"{relay.url}/arkloop/v1/files", data=body) as answer:
                assert answer.status == 413
    assert all(len(body) <= 1000 for *_, body in found.asked)


async def test_an_upstream_of_another_shape_is_asked_for_nothing_but_runs(redis_url: str) -> None:
    async with vendor() as found, running(found.url, redis_url) as relay:
        for path, where in (("/openai/assistants", ("error", "code")), ("/seekrflow/v1/threads/", ("detail",))):
            status, body = await get(relay, path)
            for step in where:
                body = body[step]
            assert (status, "upstream" in body) == (501, True)
        status, body = await get(relay, "/openai/threads/t/messages")
        assert (status, body["error"]["code"]) == (501, "upstream.unsupported")
    assert found.asked == []


async def test_messages_of_an_upstream_of_the_same_shape_are_its_own(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Assistants(Arkloop):
        name = "openai"

    monkeypatch.setitem(PROVIDERS, "arkloop", Assistants())
    async with vendor() as found, running(found.url, redis_url) as relay:
        headers = {"Authorization": "Bearer viewer"}
        assert (await get(relay, "/openai/threads/t/messages?limit=2", headers=headers))[0] == 200
        assert found.asked[-1][1] == "/base/threads/t/messages?limit=2"


# --- shared bytes ----------------------------------------------------------------------------------------------------
async def test_readers_at_one_place_share_the_bytes_and_the_state(upstream: ScriptedUpstream, redis_url: str) -> None:
    """A hundred readers of a live run: each event is told about once, not a hundred times."""
    told = 0
    tell = RunFold.tell

    def counting(self: RunFold, state: Any, event: Any) -> Any:
        nonlocal told
        told += 1
        return tell(self, state, event)

    run_id = upstream.add_run([STARTED], thread_id="t1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFold, "tell", counting)
        async with running(upstream.url, redis_url) as relay:
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as session:

                async def read() -> bytes:
                    async with session.get(f"{relay.url}/openai/threads/t1/runs/{run_id}/stream") as response:
                        return await response.read()

                readers = [asyncio.create_task(read()) for _ in range(100)]
                await asyncio.sleep(2)
                for number in range(50):
                    upstream.append(run_id, "message.delta", {"content_delta": f"{number} ", "role": "assistant"})
                    await asyncio.sleep(0.01)
                upstream.finish(run_id)
                bodies = await asyncio.gather(*readers)
    frames = [[line for line in body.split(b"\n") if line.startswith(b"data: ")] for body in bodies]
    assert all(one == frames[0] for one in frames)
    said = [json.loads(line[6:]) for line in frames[0][:-1]]
    text = "".join(one["delta"]["content"][0]["text"]["value"] for one in said if "delta" in one)
    assert text == "".join(f"{number} " for number in range(50))
    assert told < 300, told
