"""`relay watch` against a relay that does what it is told: drop here, refuse there, say goodbye, end."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from relay import watch as watching
from relay.core.backoff import Backoff
from relay.core.errors import ConfigError
from relay.watch import WatchOptions, watch
from relay.watch.margin import Margin
from tests.support.ports import free_port

RUN = "run_1"
Turn = Callable[[web.Request, web.StreamResponse], Awaitable[None]]


def event(seq: int, kind: str = "message.delta", **data: object) -> bytes:
    body = {"seq": seq, "type": kind, "data": data, "created_at": "2026-01-01T00:00:00Z", "run_id": RUN}
    return b"id: %d\ndata: %b\n\n" % (seq, json.dumps(body, ensure_ascii=False).encode())


def words(*seqs: int) -> bytes:
    return b"".join(event(seq, role="assistant", content=f"w{seq} ") for seq in seqs)


def own(name: str, at: int | None = None, **data: object) -> bytes:
    head = b"" if at is None else b"id: %d\n" % at
    return b"%bevent: %b\ndata: %b\n\n" % (head, name.encode(), json.dumps(data).encode())


def end(seq: int, status: str = "completed") -> bytes:
    return own("relay.end", seq, last_seq=seq, status=status)


@dataclass
class Relay:
    """Answers each connection with the next turn of its script, the last one for ever."""

    turns: list[Turn | web.Response]
    requests: list[web.Request] = field(default_factory=list)
    url: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        turn = self.turns[min(len(self.requests), len(self.turns) - 1)]
        self.requests.append(request)
        if isinstance(turn, web.Response):
            return turn
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": ping\n")
        await turn(request, response)
        return response

    @property
    def cursors(self) -> list[int]:
        return [int(request.query["after_seq"]) for request in self.requests]


def send(*frames: bytes) -> Turn:
    """These bytes, then a polite end of the response."""

    async def turn(_: web.Request, response: web.StreamResponse) -> None:
        await response.write(b"".join(frames))

    return turn


def cut(*frames: bytes) -> Turn:
    """These bytes, then no more connection."""

    async def turn(request: web.Request, response: web.StreamResponse) -> None:
        await response.write(b"".join(frames))
        await asyncio.sleep(0.02)
        if request.transport is not None:
            request.transport.abort()

    return turn


def refuse(status: int, code: str, message: str, **headers: str) -> web.Response:
    body = {"code": code, "message": message, "trace_id": "t"}
    return web.json_response(body, status=status, headers=headers)


Script = Callable[..., Awaitable[Relay]]


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    servers: list[TestServer] = []

    async def start(*turns: Turn | web.Response) -> Relay:
        relay = Relay(list(turns))
        app = web.Application()
        app.router.add_get("/v1/runs/{run_id}/events", relay.answer)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        relay.url = str(server.make_url("/")).rstrip("/")
        return relay

    yield start
    for server in servers:
        await server.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "FRESH", Backoff(base_s=0.01, cap_s=0.05))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def seen(relay: Relay, **options: object) -> tuple[int, str, str]:
    """Exit status, output and remarks of one watch."""
    out, err = io.StringIO(), io.StringIO()
    wanted = WatchOptions(**{"run_id": RUN, "url": relay.url, **options})  # type: ignore[arg-type]  # fields by name
    async with asyncio.timeout(60):
        status = await watch(wanted, out, err)
    return status, out.getvalue(), err.getvalue()


def seqs(lines: str) -> list[int]:
    return [json.loads(line)["seq"] for line in lines.splitlines()]


# --- to the end, whatever the connection does -----------------------------------------------------------------------
async def test_a_run_is_followed_to_its_end(script: Script) -> None:
    relay = await script(send(words(1, 2, 3), end(3)))
    assert await seen(relay) == (0, "w1 w2 w3 \n\n— completed, seq 3 —\n", "")
    assert relay.cursors == [0]


async def test_after_a_cut_it_asks_for_what_follows_and_shows_each_event_once(script: Script) -> None:
    half = b'id: 4\ndata: {"seq":4,"type":"mess'
    relay = await script(cut(words(1, 2, 3), half), cut(words(4)), cut(), send(words(5), end(5)))
    status, out, err = await seen(relay, json=True)
    assert (status, seqs(out)) == (0, [1, 2, 3, 4, 5])
    assert relay.cursors == [0, 3, 4, 4]
    assert "resuming after seq 3" in err


async def test_a_polite_end_without_relay_end_is_no_end(script: Script) -> None:
    relay = await script(send(words(1)), send(words(2), end(2)))
    status, out, _ = await seen(relay, json=True)
    assert (status, seqs(out), relay.cursors) == (0, [1, 2], [0, 1])


async def test_what_was_seen_is_not_shown_again(script: Script) -> None:
    relay = await script(cut(words(1, 2)), send(words(1, 2, 2, 3), end(3)))
    _, out, _ = await seen(relay, json=True)
    assert seqs(out) == [1, 2, 3]


async def test_server_trouble_is_waited_out(script: Script) -> None:
    full = refuse(503, "limits.connections", "full", **{"Retry-After": "0"})
    page = web.Response(text="<html>hello", content_type="text/html")
    relay = await script(full, refuse(500, "internal.error", "oops"), page, send(words(1), end(1)))
    status, out, err = await seen(relay, json=True)
    assert (status, seqs(out), len(relay.requests)) == (0, [1], 4)
    assert "503 Service Unavailable: full" in err


async def test_a_relay_that_is_not_there_yet_is_waited_for() -> None:
    relay = Relay([send(words(1), end(1))])
    app = web.Application()
    app.router.add_get("/v1/runs/{run_id}/events", relay.answer)
    port = free_port()
    runner = web.AppRunner(app)
    await runner.setup()
    out, err = io.StringIO(), io.StringIO()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        wanted = WatchOptions(run_id=RUN, url=f"http://127.0.0.1:{port}", json=True)
        shown = tasks.create_task(watch(wanted, out, err))
        while "cannot connect" not in err.getvalue():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # further attempts
        await web.TCPSite(runner, "127.0.0.1", port).start()
    await runner.cleanup()
    assert (shown.result(), seqs(out.getvalue())) == (0, [1])
    assert err.getvalue().count("cannot connect") == 1  # told once, not at every attempt


async def test_a_goodbye_is_obeyed(script: Script) -> None:
    away = own("relay.goodbye", code="drain", reconnect=True, after_ms=150)
    relay = await script(cut(words(1), away), send(words(2), end(2)))
    started = asyncio.get_running_loop().time()
    status, out, err = await seen(relay, json=True)
    assert (status, seqs(out)) == (0, [1, 2])
    assert asyncio.get_running_loop().time() - started >= 0.15
    assert "goodbye: drain" in err


async def test_a_goodbye_for_good_ends_it(script: Script) -> None:
    relay = await script(cut(words(1), own("relay.goodbye", code="auth.forbidden", reconnect=False, after_ms=0)))
    status, _, err = await seen(relay, json=True)
    assert (status, len(relay.requests)) == (1, 1)
    assert "auth.forbidden" in err


@pytest.mark.parametrize("refusal", [401, 403, 404, 422])
async def test_it_gives_up_where_asking_again_is_useless(script: Script, refusal: int) -> None:
    relay = await script(refuse(refusal, "some.code", "There is no such run."))
    status, out, err = await seen(relay)
    assert (status, out, len(relay.requests)) == (1, "", 1)
    assert "There is no such run." in err


async def test_a_redirect_does_not_carry_the_key_away(script: Script) -> None:
    elsewhere = await script(send(end(0)))
    there = web.Response(status=302, headers={"Location": f"{elsewhere.url}/v1/runs/{RUN}/events"})
    relay = await script(there, send(end(0)))
    assert (await seen(relay, key="secret"))[0] == 0
    assert elsewhere.requests == []


async def test_the_question_is_put_as_the_options_say(script: Script) -> None:
    relay = await script(send(end(9)))
    await seen(relay, key="secret", types="run.*,tool.*", after_seq=7)
    (request,) = relay.requests
    assert dict(request.query) == {"after_seq": "7", "types": "run.*,tool.*"}
    assert request.headers["Authorization"] == "Bearer secret"


async def test_filtered_events_move_the_cursor(script: Script) -> None:
    relay = await script(cut(words(1), own("relay.position", 40, seq=40)), send(words(41), end(41)))
    await seen(relay, types="run.*")
    assert relay.cursors == [0, 40]


# --- holes are told -------------------------------------------------------------------------------------------------
async def test_a_reset_is_visible_and_moves_the_cursor(script: Script) -> None:
    hole = own("relay.reset", 5, from_seq=1, to_seq=5, reason="trimmed")
    relay = await script(cut(hole, words(6)), send(words(7), end(7)))
    _, out, _ = await seen(relay)
    assert out.startswith("! events 1 to 5 cannot be had (trimmed)\n")
    assert relay.cursors == [0, 6]


async def test_in_json_a_reset_is_a_line_of_its_own(script: Script) -> None:
    relay = await script(send(own("relay.reset", 5, from_seq=1, to_seq=5, reason="trimmed"), words(6), end(6)))
    _, out, _ = await seen(relay, json=True)
    first, second = map(json.loads, out.splitlines())
    assert first == {"type": "relay.reset", "from_seq": 1, "to_seq": 5, "reason": "trimmed"}
    assert second["seq"] == 6


async def test_an_event_too_long_to_hold_is_told(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.watch.tail.EVENT_BYTES", 1000)
    relay = await script(cut(words(1), event(2, content="x" * 2000)), send(words(3), end(3)))
    _, out, _ = await seen(relay)
    assert "! events 2 to 2 cannot be had" in out
    assert relay.cursors == [0, 2]


# --- what is shown --------------------------------------------------------------------------------------------------
async def test_json_lines_are_the_events_as_they_came(script: Script) -> None:
    frame = event(1, "tool.result", result={"n": 1.50, "s": "é"})
    relay = await script(send(frame, end(1)))
    _, out, _ = await seen(relay, json=True)
    assert out.encode() == frame.split(b"data: ")[1].strip() + b"\n"


async def test_json_lines_cannot_steer_a_terminal_and_stay_equal(script: Script) -> None:
    hostile = "a\x1b[2Jb\x9b31mc\x7f\u2028d"
    relay = await script(send(event(1, content=hostile), end(1)))
    _, out, _ = await seen(relay, json=True)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)
    assert json.loads(out)["data"]["content"] == hostile


HOSTILE = "\x1b]0;owned\x07\x1b[31m\x9b2J[bold]b[/bold] :smile:\r\x00"
FIELDS = ("content", "message", "title", "model", "tool_name", "result", "error", "arguments", "error_class", "role")


@pytest.mark.parametrize("color", [None, False, True])
@pytest.mark.parametrize(
    "kind",
    [
        "run.started",
        "message.delta",
        "tool.call.delta",
        "tool.call",
        "tool.result",
        "run.waiting_for_input",
        "run.input_provided",
        "thread.title.updated",
        "run.gap",
        "run.failed",
        "x\x1b[31my",
    ],
)
async def test_nothing_off_the_wire_steers_the_terminal(script: Script, kind: str, color: bool | None) -> None:
    data = dict.fromkeys((*FIELDS, "arguments_delta", "reason", "nested"), HOSTILE)
    relay = await script(send(event(1, kind, **data), end(1, HOSTILE)))
    _, out, _ = await seen(relay, color=color)
    ours = re.compile(r"\x1b\[[0-9;]*m")  # rich's own styles; anything else is theirs
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", ours.sub("", out))
    assert "\x1b" not in out or color
    assert "owned" not in out or "[bold]b[/bold] :smile:" in out


async def test_a_servers_message_cannot_steer_the_terminal(script: Script) -> None:
    relay = await script(refuse(404, "runs.not_found", "no\x1b[2J"))
    assert "\x1b" not in (await seen(relay))[2]


async def test_the_story_of_a_run(script: Script) -> None:
    call = {"tool_call_id": "c1", "tool_name": "search"}
    frames = [
        event(1, "run.started", model="m-1"),
        event(2, role="assistant", channel="thinking", content="let me "),
        event(3, role="assistant", channel="thinking", content="see"),
        event(4, "tool.call.delta", tool_call_id="c1", arguments_delta='{"q":'),
        event(5, "tool.call.delta", tool_call_id="c1", arguments_delta='"x"}'),
        event(6, "tool.call", arguments={"q": "x"}, **call),
        event(7, "tool.result", result={"hits": 2}, **call),
        event(8, "tool.result", tool_call_id="c2", tool_name="fetch", error="refused\nby them"),
        event(9, "run.waiting_for_input", message="Go on?"),
        event(10, "run.input_provided", content="yes"),
        event(11, "run.completed", delegate_layer="acp"),
        event(12, "memory.write.queued", key="k"),
        event(13, role="assistant", content="Two "),
        event(14, role="assistant", content="hits.\n"),
        event(15, "run.completed", usage={}),
        event(16, "thread.title.updated", title="Hits"),
        end(16),
    ]
    status, out, err = await seen(await script(send(*frames)))
    assert (status, err) == (0, "")
    assert (
        out
        == """\
