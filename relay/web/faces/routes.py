"""Every route of the faces. What no route takes goes to an upstream of that shape, or is refused in the face's words."""

from __future__ import annotations

from typing import Final

from aiohttp import hdrs, web

from relay.web.admit import Access
from relay.web.door import Answer, Endpoint, Route
from relay.web.faces.arkloop import Arkloop
from relay.web.faces.ground import Ground
from relay.web.faces.mounts import Mounts
from relay.web.faces.openai import OpenAi
from relay.web.faces.proxy import Proxy
from relay.web.faces.seekrflow import SeekrFlow
from relay.web.faces.threads import WORDS, Threads
from relay.web.runs import Runs

_RUNS: Final = "/threads/{thread_id:.*}/runs"
_RUN: Final = "/threads/{thread_id:.*}/runs/{run_id:[^/]*}"
_REST: Final = "{rest:.*}"
_REST_OF_ROOT: Final = "{rest:(?!(?:native|ui|arkloop|seekrflow|openai)(?:/|$)).*}"
"""What stands at a name of its own is no part of the face at the root."""
_PASSED: Final = (hdrs.METH_GET, hdrs.METH_POST, hdrs.METH_PUT, hdrs.METH_PATCH, hdrs.METH_DELETE)

_STREAMS: Final = ("events", "attach", "stream")

_Row = tuple[str, str, Endpoint, str]


def mounted(mounts: Mounts, ground: Ground, runs: Runs, *, keys_are_ours: bool) -> list[Route]:
    proxy = Proxy(ground, keys_are_ours=keys_are_ours)
    rows = {
        "arkloop": _arkloop(Arkloop(ground), runs),
        "seekrflow": _seekrflow(SeekrFlow(ground), runs),
        "openai": _openai(OpenAi(ground)),
    }
    routes = []
    for face, table in rows.items():
        raw = face == "seekrflow"
        for mount in mounts.prefixes(face):
            carry = proxy.of(face, mount).carry
            threads = _threads(ground, face, carry, keys_are_ours=keys_are_ours)
            for method, path, endpoint, name in [*table, *threads]:
                streams = method == hdrs.METH_GET and name in _STREAMS
                name = f"{face}_{name}"  # noqa: PLW2901
                routes.append(Route(method, mount + path, Access.ACT, endpoint, name, raw_key=raw, streams=streams))
            for method in _PASSED:
                path = f"{mount}/{_REST if mount else _REST_OF_ROOT}"
                routes.append(Route(method, path, Access.ACT, carry, f"{face}_passed", raw_key=raw, any_body=True))
    return routes


def _threads(ground: Ground, face: str, carry: Endpoint, *, keys_are_ours: bool) -> list[_Row]:
    """Threads and messages: passed to an upstream of this shape, mapped where another one's are known."""
    if face not in WORDS:
        return []
    threads = Threads(ground, face, keys_are_ours=keys_are_ours)
    lists = {
        "arkloop": threads.list_arkloop, "openai": threads.list_openai, "seekrflow": threads.list_seekrflow
    }[face]  # fmt: skip
    thread, messages = "/threads/{thread_id:[^/]+}", "/threads/{thread_id:[^/]+}/messages"
    rows: list[_Row] = [
        ("POST", "/threads", threads.create, "create_thread"),
        ("POST", "/threads/", threads.create, "create_thread"),
        ("GET", thread, threads.get, "get_thread"),
        ("DELETE", thread, threads.delete, "delete_thread"),
        ("POST", messages, threads.add_message, "create_message"),
        ("GET", messages, lists, "list_messages"),
        ("GET", f"{messages}/{{message_id:[^/]+}}", threads.get_message, "get_message"),
    ]
    own = [(method, path, threads.or_passed(endpoint, carry), name) for method, path, endpoint, name in rows]
    if face != "openai":
        return _under_v1(own)
    made = OpenAi(ground)
    own = [
        # Those of one run are in its events, whoever is behind.
        (method, path, _by_run(ground, made.messages, endpoint) if name == "list_messages" else endpoint, name)
        for method, path, endpoint, name in own
    ]
    own.append(("GET", f"{_RUN}/steps", _unless_alike(ground, made.steps, carry), "steps"))
    return [*own, *_under_v1(own)]


def _by_run(ground: Ground, of_run: Endpoint, of_thread: Endpoint) -> Endpoint:
    async def choose(request: web.Request) -> Answer:
        endpoint = _unless_alike(ground, of_run, of_thread) if request.query.get("run_id") else of_thread
        return await endpoint(request)

    return choose


def _unless_alike(ground: Ground, own: Endpoint, passed: Endpoint) -> Endpoint:
    async def choose(request: web.Request) -> Answer:
        alike = ground.upstream(request, "openai").provider.name == "openai"
        return await (passed if alike else own)(request)

    return choose


def _under_v1(rows: list[_Row]) -> list[_Row]:
    return [(method, f"/v1{path}", endpoint, name) for method, path, endpoint, name in rows]


def _arkloop(face: Arkloop, runs: Runs) -> list[_Row]:
    run = "/v1/runs/{run_id:[^/:]*}"
    return [
        ("POST", f"/v1{_RUNS}", face.create, "create_run"),
        ("GET", f"/v1{_RUNS}", face.list_thread, "list_thread_runs"),
        ("GET", "/v1/runs", face.list_all, "list_runs"),
        ("GET", f"{run}/events", face.events, "events"),
        ("POST", f"{run}/input", runs.input, "input"),
        ("POST", f"{run}:cancel", face.cancel, "cancel"),
        ("GET", run, face.get, "get_run"),
    ]


def _seekrflow(face: SeekrFlow, runs: Runs) -> list[_Row]:
    return [
        ("POST", f"/v1{_RUNS}", face.create, "create_run"),
        ("POST", f"/v1{_RUNS}/stream/vercel", face.create_stream, "create_stream"),
        ("POST", f"/v1{_RUNS}/stream", face.create_legacy_stream, "create_legacy_stream"),
        ("GET", f"/v1{_RUNS}", face.list, "list_runs"),
        ("GET", f"/v1{_RUN}/attach", face.attach, "attach"),
        ("POST", f"/v1{_RUN}/cancel", face.cancel, "cancel"),
        # Not in the vendor's API, which has no way to answer a run that waits.
        ("POST", f"/v1{_RUN}/input", runs.input, "input"),
        ("GET", f"/v1{_RUN}", face.get, "get_run"),
    ]


def _openai(face: OpenAi) -> list[_Row]:
    rows: list[_Row] = [
        ("POST", _RUNS, face.create, "create_run"),
        ("GET", _RUNS, face.list, "list_runs"),
        ("GET", f"{_RUN}/stream", face.stream, "stream"),
        ("POST", f"{_RUN}/cancel", face.cancel, "cancel"),
        ("POST", f"{_RUN}/submit_tool_outputs", face.submit, "submit"),
        ("GET", _RUN, face.get, "get_run"),
    ]
    # Its own clients put /v1 into the base URL, those of Minds do not.
    return [*rows, *_under_v1(rows)]
