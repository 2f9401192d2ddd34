"""The faces as a whole: where they are mounted, how each says no, what is passed on and what never is, and shared bytes."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from relay.providers import PROVIDERS
from relay.providers.arkloop.provider import Arkloop
from relay.providers.openai.face_stream import RunFold
from relay.web.admit import hash_of
from relay.web.faces import proxy
from relay.web.options import KeyOptions
from tests.support.arkloop_threads import vendor
from tests.support.relay import RunningRelay, running
from tests.support.upstream import ScriptedUpstream
from tests.system.rig import metrics

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
async def test_other_paths_reach_an_upstream_of_that_shape_with_the_viewers_credentials(redis_url: str) -> None:
    async with vendor() as found, running(found.url, redis_url) as relay:
        url = f"{relay.url}/arkloop/v1/talk/t%20x?limit=3&q=%2F"
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
        assert (method, path, body) == ("PATCH", "/base/v1/talk/t%20x?limit=3&q=%2F", b"\0raw")
        assert (sent["Authorization"], sent["X-Vendor"]) == ("Bearer viewer", "v")
        assert not sent.keys() & {"Cookie", "X-Hop", "X-Relay-Upstream"}
        assert "upstream-secret" not in str(found.asked)
        # Without credentials of its own a request has none: ours are never lent.
        status, _ = await get(relay, "/arkloop/v1/talk/t")
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


async def test_what_is_ours_in_a_request_stays_here_also_where_nobody_needs_a_key(redis_url: str) -> None:
    auth = {"mode": "none", "keys": (KeyOptions("ops", hash_of("our-key"), admin=True),)}
    async with vendor() as found, running(found.url, redis_url, auth=auth) as relay:
        assert (await get(relay, "/arkloop/v1/me", headers={"Authorization": "Bearer our-key"}))[0] == 401
        theirs = {"Authorization": "Bearer theirs"}
        asked = f"{relay.url}/arkloop/v1/me?a=1&access_token=x.y.z&upstream=main&b=%2F"
        async with relay.session.get(aiohttp.client.URL(asked, encoded=True), headers=theirs) as answer:
            assert answer.status == 200
        assert found.asked[-1][1] == "/base/v1/me?a=1&b=%2F"
        packed = {**theirs, "Content-Encoding": "gzip"}
        async with relay.session.post(
            f"{relay.url}/arkloop/v1/talk/t", data=gzip.compress(b"plain"), headers=packed
        ) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Security-Policy"].startswith("sandbox")
        assert found.asked[-1][3] == b"plain"
        assert "Content-Encoding" not in found.asked[-1][2]
        assert "our-key" not in str(found.asked)


async def test_nothing_is_said_before_the_door(redis_url: str) -> None:
    async with vendor() as found, running(found.url, redis_url) as relay:
        for expectation in ("100-continue", "<script>"):
            headers = {"Host": "evil.example", "Expect": expectation}
            async with relay.session.get(f"{relay.url}/v1/runs", headers=headers) as answer:
                assert (answer.status, (await answer.json())["code"]) == (403, "http.host_not_allowed")
                assert answer.headers["Server"] == "relay"


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


@pytest.mark.parametrize(
    "path",
    [
        "/v1/..%2f..%2fadmin",
        "/v1/%2e%2e/x",
        "/v1//x",
        "/v1/x\\y",
        "/v1/a%5cb",
        "/v1/x%00",
        "/v1/..;/x",
        "/v1/%252e%252e/x",
    ],
)
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
        for path, where in (
            ("/openai/assistants", ("error", "code")),
            ("/seekrflow/v1/threads/", ("detail",)),
            ("/openai/threads/t/runs/r/steps/s", ("error", "code")),
        ):
            status, body = await get(relay, path)
            for step in where:
                body = body[step]
            assert (status, "upstream" in body) == (501, True)
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
                async with asyncio.timeout(60):
                    while (await metrics(relay.session, relay.admin_url)).get("relay_viewers") != 100:
                        await asyncio.sleep(0.05)
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


# --- threads and messages of another shape ---------------------------------------------------------------------------
async def test_threads_and_messages_are_mapped(redis_url: str) -> None:
    viewer = {"Authorization": "Bearer viewer"}
    async with vendor() as found, running(found.url, redis_url) as relay:
        for face, base in (
            ("openai", "/openai/threads"),
            ("openai", "/openai/v1/threads"),
            ("seekrflow", "/seekrflow/v1/threads"),
        ):
            async with relay.session.post(f"{relay.url}{base}", headers=viewer, json={}) as response:
                assert response.status == 200
                thread = await response.json()
            status, shown = await get(relay, f"{base}/{thread['id']}", headers=viewer)
            assert (status, shown) == (200, thread)
            for text in ("one", "two"):
                url = f"{relay.url}{base}/{thread['id']}/messages"
                async with relay.session.post(url, headers=viewer, json={"role": "user", "content": text}) as response:
                    assert response.status == 200
            found.add(thread["id"], "assistant", "three", run_id="r9")
            for query, texts in (("", "three two one"), ("?order=asc&limit=2", "one two")):
                _, listed = await get(relay, f"{base}/{thread['id']}/messages{query}", headers=viewer)
                items = listed["data"] if face == "openai" else listed
                assert [_text(item) for item in items] == texts.split()
            status, message = await get(relay, f"{base}/{thread['id']}/messages/{items[0]['id']}", headers=viewer)
            assert (status, _text(message)) == (200, "one")
            for body, wanted in (
                ({"role": "assistant", "content": "x"}, 501),
                ({"role": "user", "content": " "}, 400 if face == "openai" else 422),
                ({"role": "user", "content": [{"type": "image_file", "image_file": {}}]}, 501),
            ):
                async with relay.session.post(url, headers=viewer, json=body) as response:
                    assert response.status == wanted
            async with relay.session.delete(f"{relay.url}{base}/{thread['id']}", headers=viewer) as response:
                assert (response.status, (await response.json())["deleted"]) == (200, True)
            assert (await get(relay, f"{base}/{thread['id']}", headers=viewer))[0] == 404
            assert (await get(relay, f"{base}/{thread['id']}"))[0] == 401  # with nobody's credentials
    assert "upstream-secret" not in str(found.asked)


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else content[0]["text"]["value"]


async def test_a_thread_too_long_to_know_its_newest_messages_says_so(redis_url: str) -> None:
    viewer = {"Authorization": "Bearer viewer"}
    async with vendor() as found, running(found.url, redis_url) as relay:
        found.threads["long"] = []
        for number in range(500):
            found.add("long", "user", str(number))
        status, body = await get(relay, "/openai/threads/long/messages", headers=viewer)
        assert (status, body["error"]["code"]) == (501, "upstream.unsupported")
        status, body = await get(relay, "/openai/threads/long/messages?order=asc&limit=1", headers=viewer)
        assert (status, body["has_more"]) == (200, True)


async def test_a_list_made_from_a_whole_run_takes_a_place_among_the_streams(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    """It reads all of the run: as many of them at once as streams, and no more."""
    run_id = upstream.add_run([STARTED, DONE], thread_id="t1")
    other = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url, limits={"connections": 1}) as relay:
        for path in (f"/openai/threads/t1/runs/{run_id}/steps", f"/openai/threads/t1/messages?run_id={run_id}"):
            assert (await get(relay, path))[0] == 200
            async with relay.session.get(relay.events(other)) as response:
                await response.content.readany()
                status, refusal = await get(relay, path)
                assert (status, refusal["error"]["code"]) == (503, "limits.connections")
            async with asyncio.timeout(60):
                while (await get(relay, path))[0] != 200:
                    await asyncio.sleep(0.05)