▶ run started m-1
  · thinking
let me see

  · arguments
{"q":"x"}

⚙ search
✓ search
  {"hits":2}
✗ fetch
  refused
  by them
? waiting for input: Go on?
> yes
  · a nested agent's run: completed
  · memory.write.queued {"key":"k"}
Two hits.

■ completed
# Hits
— completed, seq 16 —
"""
    )


async def test_a_failed_run_is_a_good_watch(script: Script) -> None:
    failed = event(1, "run.failed", error_class="provider.error", message="no quota")
    status, out, _ = await seen(await script(send(failed, end(1, "failed"))))
    assert status == 0
    assert out == "■ failed: provider.error no quota\n— failed, seq 1 —\n"


async def test_text_flows_before_the_run_ends(script: Script) -> None:
    said, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(_: web.Request, response: web.StreamResponse) -> None:
        await response.write(words(1))
        said.set()
        await go_on.wait()
        await response.write(end(1))

    relay = await script(slowly)
    out = io.StringIO()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(watch(WatchOptions(run_id=RUN, url=relay.url), out, io.StringIO()))
        await said.wait()
        while "w1" not in out.getvalue():
            await asyncio.sleep(0.01)
        go_on.set()


async def test_a_terminal_gets_colours_and_the_remarks_too(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    relay = await script(cut(words(1)), send(words(2), end(2)))
    out, err = Terminal(), io.StringIO()
    assert await watch(WatchOptions(run_id=RUN, url=relay.url), out, err) == 0
    assert "\x1b[" in out.getvalue()
    assert "resuming after seq 1" in out.getvalue()
    assert err.getvalue() == ""


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["one two ", "three four"], "one two \nthree four"),
        (["one two", " ", "three"], "one two \nthree"),
        (["one\n", "two three four"], "one\ntwo three \nfour"),
        (["a ", "longerthanaline b"], "a \nlongerthanaline b"),
        (["日本語 日本語"], "日本語 \n日本語"),
        (["1234567890 x"], "1234567890\nx"),
    ],
)
def test_a_terminals_lines_break_between_words(pieces: list[str], shown: str) -> None:
    margin = Margin()
    assert "".join(margin.fit(piece, 10) for piece in pieces) == shown


# --- options and ends -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrong", [{"run_id": "../admin"}, {"run_id": ""}, {"url": "ftp://x"}, {"after_seq": -1}])
def test_what_cannot_work_is_refused_at_once(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        WatchOptions(**{"run_id": RUN, **wrong})  # type: ignore[arg-type]  # fields by name


def test_ctrl_c_answers_130_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*_: object) -> int:
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(10)
        return 0

    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # as a process begins; other tests here may have changed it
    monkeypatch.setattr(watching, "watch", interrupted)
    assert watching.run(WatchOptions(run_id=RUN), io.StringIO()) == 130


@pytest.mark.parametrize("json_mode", [True, False])
async def test_a_reader_that_went_away_ends_it_quietly(script: Script, json_mode: bool) -> None:
    relay = await script(send(*(event(n, "run.input_provided", content=str(n)) for n in range(1, 4000)), end(3999)))
    options = f"WatchOptions('{RUN}', '{relay.url}', json={json_mode})"
    program = f"import sys; from relay.watch import *; sys.exit(run({options}, sys.stdout))"
    command = f'"{sys.executable}" -c "{program}" | head -n 1; echo "status ${{PIPESTATUS[0]}}"'
    shell = await asyncio.create_subprocess_exec(
        "bash", "-c", command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, err = await shell.communicate()
    assert (out.splitlines()[-1], err) == (b"status 0", b"")
