"""Every wire's bytes read back as what was written; no type, however hostile, forges a frame."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core import goodbye, wires
from relay.core.events import MAX_SEQ, Event, encode
from relay.core.sse import Decoder
from relay.core.wires import Form, Notice, Wire

FORMS: tuple[Form, ...] = ("sse", "sse-named", "ndjson", "websocket")
TYPE = st.text(max_size=20) | st.sampled_from(
    ["run.x", "a\n\nid: 9\ndata: {}\n\n", "a\r\rdata: x\r\r", "\r\n", "\u2028\u2029\x85", "\x00", "\ud800", ": x", ""]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=12), lambda inner: st.lists(inner, max_size=3)  # noqa: E501
    | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8,
)  # fmt: skip


@st.composite
def events(draw: st.DrawFn) -> list[Event]:
    seqs = sorted(draw(st.sets(st.integers(1, MAX_SEQ), max_size=6)))
    made = []
    for seq in seqs:
        kind = draw(TYPE)
        made.append(Event(seq, kind, encode({"seq": seq, "type": kind, "data": draw(JSON)})))
    return made


def dechunked(data: bytes) -> bytes:
    out = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        assert length, "the last chunk is not the wire's to write"
        assert rest[length : length + 2] == b"\r\n"
        out, data = out + rest[:length], rest[length + 2 :]
    return out


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """(opcode, payload) of unmasked WebSocket frames, RFC 6455 §5.2."""
    found = []
    while data:
        assert data[0] & 0xF0 == 0x80, "final, no reserved bits"
        assert data[1] & 0x80 == 0, "a server does not mask"
        size, at = data[1], 2
        if size == 126:
            size, at = int.from_bytes(data[2:4], "big"), 4
            assert size >= 126, "the shortest form must be used"
        elif size == 127:
            size, at = int.from_bytes(data[2:10], "big"), 10
            assert 65536 <= size < 2**63
        assert len(data) >= at + size
        found.append((data[0] & 0x0F, data[at : at + size]))
        data = data[at + size :]
    return found


def read(form: Form, data: bytes) -> list[Any]:
    """What a client makes of it."""
    if form == "ndjson":
        assert data.endswith(b"\n") or not data
        return [json.loads(line) for line in data.decode().split("\n")[:-1]]
    if form == "websocket":
        assert all(opcode == 1 for opcode, _ in frames(data))
        return [json.loads(payload.decode("utf-8", "strict")) for _, payload in frames(data)]
    assert b"\r" not in data
    messages = Decoder().feed(data)
    for message in messages:
        assert message.id == str(json.loads(message.data)["seq"])
    return [json.loads(message.data) for message in messages]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("form", FORMS)
@given(made=events())
def test_what_is_written_is_what_is_read(form: Form, chunked: bool, made: list[Event]) -> None:
    data = Wire(form, chunked).events(made)
    data = dechunked(data) if chunked else data
    assert read(form, data) == [json.loads(event.json) for event in made]
    parts = b"".join(Wire(form).events([event]) for event in made)
    assert data == parts  # joining is nothing but joining


@given(events())
def test_only_the_named_wire_names_and_a_name_is_one_line(made: list[Event]) -> None:
    assert not any(line.startswith(b"event:") for line in Wire("sse").events(made).split(b"\n"))
    for message, event in zip(Decoder().feed(Wire("sse-named").events(made)), made, strict=True):
        assert "\n" not in message.event
        if event.type.isprintable() and event.type:
            assert message.event == event.type


def test_the_bytes_of_a_frame() -> None:
    event = Event(7, "run.x", b'{"seq":7}')
    assert Wire("sse").events([event]) == b'id: 7\ndata: {"seq":7}\n\n'
    assert Wire("sse-named").events([event]) == b'id: 7\nevent: run.x\ndata: {"seq":7}\n\n'
    assert Wire("ndjson").events([event]) == b'{"seq":7}\n'
    assert Wire("websocket").events([event]) == b'\x81\x09{"seq":7}'
    assert Wire("sse", chunked=True).events([event]) == b'17\r\nid: 7\ndata: {"seq":7}\n\n\r\n'
    assert Wire("sse", chunked=True).events([]) == b""  # a chunk of no bytes would be the end


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_websocket_frames_of_every_length(size: int) -> None:
    payload = b"x" * size
    assert frames(wires.websocket_frame(1, payload)) == [(1, payload)]


@pytest.mark.parametrize("form", FORMS)
def test_a_ping_is_no_event(form: Form) -> None:
    ping = Wire(form).ping
    if form.startswith("sse"):
        assert ping == b": ping\n"  # one LF: with two, httpx-sse and openai deliver an empty event
        decoder = Decoder()
        assert decoder.feed(ping * 3 + b"id: 1\ndata: x\n\n" + ping) == decoder.feed(b"") + Decoder().feed(
            b"id: 1\ndata: x\n\n"
        )
    elif form == "ndjson":
        assert ping.strip() == b""
    else:
        assert frames(ping) == [(9, b"")]
    assert dechunked(Wire(form, chunked=True).ping) == ping == Wire(form).unframed_ping


NOTICES = [
    (wires.end(0, "completed", 1234), "relay.end", "0", {"last_seq": 0, "status": "completed"}, 1234),
    (wires.end(9, "failed", 1), "relay.end", "9", {"last_seq": 9, "status": "failed"}, 1),
    (wires.position(5), "relay.position", "5", {"seq": 5}, None),
    (wires.reset(2, 8, "trimmed"), "relay.reset", "8", {"from_seq": 2, "to_seq": 8, "reason": "trimmed"}, None),
    (
        wires.goodbye(goodbye.DRAIN, 1500), "relay.goodbye", "",
        {"code": "drain", "reconnect": True, "after_ms": 1500}, 1500,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("notice", "name", "at", "data", "retry"), NOTICES)
def test_our_own_frames(notice: Notice, name: str, at: str, data: dict[str, Any], retry: int | None) -> None:
    for form in ("sse", "sse-named"):
        decoder = Decoder()
        raw = Wire(form).notice(notice)
        [message] = decoder.feed(raw)
        assert (message.event, message.id, json.loads(message.data)) == (name, at, data)
        assert (b"retry: %d\n" % retry in raw) if retry is not None else (b"retry" not in raw)
        assert (b"id:" in raw) is (at != "")
    assert json.loads(Wire("ndjson").notice(notice)) == {"type": name, **data}
    [(_, payload)] = frames(Wire("websocket").notice(notice))
    assert json.loads(payload) == {"type": name, **data}


def test_equal_wires_are_one_value() -> None:
    assert Wire("sse", True) == Wire("sse", chunked=True)
    assert len({Wire(form, chunked) for form in FORMS for chunked in (True, False)} | {Wire("sse")}) == 8


def test_goodbyes_as_the_contract_says() -> None:
    codes = {one.code: one.websocket for one in goodbye.ALL}
    assert codes["drain"] == 1012
    assert codes["overload"] == 1013
    assert codes["slow"] == 4408
    assert codes["auth.expired"] == 4401
    assert codes["auth.forbidden"] == 4403
    assert codes["runs.not_found"] == 4404
    assert goodbye.ENDED_CODE == 1000
    assert len(codes) == len(goodbye.ALL)
    assert goodbye.AUTH_EXPIRED.reconnect
    assert not goodbye.FORBIDDEN.reconnect
    assert not goodbye.GONE.reconnect
    assert all(len(one.text.encode()) <= 123 for one in goodbye.ALL)  # a close frame's room for words
