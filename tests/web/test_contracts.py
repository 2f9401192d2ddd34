"""`/openapi.json` and `/asyncapi.json` are true: every route is in them, and every answer is as they say."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from relay.web.contracts import document
from tests.support.needs import ROOT, missing
from tests.support.relay import RunningRelay, running
from tests.support.upstream import ScriptedUpstream
from tests.web.raw import fetch, frames
from tests.web.test_admit import API_KEYS, table

SCRIPT = [
    ("run.started", {}),
    ("message.delta", {"content_delta": "hello", "role": "assistant"}),
    ("tool.call", {"tool_call_id": "c1", "tool_name": "look", "arguments": {"a": 1}}),
    ("tool.result", {"tool_call_id": "c1", "result": {"b": 2}}),
    ("run.completed", {"total_input_tokens": 3}),
]


def tool(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(f"the package {name}", "pip install 'run-relay[contracts]'")


def openapi() -> dict[str, Any]:
    return document("openapi.yaml")


# --- the documents themselves ----------------------------------------------------------------------------------------
def test_every_route_of_the_native_face_is_in_the_document_and_nothing_else() -> None:
    served = {
        (method, target.replace("RUN", "{run_id}").replace("/threads/thread", "/threads/{thread_id}"))
        for listener, method, target, _ in table()
        if listener == "public" and not target.startswith(("/native", "/ui"))
    }
    written = {
        (method.upper(), path)
        for path, item in openapi()["paths"].items()
        for method in item
        if method in ("get", "post", "put", "delete", "patch")
    }
    assert written == served


def test_every_reference_leads_somewhere() -> None:
    for name in ("openapi.yaml", "asyncapi.yaml"):
        whole = document(name)
        found = re.findall(r'"\$ref": ?"#/([^"]+)"', json.dumps(whole))
        assert found
        for path in found:
            at: Any = whole
            for step in path.split("/"):
                assert step in at, path
                at = at[step]


def test_every_parameter_that_is_read_is_written_down() -> None:
    """By name, from the code: what an endpoint takes out of its query or headers and no document tells is a secret."""
    web = ROOT / "relay" / "web"
    source = "".join((web / name).read_text() for name in ("runs.py", "events.py", "many.py", "requests.py"))
    source += (web.parent / "core" / "cursor.py").read_text()
    read = set(re.findall(r'query\.get\("([a-z_]+)"', source))
    read |= set(re.findall(r'(?:flag_of|number_of|count_of)\((?:request\.)?query, "([a-z_]+)"', source))
    written = {one["name"] for one in parameters(openapi())}
    assert read, "the pattern no longer finds anything"
    assert read <= written, read - written


def parameters(whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    places = [item.get("parameters", []) for item in whole["paths"].values()]
    places += [
        one.get("parameters", []) for item in whole["paths"].values() for one in item.values() if type(one) is dict
    ]
    for one in (one for place in places for one in place):
        yield whole["components"]["parameters"][one["$ref"].rsplit("/", 1)[1]] if "$ref" in one else one


def test_they_are_documents_of_their_kind() -> None:
    validators = tool("openapi_spec_validator")
    validators.OpenAPIV31SpecValidator(openapi()).validate()


# --- served ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["openapi", "asyncapi"])
async def test_they_are_served_to_anybody_and_kept(upstream: ScriptedUpstream, redis_url: str, name: str) -> None:
    async with running(upstream.url, redis_url, auth=API_KEYS) as relay:
        raw = await fetch(relay.url, f"/{name}.json")
        assert raw.status == 200
        served = raw.json()
        written = document(f"{name}.yaml")
        assert {key: served[key] for key in written} == written
        again = await fetch(relay.url, f"/{name}.json", {"If-None-Match": raw.headers["etag"]})
        assert again.status == 304


async def test_where_another_face_has_the_root_the_document_leads_to_native(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    async with running(upstream.url, redis_url, faces={"root": "openai"}) as relay:
        assert (await fetch(relay.url, "/openapi.json")).json()["servers"] == [{"url": "/native"}]
        assert (await fetch(relay.url, "/native/v1/runs")).status == 200
    async with running(upstream.url, redis_url) as relay:
        assert (await fetch(relay.url, "/openapi.json")).json()["servers"] == [{"url": "/"}]


# --- what is answered ------------------------------------------------------------------------------------------------
@asynccontextmanager
async def peopled(redis_url: str) -> AsyncIterator[tuple[ScriptedUpstream, RunningRelay]]:
    async with ScriptedUpstream(token="upstream-secret") as upstream:
        upstream.add_run(SCRIPT, run_id="done", thread_id="t")
        upstream.add_run(
            [("run.started", {}), ("run.input_requested", {"request_id": "q"})], run_id="asks", thread_id="t"
        )
        async with running(upstream.url, redis_url, ingest={"linger_s": 0.01}) as relay:
            yield upstream, relay


async def test_frames_are_as_the_documents_say(redis_url: str) -> None:
    jsonschema = tool("jsonschema")
    whole = document("asyncapi.yaml")
    schemas = {one["name"]: one["payload"] for one in whole["components"]["messages"].values() if "name" in one}
    event = whole["components"]["messages"]["event"]["payload"]

    def valid(payload: Any, schema: dict[str, Any]) -> None:
        jsonschema.Draft202012Validator({**schema, "components": whole["components"]}).validate(payload)

    async with peopled(redis_url) as (_, relay):
        raw = await fetch(relay.url, "/v1/runs/done/events")
        found = [(one.get("event", "message"), json.loads(one["data"])) for one in frames(raw.body)]
        assert [name for name, _ in found] == ["message"] * 5 + ["relay.end"]
        for name, payload in found:
            valid(payload, event if name == "message" else schemas[name])
        raw = await fetch(relay.url, "/v1/runs/asks/events?types=tool.*&follow=false")
        [position] = frames(raw.body)
        assert position["event"] == "relay.position"
        valid(json.loads(position["data"]), schemas["relay.position"])
        async with relay.session.ws_connect(f"{relay.url}/v1/events") as socket:
            for message in (
                {"op": "ping", "n": 1}, {"op": "subscribe", "run_id": "done"}, {"op": "subscribe", "run_id": "unknown"},
                {"op": "subscribe", "run_id": "asks"}, {"op": "unsubscribe", "run_id": "asks"}, {"op": "shout"},
            ):  # fmt: skip
                await socket.send_json(message)
            heard: set[str] = set()
            async with asyncio.timeout(60):
                while not heard >= {"pong", "event", "end", "error", "unsubscribed"}:
                    payload = await socket.receive_json()
                    heard.add(payload["op"])
                    valid(payload, schemas[payload["op"]])
        with pytest.raises(jsonschema.ValidationError):
            valid({"last_seq": -1, "status": "gone"}, schemas["relay.end"])  # the check can fail


@contextmanager
def elsewhere(redis_url: str) -> Iterator[str]:
    """A relay in a thread of its own, for a tester that blocks."""
    ready: list[str] = []
    stop: list[Any] = []
    there = threading.Event()

    async def serve() -> None:
        async with peopled(redis_url) as (_, relay):
            done = asyncio.Event()
            stop.append((asyncio.get_running_loop(), done))
            ready.append(relay.url)
            there.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert there.wait(30)
    try:
        yield ready[0]
    finally:
        loop, done = stop[0]
        loop.call_soon_threadsafe(done.set)
        thread.join(30)


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # it is the relay that does, in its own thread
def test_whatever_is_asked_the_answer_is_as_the_document_says(redis_url: str) -> None:
    schemathesis = tool("schemathesis")
    hypothesis = importlib.import_module("hypothesis")
    checks = importlib.import_module("schemathesis.checks")
    seen: set[tuple[str, int]] = set()
    runs = itertools.cycle(["done", "asks", None])
    with elsewhere(redis_url) as url:
        schema = schemathesis.openapi.from_dict({**openapi(), "servers": [{"url": url}]})
        for operation in (result.ok() for result in schema.get_all_operations()):

            @hypothesis.settings(
                max_examples=25, deadline=None, derandomize=True, database=None, phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )  # fmt: skip
            @hypothesis.given(case=operation.as_strategy())
            def ask(case: Any) -> None:
                if (run := next(runs)) is not None and "run_id" in (case.path_parameters or {}):
                    case.path_parameters["run_id"] = run
                    for name in ("upstream", "thread_id"):
                        (case.query or {}).pop(name, None)
                    (case.headers or {}).pop("X-Relay-Upstream", None)
                if case.path.endswith("/events"):  # no tester reads a stream that does not end, or waits a minute
                    case.query = {**(case.query or {}), "follow": "false", "wait": "0"}
                answer = case.call(base_url=url, timeout=20)
                seen.add((case.operation.definition.raw["operationId"], answer.status_code))
                if 500 < answer.status_code < 505:
                    assert answer.json()["code"].split(".")[0] in ("upstream", "store"), answer.text
                    return
                case.validate_response(
                    answer,
                    checks=[
                        schemathesis.checks.not_a_server_error,
                        checks.CHECKS.get_one("content_type_conformance"),
                        checks.CHECKS.get_one("response_schema_conformance"),
                        checks.CHECKS.get_one("status_code_conformance"),
                    ],
                )

            ask()
    reached = {name for name, status in seen if status < 300}
    assert reached >= {"list_runs", "get_run", "events", "tokens", "create_run", "openapi", "asyncapi"}, sorted(seen)
