"""Who may come in: every route of both listeners, keys, viewer tokens, Host, Origin, bodies, bounds (design.md §4, §8)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import logging
import re
import time
import warnings
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import jwt
import pytest

from relay import telemetry
from relay.core.errors import ConfigError, Unauthenticated
from relay.core.ids import RunKey
from relay.core.options import Secret
from relay.settings import load
from relay.web import admit as admit_module
from relay.web import routes
from relay.web.admit import Access, hash_of
from relay.web.options import KeyOptions
from relay.web.tokens import MOST_S, Tokens
from tests.support.relay import RunningRelay, running
from tests.support.upstream import ScriptedUpstream
from tests.web.raw import ADMIN_KEY, API_KEYS, KEY, TOKEN_SECRET, Raw, bearer, connection, fetch, notices

STARTED = ("run.started", {})


class Anything:
    """Stands for what serves a route: only the table is looked at."""

    def __getattr__(self, name: str) -> Any:
        return self


def table() -> list[tuple[str, str, str, Access]]:
    """(listener, method, target, access) of every route there is."""
    anything: Any = Anything()
    listeners = {
        "public": routes.public(anything, anything, anything, anything, anything),
        "admin": routes.admin(anything),
    }
    found = []
    for listener, its in listeners.items():
        for route in its:
            target = re.sub(r"\{run_id(:[^{}]*)?\}", "RUN", route.path)
            target = re.sub(r"\{thread_id(:[^{}]*)?\}", "thread", target)
            assert "{" not in target, target
            found.append((listener, route.method, target, route.access))
    return found


def url_of(relay: RunningRelay, listener: str) -> str:
    return relay.url if listener == "public" else relay.admin_url


@contextlib.asynccontextmanager
async def guarded(upstream: ScriptedUpstream, redis_url: str, **sections: Any) -> AsyncIterator[RunningRelay]:
    async with running(upstream.url, redis_url, auth=API_KEYS, **sections) as relay:
        yield relay


async def token_for(relay: RunningRelay, run_id: str, ttl_s: int | None = None) -> str:
    body = b"" if ttl_s is None else json.dumps({"ttl_s": ttl_s}).encode()
    headers = {**bearer(KEY), "Content-Type": "application/json"}
    raw = await fetch(relay.url, f"/v1/runs/{run_id}/tokens", headers, method="POST", body=body)
    assert raw.status == 201, raw.data
    return str(raw.json()["token"])


def refused(raw: Raw, status: int, code: str) -> None:
    assert raw.status == status, raw.data
    assert raw.json()["code"] == code
    assert raw.json()["trace_id"] == raw.headers["x-trace-id"]


# --- the matrix ------------------------------------------------------------------------------------------------------
def test_only_these_routes_are_open() -> None:
    opened = {target for _, _, target, access in table() if access is Access.OPEN}
    assert opened <= {"/healthz", "/readyz", "/metrics", "/ui", "/ui/app.js", "/ui/app.css", "/openapi.json",
                      "/asyncapi.json"}  # fmt: skip
    assert all(access is Access.ADMIN for _, _, target, access in table() if "/admin" in target)
    viewable = {target for _, _, target, access in table() if access is Access.VIEW}
    assert viewable == {"/v1/runs/RUN/events", "/native/v1/runs/RUN/events"}


async def test_without_a_key_every_route_but_the_open_ones_refuses(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with guarded(upstream, redis_url) as relay:
        for listener, method, target, access in table():
            target = target.replace("RUN", run_id)
            for headers, code in (
                ({}, "auth.missing_token"),
                (bearer("rk_no-such-key"), "auth.invalid_api_key"),
                (bearer("upstream-secret"), "auth.invalid_api_key"),
                (bearer(hash_of(KEY)), "auth.invalid_api_key"),
                ({"Authorization": f"Basic {KEY}"}, "auth.invalid_authorization"),
                ({"Authorization": KEY}, "auth.invalid_authorization"),
                ({"Authorization": "Bearer "}, "auth.invalid_authorization"),
            ):
                raw = await fetch(url_of(relay, listener), target, headers, method=method)
                if access is Access.OPEN:
                    assert raw.status == 200, (target, raw.data)
                else:
                    refused(raw, 401, code)
                    assert raw.headers["www-authenticate"].startswith("Bearer"), target
    assert upstream.requests == []


async def test_a_key_opens_what_is_not_for_admins(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with guarded(upstream, redis_url) as relay:
        for listener, method, target, access in table():
            if target.endswith("/events"):
                target += "?follow=false"
            raw = await fetch(url_of(relay, listener), target.replace("RUN", run_id), bearer(KEY), method=method)
            if access is Access.ADMIN:
                refused(raw, 403, "auth.forbidden")
            else:
                assert raw.status not in (401, 403), (target, raw.data)


async def test_an_admin_key_opens_admin_routes(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with guarded(upstream, redis_url) as relay:
        for path in ("/admin/runs", "/admin/config"):
            raw = await fetch(relay.admin_url, path, bearer(ADMIN_KEY))
            assert raw.status == 200
        for secret in (KEY, ADMIN_KEY, hash_of(KEY), "upstream-secret", TOKEN_SECRET):
            assert secret.encode() not in raw.body
        raw = await fetch(relay.url, "/admin/config", bearer(ADMIN_KEY))
        assert raw.status == 404  # not on the public listener


@pytest.mark.parametrize("mode", [{"mode": "none"}, {"mode": "api_keys", "keys": (KeyOptions("k", hash_of(KEY)),)}])
async def test_admin_routes_are_closed_without_an_admin_key(
    upstream: ScriptedUpstream, redis_url: str, mode: dict[str, Any]
) -> None:
    async with running(upstream.url, redis_url, auth=mode) as relay:
        for _, method, target, access in table():
            if access is Access.ADMIN:
                for headers in ({}, bearer(KEY), bearer(ADMIN_KEY)):
                    refused(await fetch(relay.admin_url, target, headers, method=method), 403, "auth.forbidden")


async def test_in_mode_none_admin_routes_still_ask_for_the_admin_key(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    keys = (KeyOptions("boss", hash_of(ADMIN_KEY), admin=True),)
    async with running(upstream.url, redis_url, auth={"mode": "none", "keys": keys}) as relay:
        refused(await fetch(relay.admin_url, "/admin/runs"), 401, "auth.missing_token")
        refused(await fetch(relay.admin_url, "/admin/runs", bearer("x")), 401, "auth.invalid_api_key")
        assert (await fetch(relay.admin_url, "/admin/runs", bearer(ADMIN_KEY))).status == 200


async def test_a_path_that_no_route_takes_tells_nothing(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with guarded(upstream, redis_url) as relay:
        for method, target, status in (
            ("GET", "/", 404), ("GET", "/v1", 404), ("GET", "/admin/runs", 404), ("GET", "/metrics", 404),
            ("DELETE", "/v1/runs", 405), ("PUT", "/v1/runs/r", 405), ("POST", "/v1/runs/r/events", 405),
            ("HEAD", "/v1/runs", 405), ("OPTIONS", "/v1/runs", 405),
        ):  # fmt: skip
            async with relay.session.request(method, relay.url + target) as response:
                assert response.status == status, (method, target)
                assert response.headers["X-Trace-Id"]


# --- keys ------------------------------------------------------------------------------------------------------------
async def test_every_key_is_compared_in_constant_time(
    upstream: ScriptedUpstream, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[Any, Any]] = []
    original = hmac.compare_digest

    def counting(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return original(one, other)

    monkeypatch.setattr(admit_module.hmac, "compare_digest", counting)
    keys = tuple(KeyOptions(f"k{i}", hash_of(f"rk_{i}")) for i in range(7))
    async with running(upstream.url, redis_url, auth={"mode": "api_keys", "keys": keys}) as relay:
        for presented, status in (("rk_0", 200), ("rk_3", 200), ("rk_6", 200), ("rk_none", 401)):
            compared.clear()
            assert (await fetch(relay.url, "/v1/runs", bearer(presented))).status == status
            ours = [pair for pair in compared if any(str(part).startswith("sha256:") for part in pair)]
            assert len(ours) == len(keys), presented
            assert not any(presented in str(pair) for pair in ours)


@pytest.mark.parametrize("value", [b"Bearer \xff\xfe", b"Bearer \xc3\xa9", b"Bearer rk_\xf0\x9f\x92\xa9", b"\xff"])
async def test_a_key_that_is_no_text_is_refused_like_any_other(
    upstream: ScriptedUpstream, redis_url: str, value: bytes
) -> None:
    async with guarded(upstream, redis_url) as relay:
        raw = await fetch(relay.url, "/v1/runs", {"Authorization": value.decode("utf-8", "surrogateescape")})
    assert raw.status == 401, raw.data


async def test_the_bearer_scheme_may_be_written_in_any_case(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with guarded(upstream, redis_url) as relay:
        for scheme in ("Bearer", "bearer", "BEARER"):
            assert (await fetch(relay.url, "/v1/runs", {"Authorization": f"{scheme} {KEY}"})).status == 200


# --- viewer tokens ---------------------------------------------------------------------------------------------------
async def test_a_viewer_token_reads_its_run_and_nothing_else(upstream: ScriptedUpstream, redis_url: str) -> None:
    mine, other = upstream.add_run([STARTED]), upstream.add_run([STARTED])
    async with guarded(upstream, redis_url) as relay:
        token = await token_for(relay, mine)
        raw = await fetch(relay.url, f"/v1/runs/{mine}/events?follow=false&access_token={token}")
        assert raw.status == 200
        for run_id in (other, "no-such-run"):
            raw = await fetch(relay.url, f"/v1/runs/{run_id}/events?follow=false&access_token={token}")
            refused(raw, 404, "runs.not_found")  # one that exists and one that does not look alike
        assert not [one for one in upstream.requests if other in one.path or "no-such-run" in one.path]
        for listener, method, target, access in table():
            if access in (Access.ACT, Access.ADMIN):
                target = target.replace("RUN", mine)
                raw = await fetch(url_of(relay, listener), f"{target}?access_token={token}", method=method)
                refused(raw, 403, "auth.forbidden")
                raw = await fetch(url_of(relay, listener), target, bearer(token), method=method)
                refused(raw, 401, "auth.invalid_api_key")


async def test_a_key_is_no_viewer_token(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with guarded(upstream, redis_url) as relay:
        for key in (KEY, ADMIN_KEY, ""):
            raw = await fetch(relay.url, f"/v1/runs/{run_id}/events?access_token={key}")
            assert raw.status == 401, raw.data


@pytest.mark.parametrize("ttl_s", [0, -1, MOST_S + 1, 1.5, "60", True, None, 10**30])
async def test_a_token_lives_ten_minutes_at_most(upstream: ScriptedUpstream, redis_url: str, ttl_s: object) -> None:
    run_id = upstream.add_run([STARTED])
    async with guarded(upstream, redis_url) as relay:
        headers = {**bearer(KEY), "Content-Type": "application/json"}
        body = json.dumps({"ttl_s": ttl_s}).encode()
        raw = await fetch(relay.url, f"/v1/runs/{run_id}/tokens", headers, method="POST", body=body)
        refused(raw, 422, "validation.error")
        assert raw.json()["details"]["field"] == "ttl_s"


async def test_a_minted_token_says_when_it_expires(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with guarded(upstream, redis_url) as relay:
        raw = await fetch(relay.url, f"/v1/runs/{run_id}/tokens", bearer(KEY), method="POST")
        claims = jwt.decode(raw.json()["token"], TOKEN_SECRET, algorithms=["HS256"], audience="relay.viewer")
        assert claims["exp"] - claims["iat"] <= 600
        assert abs(claims["iat"] - time.time()) < 10
        assert KEY not in json.dumps(claims)
        assert raw.json()["expires_at"].endswith("Z")


def _token(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    claims = {"aud": "relay.viewer", "upstream": "main", "run": "RUN", "by": "x", "iat": now, "exp": now + 60}
    return {name: value for name, value in {**claims, **changes}.items() if value is not ...}


def _none_algorithm(claims: dict[str, Any]) -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
             for part in ({"alg": "none", "typ": "JWT"}, claims)]  # fmt: skip
    return ".".join([*parts, ""])


def _other_algorithm(claims: dict[str, Any]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the secret is short for it, which is not the point
        return jwt.encode(claims, TOKEN_SECRET, algorithm="HS384")


def _tampered(claims: dict[str, Any]) -> str:
    head, _, signature = jwt.encode(claims, TOKEN_SECRET, algorithm="HS256").split(".")
    body = base64.urlsafe_b64encode(json.dumps({**claims, "exp": claims["exp"] + 1}).encode()).rstrip(b"=").decode()
    return f"{head}.{body}.{signature}"


def forged() -> dict[str, tuple[str, str]]:
    """Tokens that must not open anything: name -> (token, code)."""
    good, now = _token(), int(time.time())
    bad = "auth.invalid_token"

    def sign(claims: dict[str, Any], secret: str = TOKEN_SECRET, algorithm: str = "HS256") -> str:
        return jwt.encode(claims, secret, algorithm=algorithm)

    return {
        "expired": (sign(_token(iat=now - 700, exp=now - 100)), "auth.token_expired"),
        "expires now": (sign(_token(exp=now)), "auth.token_expired"),
        "no algorithm": (_none_algorithm(good), bad),
        "tampered": (_tampered(good), bad),
        "another algorithm": (sign(good, TOKEN_SECRET * 2, "HS512"), bad),
        "the right secret, another algorithm": (_other_algorithm(good), bad),
        "another secret": (sign(good, "another-secret-of-at-least-32-characters"), bad),
        "another audience": (sign(_token(aud="relay.admin")), bad),
        "no audience": (sign(_token(aud=...)), bad),
        "no expiry": (sign(_token(exp=...)), bad),
        "no run": (sign(_token(run=...)), bad),
        "no upstream": (sign(_token(upstream=...)), bad),
        "not yet valid": (sign(_token(nbf=now + 1000)), bad),
        "not a token": ("abc", bad),
        "two dots": ("..", bad),
        "no text": ("%ff%fe.%00.x", bad),
        "surrogates": ("%ed%a0%80", bad),
    }


@pytest.mark.parametrize("name", sorted(forged()))
async def test_a_forged_token_opens_nothing(upstream: ScriptedUpstream, redis_url: str, name: str) -> None:
    token, code = forged()[name]
    async with guarded(upstream, redis_url) as relay:
        refused(await fetch(relay.url, f"/v1/runs/RUN/events?access_token={token}"), 401, code)
    assert upstream.requests == []


def test_a_token_minted_by_a_process_whose_clock_is_ahead_is_good() -> None:
    now = int(time.time())
    token = jwt.encode(_token(iat=now + 300, exp=now + 900), TOKEN_SECRET, algorithm="HS256")
    assert Tokens(TOKEN_SECRET).read(token) == (RunKey("main", "RUN"), "x", now + 900.0)


def test_an_expiry_that_is_no_number_is_no_token() -> None:
    for exp in ("never", None, [], 1e400):
        body = json.dumps({**_token(), "exp": exp}).encode()
        token = jwt.api_jws.encode(body, TOKEN_SECRET, algorithm="HS256")
        with pytest.raises(Unauthenticated):
            Tokens(TOKEN_SECRET).read(token)


async def test_an_expired_token_ends_its_stream_with_a_goodbye_and_an_abort(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run([STARTED])
    async with guarded(upstream, redis_url) as relay, connection(relay.url) as raw:
        token = await token_for(relay, run_id, ttl_s=1)
        await raw.ask(f"/v1/runs/{run_id}/events?access_token={token}")
        await raw.rest()
        assert raw.status == 200
        assert not raw.finished
        [(at, goodbye)] = notices(raw.body, "relay.goodbye")
        assert (at, goodbye["code"], goodbye["reconnect"]) == (None, "auth.expired", True)
        refused(await fetch(relay.url, f"/v1/runs/{run_id}/events?access_token={token}"), 401, "auth.token_expired")


async def test_an_expired_token_closes_its_websocket_with_4401(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with guarded(upstream, redis_url) as relay:
        token, _ = Tokens(TOKEN_SECRET).mint(RunKey("main", run_id), minted_by="t", ttl_s=2)
        async with relay.session.ws_connect(relay.events(run_id, f"access_token={token}")) as socket:
            said = [json.loads(message.data) async for message in socket]
        assert socket.close_code == 4401
    assert said[-1]["type"] == "relay.goodbye"
    assert said[-1]["code"] == "auth.expired"


async def test_no_secret_is_told_by_logs_errors_or_metrics(
    upstream: ScriptedUpstream, redis_url: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run_id, said = upstream.add_run([STARTED, ("run.completed", {"text": "a-body-of-an-event"})]), []
    async with guarded(upstream, redis_url) as relay:
        token = await token_for(relay, run_id)
        for target, headers in (
            (f"/v1/runs/{run_id}/events?access_token={token}", {}),
            (f"/v1/runs/{run_id}?access_token={token}", {}),
            (f"/v1/runs/{run_id}/events?access_token={token}x", {}),
            (f"/v1/runs/{run_id}/events?access_token={token}&after_seq=-1", {}),
            (f"/v1/nothing?access_token={token}", bearer(KEY)),
            ("/v1/runs", bearer(KEY)),
            ("/v1/runs?limit=x", bearer(KEY)),
            ("/v1/runs", bearer(KEY + "x")),
        ):
            raw = await fetch(relay.url, target, headers)
            if raw.status >= 300:
                said.append(raw.data.decode())
        said.append((await fetch(relay.admin_url, "/metrics")).data.decode())
    captured = capfd.readouterr()
    everything = "\n".join([*said, captured.out, captured.err, caplog.text])
    for secret in (token, token[-20:], KEY, ADMIN_KEY, "upstream-secret", TOKEN_SECRET, "a-body-of-an-event"):
        assert secret not in everything


# --- Host ------------------------------------------------------------------------------------------------------------
def hosts(port: int) -> dict[str, int]:
    return {
        f"127.0.0.1:{port}": 200, "localhost": 200, f"LOCALHOST:{port}": 200, "[::1]:80": 200, "10.1.2.3": 200,
        "[2001:db8::1]": 200, "relay.internal": 200, f"Relay.Internal:{port}": 200,
        "evil.example": 403, f"evil.example:{port}": 403, "127.0.0.1.evil.example": 403, "localhost.evil.example": 403,
        "evil.example:127.0.0.1": 403, "xrelay.internal": 403, "": 403, ":80": 403, "2130706433": 403, "0x7f.1": 403,
        "[::1].evil.example": 403, "localhost@evil.example": 403, "evil.example#127.0.0.1": 403,
    }  # fmt: skip


@pytest.mark.parametrize(("host", "status"), hosts(80).items())
async def test_only_our_own_names_are_served(
    upstream: ScriptedUpstream, redis_url: str, host: str, status: int
) -> None:
    async with running(upstream.url, redis_url, server={"allowed_hosts": ("relay.internal",)}) as relay:
        for url, target in ((relay.url, "/v1/runs"), (relay.url, "/ui"), (relay.admin_url, "/healthz")):
            raw = await fetch(url, target, {"Host": host})
            assert raw.status in (status, 400 if status == 403 else status), (target, raw.data)
        for target in ("/no/such/path", "/v1/runs/x/y"):
            raw = await fetch(relay.url, target, {"Host": host})
            assert raw.status in ((404, 422) if status == 200 else (403, 400)), (target, raw.data)


async def test_a_star_serves_every_name(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with guarded(upstream, redis_url, server={"allowed_hosts": ("*",)}) as relay:
        assert (await fetch(relay.url, "/v1/runs", {"Host": "evil.example", **bearer(KEY)})).status == 200


async def test_two_hosts_do_not_smuggle_one_in(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as raw:
        await raw.send(b"GET /v1/runs HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        await raw.rest()
        assert raw.status in (400, 403)


# --- Origin ----------------------------------------------------------------------------------------------------------
APP = "https://app.example.com"


async def test_a_foreign_page_may_not_act(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url, server={"cors_origins": (APP,)}) as relay:
        own = relay.url
        for origin, status in {
            own: 201, APP: 201, APP.upper(): 201, "": 403, "null": 403, "https://evil.example": 403,
            "http://localhost:1": 403, f"{APP}.evil.example": 403, "https://evil.example/" + APP: 403,
            "http://127.0.0.1": 403, f"{APP}:8443": 403,
        }.items():  # fmt: skip
            raw = await fetch(relay.url, f"/v1/runs/{run_id}/tokens", {"Origin": origin}, method="POST")
            if status == 201:
                assert raw.status == 201, (origin, raw.data)
            else:
                refused(raw, 403, "http.origin_not_allowed")
        assert (await fetch(relay.url, f"/v1/runs/{run_id}/tokens", method="POST")).status == 201  # no browser


async def test_a_foreign_page_may_not_open_a_websocket(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url, server={"cors_origins": (APP,)}) as relay:
        for origin in (relay.url, APP, None):
            async with relay.session.ws_connect(relay.events(run_id), origin=origin) as socket:
                assert json.loads(await socket.receive_str(timeout=60))["seq"] == 1
        for origin in ("https://evil.example", "null"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                await relay.session.ws_connect(relay.events(run_id), origin=origin)
            assert error.value.status == 403


async def test_only_listed_origins_may_read_answers(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED, ("run.completed", {})])
    async with running(upstream.url, redis_url, server={"cors_origins": (APP,)}) as relay:
        for target in ("/v1/runs", f"/v1/runs/{run_id}/events", "/v1/runs/no-such-run", "/v1/runs?limit=x", "/nothing"):
            raw = await fetch(relay.url, target, {"Origin": APP})
            assert raw.headers["access-control-allow-origin"] == APP, target
            assert "origin" in raw.headers["vary"].lower()
            assert "access-control-allow-credentials" not in raw.headers
            assert "x-trace-id" in raw.headers["access-control-expose-headers"].lower()
            for origin in ("https://evil.example", "null", relay.url):
                raw = await fetch(relay.url, target, {"Origin": origin})
                assert "access-control-allow-origin" not in raw.headers, (target, origin)


async def test_a_preflight_is_answered_for_listed_origins_without_credentials(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    async with guarded(upstream, redis_url, server={"cors_origins": (APP,)}) as relay:
        asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        for target in ("/v1/runs/r/input", "/v1/runs/r:cancel", "/v1/threads/t/runs", "/v1/runs/r/events"):
            raw = await fetch(relay.url, target, {"Origin": APP, **asking}, method="OPTIONS")
            assert raw.status == 204
            assert raw.headers["access-control-allow-origin"] == APP
            assert "POST" in raw.headers["access-control-allow-methods"]
            allowed = raw.headers["access-control-allow-headers"].lower()
            assert all(name in allowed for name in ("authorization", "content-type", "last-event-id"))
            raw = await fetch(relay.url, target, {"Origin": "https://evil.example", **asking}, method="OPTIONS")
            assert raw.status == 405
            assert "access-control-allow-origin" not in raw.headers


# --- bodies and bounds -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None, "x",
                                  "application/jsonp", "text/json"])  # fmt: skip
async def test_a_body_that_is_not_json_is_415(upstream: ScriptedUpstream, redis_url: str, kind: str | None) -> None:
    async with running(upstream.url, redis_url) as relay:
        for _, method, target, _ in table():
            if method == "POST":
                raw = await fetch(
                    relay.url, target, {} if kind is None else {"Content-Type": kind}, method="POST", body=b"{}"
                )
                refused(raw, 415, "http.unsupported_media_type")
    assert upstream.requests == []


async def test_a_json_content_type_may_have_parameters(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with running(upstream.url, redis_url) as relay:
        for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
            headers = {"Content-Type": kind}
            raw = await fetch(relay.url, "/v1/threads/t/runs", headers, method="POST", body=b"{}")
            assert raw.status == 201, raw.data


async def test_a_body_beyond_the_limit_is_413_and_goes_nowhere(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    headers = {"Content-Type": "application/json"}
    async with running(upstream.url, redis_url, limits={"body_bytes": 1000}) as relay:
        for target in ("/v1/threads/t/runs", f"/v1/runs/{run_id}/input"):
            body = json.dumps({"content": "x" * 2000}).encode()
            refused(await fetch(relay.url, target, headers, method="POST", body=body), 413, "http.request_too_large")
        async with connection(relay.url) as raw:  # in chunks, so that no length warns of it
            await raw.ask("/v1/threads/t/runs", {**headers, "Transfer-Encoding": "chunked"}, method="POST")
            await raw.send(b"7d0\r\n" + b" " * 2000 + b"\r\n0\r\n\r\n")
            await raw.answer()
            refused(raw, 413, "http.request_too_large")
    assert upstream.requests == []


async def test_a_long_query_is_422(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with running(upstream.url, redis_url) as relay:
        for target in ("/v1/runs", "/v1/runs/r/events", "/v1/threads/t/runs"):
            raw = await fetch(relay.url, f"{target}?x={'a' * 4100}")
            refused(raw, 422, "validation.error")
            assert raw.json()["details"]["field"] == "query"
    assert upstream.requests == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v1/runs HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /v1/runs?" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + b"a" * 40_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100 + b"\r\n\r\n",
        b"GET /v1/runs HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /v1/runs HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n",
        b"POST /v1/threads/t/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/threads/t/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["header", "line", "authorization", "tls", "version", "name", "length", "smuggling"],
)
async def test_what_is_no_proper_request_is_refused_without_a_traceback(
    upstream: ScriptedUpstream,
    redis_url: str,
    request_bytes: bytes,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    async with running(upstream.url, redis_url) as relay:
        async with connection(relay.url) as raw:
            await raw.send(request_bytes)
            async with asyncio.timeout(60):
                while b"\r\n\r\n" not in raw.data and await raw._more():
                    pass
            assert raw.status in (400, 431), raw.data
            assert "x-trace-id" not in raw.headers or raw.json()["trace_id"] == raw.headers["x-trace-id"]
        assert (await fetch(relay.url, "/v1/runs")).status == 200
    captured = capfd.readouterr()
    assert "Traceback" not in caplog.text + captured.err + captured.out
    assert "aaaaaaaaaaaaaaaaaaaaaaaa" not in caplog.text + captured.err + captured.out
    assert upstream.requests == [one for one in upstream.requests if one.path == "/v1/runs"]


# --- mode none -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "server", [{"host": "0.0.0.0"}, {"admin_host": "0.0.0.0"}, {"host": "::"}, {"host": "10.0.0.1"},
               {"host": "example.com"}, {"allowed_hosts": ["*"]}],
)  # fmt: skip
def test_mode_none_is_only_for_loopback(server: dict[str, Any], tmp_path: Any) -> None:
    config = tmp_path / "relay.yaml"
    upstreams = [{"name": "main", "provider": "arkloop", "base_url": "http://127.0.0.1:1"}]
    config.write_text(json.dumps({"server": server, "upstreams": upstreams}))
    with pytest.raises(ConfigError):
        load(config, {})
    key = [{"name": "k", "hash": hash_of(KEY)}]
    config.write_text(json.dumps({"server": server, "upstreams": upstreams, "auth": {"mode": "api_keys", "keys": key}}))
    assert load(config, {}).auth.mode == "api_keys"


def test_a_secret_never_shows_itself() -> None:
    secret = Secret("hush-hush")
    assert "hush" not in f"{secret} {secret!r} {[secret]} {secret!s}"


def test_a_bug_of_our_own_keeps_its_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Only what no parser can read is the client's doing; a crash around our routes must stay findable."""
    try:
        raise KeyError("a bug")
    except KeyError:
        telemetry.server_logger().exception("Unhandled exception")
    [record] = caplog.records
    assert record.getMessage() == "Unhandled exception"
    assert record.exc_info is not None
