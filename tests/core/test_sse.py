"""The SSE decoder against a slow model of the specification, the web platform's own cases, and its bounds."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn, SupportsIndex
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core import sse
from relay.core.sse import MAX_FIELD_BYTES, MAX_RETRY_MS, PING, Decoder, Message, frame

KIB, MIB = 1024, 1024 * 1024
replayable = settings(derandomize=True, deadline=None, max_examples=500)


# --- the model: WHATWG HTML §9.2.6, sentence by sentence, over the whole stream as a str -----------------------------
@dataclass
class Reading:
    events: list[tuple[str, str, str, int]] = field(default_factory=list)  # data, event, id, oversize
    last_event_id: str = ""
    retry_ms: int | None = None
    pending: bool = False


def interpret(text: str, *, max_data: float = float("inf"), max_field: float = float("inf")) -> Reading:
    """Lengths are those of `text`: give latin-1 text to measure bytes."""
    reading = Reading()
    data = event_type = last_id = ""
    *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for line in lines:
        if line == "":
            reading.last_event_id = last_id
            if data != "":
                data = data[:-1]
                over = len(data) if len(data) > max_data else 0
                reading.events.append(("" if over else data, event_type, last_id, over))
            data = event_type = ""
            reading.pending = False
            continue
        if line[0] == ":":
            continue
        if ":" in line:
            name, value = line.split(":", 1)
            if value.startswith(" "):
                value = value[1:]
        else:
            name, value = line, ""
        if name == "data":
            data += value + "\n"
            reading.pending = True
        elif name == "event" and len(value) <= max_field:
            event_type = value
            reading.pending = True
        elif name == "id" and "\0" not in value and len(value) <= max_field:
            last_id = value
            reading.pending = True
        elif name == "retry" and value and all(c in "0123456789" for c in value) and len(value) <= max_field:
            reading.retry_ms = min(int(value), MAX_RETRY_MS)
    reading.pending = reading.pending or rest != ""
    return reading


def as_utf8(stream: bytes) -> str:
    """§9.2.6: "decoded using the UTF-8 decode algorithm", which removes one BOM."""
    return stream.decode("utf-8", "replace").removeprefix("\ufeff")


def as_latin1(stream: bytes) -> str:
    """One character per byte, to see exactly which bytes are in the data."""
    return stream.removeprefix(b"\xef\xbb\xbf").decode("latin-1")


# --- what the decoder makes of a stream in pieces --------------------------------------------------------------------
def read(chunks: Iterable[bytes], **options: Any) -> tuple[list[Message], Decoder]:
    decoder = Decoder(**options)
    return [message for chunk in chunks for message in decoder.feed(chunk)], decoder


def as_reading(messages: list[Message], decoder: Decoder) -> Reading:
    events = [(m.text, m.event, m.id, m.oversize) for m in messages]
    return Reading(events, decoder.last_event_id, decoder.retry_ms, decoder.pending)


def pieces(stream: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield stream[at : at + size]
        at += size
    yield stream[at:]


def every_split(stream: bytes) -> Iterator[list[bytes]]:
    """Whole, every one and every two cuts, and byte by byte with and without empty chunks between."""
    yield [stream]
    for one, two in itertools.combinations_with_replacement(range(len(stream) + 1), 2):
        yield [stream[:one], stream[one:two], stream[two:]]
    single = [stream[at : at + 1] for at in range(len(stream))]
    yield single
    yield [chunk for byte in single for chunk in (byte, b"")]


NAMES = [b"data", b"id", b"event", b"retry", b"data:", b"data: ", b"id: ", b"event: ", b"retry: ", b"Data: ", b"junk"]
TEXTS = [b":", b" ", b"x", b"yz", b"7", b"012", b"-3", b"0", b": ", b"\t", b"{}", b"abcdefghijklmnop"]
ENDS = [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r", b": ping\n"]
TRAPS = [
    b"\0",
    b"\xef\xbb\xbf",
    b"\xef",
    b"\xbb",
    b"\xbf",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b"\x85",
    b"\x0b",
    b"\x0c",
    b"\xff",
]
streams = st.builds(
    bytes.__add__,
    st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xef\xbb"]),
    st.lists(st.sampled_from([*NAMES, *TEXTS, *ENDS, *ENDS, *TRAPS]), max_size=40).map(b"".join),
)
splits = st.lists(st.integers(0, 12), max_size=40)


@replayable
@given(streams, splits)
def test_any_split_reads_as_the_specification_says(stream: bytes, sizes: list[int]) -> None:
    messages, decoder = read(pieces(stream, sizes))
    assert as_reading(messages, decoder) == interpret(as_utf8(stream))


@replayable
@given(streams, splits)
def test_data_is_kept_byte_for_byte(stream: bytes, sizes: list[int]) -> None:
    messages, _ = read(pieces(stream, sizes))
    assert [m.data for m in messages] == [data.encode("latin-1") for data, *_ in interpret(as_latin1(stream)).events]


@replayable
@given(streams, splits, st.integers(0, 20))
def test_limits_hold_under_any_split(stream: bytes, sizes: list[int], max_bytes: int) -> None:
    expected = interpret(as_latin1(stream), max_data=max_bytes, max_field=8)
    with mock.patch.object(sse, "MAX_FIELD_BYTES", 8):
        messages, decoder = read(pieces(stream, sizes), max_bytes=max_bytes)
    assert [(m.data.decode("latin-1"), m.oversize) for m in messages] == [(e[0], e[3]) for e in expected.events]
    assert [m.id.encode() for m in messages] == [as_utf8_bytes(e[2]) for e in expected.events]
    assert [m.event.encode() for m in messages] == [as_utf8_bytes(e[1]) for e in expected.events]
    assert (decoder.retry_ms, decoder.pending) == (expected.retry_ms, expected.pending)


def as_utf8_bytes(latin1: str) -> bytes:
    return latin1.encode("latin-1").decode("utf-8", "replace").encode()


@pytest.mark.parametrize(
    "stream",
    [
        b"\xef\xbb\xbfdata: 1\r\n\r\ndata: 2\r\rdata: 3\n\ndata\r\n\n",
        b"id: 7\r\nevent: e\r\ndata: a\r\ndata:\r\ndata: b\r\n\r\n: ping\nid\r\n\r\ndata: c\n\n",
        b"\r\n\n\r\r\n: c\r\n\rdata:x\r\n\r\rdata: y\n\r\n",
        b"data: \xe2\x80\xa8\x0b\x0c\xc2\x85\xe2\x80\n\nid: \xc3\xa9\xff\nevent: \xf0\x9f\x98\ndata: \xf0\x9f\x98\x80\n\n",
        b"id: 1\ndata: whole\n\nid: 2\nevent: cut\ndata: cut",
        b"\xef\xbbdata: no BOM\n\ndata: yes\n\n",
        b"retry: 10\nretry: 1x\nretry:20\nid: a\0b\ndata\ndata: \n\n",
    ],
)
def test_tricky_streams_under_every_split(stream: bytes) -> None:
    expected = interpret(as_utf8(stream))
    for chunks in every_split(stream):
        assert as_reading(*read(chunks)) == expected


# --- web-platform-tests, eventsource/format-*, as streams (mime-* is about HTTP headers and not ours) ----------------
WPT = [
    ("bom", b"\xef\xbb\xbfdata:1\n\n\xef\xbb\xbfdata:2\n\ndata:3\n\n\n", [("", "1", ""), ("", "3", "")]),
    ("bom-2", b"\xef\xbb\xbf\xef\xbb\xbfdata:1\n\ndata:2\n\ndata:3\n\n\n", [("", "2", ""), ("", "3", "")]),
    (
        "comments",
        b"data:1\r:\0\n:\r\ndata:2\n:%b\rdata:3\n:data:fail\r:%b\ndata:4\n\n" % (b"x" * 2048, b"x" * 2048),
        [("", "1\n2\n3\n4", "")],
    ),
    ("data-before-final-empty-line", b"retry:1000\ndata:test1\n\nid:test\ndata:test2\n", [("", "test1", "")]),
    ("field-data", b"data:\n\ndata\ndata\n\ndata:test\n\n\n", [("", "", ""), ("", "\n", ""), ("", "test", "")]),
    ("field-event", b"event:test\ndata:x\n\ndata:x\n\n\n", [("test", "x", ""), ("", "x", "")]),
    ("field-event-empty", b"event: \ndata:data\n\n\n", [("", "data", "")]),
    ("field-id", "id: …\nretry: 200\ndata: hello\n\n".encode(), [("", "hello", "…")]),
    ("field-id-3 persists", b"id: 1\ndata: 1\n\ndata:2\n\n", [("", "1", "1"), ("", "2", "1")]),
    (
        "field-id-3 changes",
        b"id: 1\ndata: 1\n\nid: 2\ndata:2\n\ndata:3\n\n",
        [("", "1", "1"), ("", "2", "2"), ("", "3", "2")],
    ),
    (
        "field-id-3 resets",
        b"id: 1\ndata: 1\n\nid:\ndata:2\n\ndata:3\n\n",
        [("", "1", "1"), ("", "2", ""), ("", "3", "")],
    ),
    ("field-id-null", b"id: \0\0\nretry: 200\ndata: hello\n\n", [("", "hello", "")]),
    (
        "field-parsing",
        b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n",
        [("", "\0\n 2\n1\n3\n\n4", "")],
    ),
    ("field-retry", b"retry:02000\ndata:x\n\n\n", [("", "x", "")]),
    ("field-retry-bogus", b"retry:2000\nretry:1000x\ndata:x\n\n\n", [("", "x", "")]),
    ("field-retry-empty", b"retry\ndata:test\n\n\n", [("", "test", "")]),
    (
        "field-unknown",
        b"data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n\n",
        [("", "test\n\ntest", "")],
    ),
    ("leading-space", b"data:\ttest\rdata: \ndata:test\n\n\n", [("", "\ttest\n\ntest", "")]),
    ("newlines", b"data:test\r\ndata\ndata:test\r\n\r\n", [("", "test\n\ntest", "")]),
    ("null-character", b"data:\0\n\n\n\n", [("", "\0", "")]),
    ("utf-8", "data:ok…\n\n\n".encode(), [("", "ok…", "")]),
]
WPT_RETRY = {
    "data-before-final-empty-line": 1000,
    "field-id": 200,
    "field-id-null": 200,
    "field-retry": 2000,
    "field-retry-bogus": 2000,
}


@pytest.mark.parametrize(("name", "stream", "events"), WPT, ids=[name for name, *_ in WPT])
@pytest.mark.parametrize("size", [1, 2, 3, 5000])
def test_web_platform_format_case(name: str, stream: bytes, events: list[tuple[str, str, str]], size: int) -> None:
    messages, decoder = read(pieces(stream, itertools.repeat(size, len(stream))))
    assert [(m.event, m.text, m.id) for m in messages] == events
    assert decoder.retry_ms == WPT_RETRY.get(name)


def test_web_platform_format_field_id_2_the_id_outlives_its_connection() -> None:
    _, first = read(["id: …\nretry: 200\ndata: hello\n\n".encode()])
    messages, second = read(["data: …\n\n".encode(), "data: …\n\n".encode()], last_event_id=first.last_event_id)
    assert [(m.text, m.id) for m in messages] == [("…", "…"), ("…", "…")]
    assert second.last_event_id == "…"


# --- single facts ----------------------------------------------------------------------------------------------------
def test_invalid_utf8_spoils_a_character_and_not_the_stream() -> None:
    messages, _ = read([b"data: a\xff\xc3\n\n", b"id: \xff\ndata: b\n\n"])
    assert [(m.data, m.text, m.id) for m in messages] == [(b"a\xff\xc3", "a\ufffd\ufffd", ""), (b"b", "b", "\ufffd")]


def test_an_id_without_data_moves_the_last_event_id_and_dispatches_nothing() -> None:
    messages, decoder = read([b"id: 7\nevent: e\n\n"])
    assert (messages, decoder.last_event_id, decoder.pending) == ([], "7", False)
    assert decoder.feed(b"data: x\n\n") == [Message(b"x", "", "7")]


def test_the_id_of_a_cut_event_is_not_the_point_to_resume_from() -> None:
    messages, decoder = read([b"id: 1\ndata: a\n\nid: 2\ndata: b\n"])
    assert (len(messages), decoder.last_event_id, decoder.pending) == (1, "1", True)


def test_cr_at_the_end_of_a_chunk_dispatches_at_once_and_swallows_the_lf() -> None:
    decoder = Decoder()
    assert decoder.feed(b"data: a\r\r") == [Message(b"a", "", "")]
    assert decoder.feed(b"") == []
    assert decoder.feed(b"\ndata: b\n\n") == [Message(b"b", "", "")]


@pytest.mark.parametrize("ping", [PING, b": a comment that is long enough\r\n", b"retry: 5\n", b"\xef\xbb\xbf"])
def test_what_the_end_of_the_stream_would_not_lose_is_not_pending(ping: bytes) -> None:
    assert not read([ping])[1].pending


@pytest.mark.parametrize(
    "held", [b"d", b":", b"id\n", b"id: 7\n", b"event:\n", b"data\n", b"\xef", b"\xef\xbb", b"junk"]
)
def test_what_the_end_of_the_stream_would_lose_is_pending(held: bytes) -> None:
    assert read([held], last_event_id="7")[1].pending


@pytest.mark.parametrize("value", [b"-3", b"+3", b"3.0", b"1e3", b" 3", b"3 ", b"0x3", "٣".encode(), "²".encode(), b""])
def test_retry_is_ascii_digits_or_nothing(value: bytes) -> None:
    assert read([b"retry: 1\nretry: %b\n" % value])[1].retry_ms == 1


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (b"0", 0),
        (b"007", 7),
        (b"%d" % MAX_RETRY_MS, MAX_RETRY_MS),
        (b"%d" % (MAX_RETRY_MS + 1), MAX_RETRY_MS),
        (b"9" * 5000, MAX_RETRY_MS),
        (b"0" * 5000 + b"12", 12),
        (b"9" * (MAX_FIELD_BYTES + 1), None),
    ],
)
def test_retry_is_bounded(value: bytes, ms: int | None) -> None:
    assert read([b"retry: %b\n" % value])[1].retry_ms == ms


# --- bounds ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("late", [b"", b"id: 2\nevent: late\n"])
@pytest.mark.parametrize(
    "data",
    [
        b"data: 12345678901\n",
        b"data: 1234567\ndata: 901\n",
        b"data: 1\ndata: 123456789\n",
        b"data\n" * 12,
        b"data:" + b"x" * 11 + b"\r\n",
    ],
)
def test_oversize_data_keeps_id_event_and_the_next_message(data: bytes, late: bytes) -> None:
    stream = b"id: 1\nevent: big\n" + data + late + b"\nid: 3\ndata: 1234567890\n\n"
    id_and_event = ("2", "late") if late else ("1", "big")
    expected = [Message(b"", id_and_event[1], id_and_event[0], oversize=11), Message(b"1234567890", "", "3")]
    with mock.patch.object(sse, "MAX_FIELD_BYTES", 4):
        for chunks in every_split(stream):
            assert read(chunks, max_bytes=10)[0] == expected


@pytest.mark.parametrize("name", [b"id", b"event"])
@pytest.mark.parametrize("step", [KIB, 10 * MIB])
@pytest.mark.parametrize(("size", "kept"), [(MAX_FIELD_BYTES, True), (MAX_FIELD_BYTES + 1, False), (MIB, False)])
def test_an_id_or_event_over_the_limit_is_as_if_not_sent(name: bytes, step: int, size: int, kept: bool) -> None:
    stream = b"%b: old\n%b: %b\ndata: x\n\n" % (name, name, b"v" * size)
    (message,), _ = read(pieces(stream, itertools.repeat(step, len(stream) // step)))
    assert (message.id or message.event) == ("v" * size if kept else "old")


@pytest.mark.parametrize(
    ("opening", "endless"),
    [
        (b"data: ", b"x"),
        (b"", b"x"),
        (b":", b"x"),
        (b"id: ", b"1"),
        (b"event:", b"x"),
        (b"retry: ", b"1"),
        (b"", b"data: x\n"),
        (b"", b"data\n"),
        (b"data: ", b"x\r\ndata: y"),
        (b"", b"id: 1\nevent: x\n"),
    ],
)
def test_an_endless_line_or_block_is_held_within_bounds(opening: bytes, endless: bytes) -> None:
    limit = 256 * KIB
    decoder, chunk = Decoder(max_bytes=limit), endless * (4 * KIB // len(endless))
    decoder.feed(opening)
    tracemalloc.start()
    try:
        for _ in range(8 * limit // len(chunk)):
            assert decoder.feed(chunk) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * limit  # one buffer of max_bytes that may be moving to a larger place, and one chunk's lines


def test_the_next_line_may_hold_only_what_its_block_has_left() -> None:
    decoder = Decoder(max_bytes=MIB)
    decoder.feed(b"data: " + b"x" * (MIB - 10) + b"\ndata: ")
    tracemalloc.start()
    try:
        for _ in range(MIB // KIB):
            decoder.feed(b"y" * KIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MIB / 2


def refuse(*_: object, **__: object) -> NoReturn:
    raise AssertionError("held bytes were searched, sliced or copied again")


class Ledger(bytearray):
    """A bytearray that counts what is appended and read out, and allows little else."""

    appended = 0
    read = 0

    def __iadd__(self, other: Any) -> Ledger:  # type: ignore[misc]  # there is no __add__ to agree with: see below
        Ledger.appended += len(other)
        super().__iadd__(other)
        return self

    def __bytes__(self) -> bytes:
        Ledger.read += len(self)
        return bytes(memoryview(self))

    find = rfind = index = rindex = count = refuse
    split = rsplit = splitlines = partition = rpartition = refuse
    endswith = strip = replace = decode = join = copy = translate = refuse
    __add__ = __contains__ = __getitem__ = __iter__ = __mul__ = refuse

    def startswith(self, prefix: Any, start: SupportsIndex | None = None, end: SupportsIndex | None = None) -> bool:
        return super().startswith(prefix, start, end)


@pytest.mark.parametrize(
    "stream",
    [b"data: " + b"x" * (4 * MIB) + b"\n\n", (b"data: " + b"x" * 1000 + b"\n") * 4096 + b"\n"],
    ids=["one long line", "many lines"],
)
def test_work_is_linear_each_held_byte_is_appended_and_read_once_per_stage(stream: bytes) -> None:
    Ledger.appended = Ledger.read = 0
    with mock.patch.object(sse, "bytearray", Ledger, create=True):
        messages, _ = read(pieces(stream, itertools.repeat(KIB, len(stream) // KIB)))
    assert [m.data.count(b"x") for m in messages] == [stream.count(b"x")]
    # Two stages hold bytes: the line without its end, and the data of several lines.
    assert 0 < Ledger.appended <= 2 * len(stream)
    assert 0 < Ledger.read <= 2 * len(stream)


# --- the encoder -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "wire"),
    [
        (lambda: frame(None, b"x"), b"data: x\n\n"),
        (lambda: frame(7, b"{}"), b"id: 7\ndata: {}\n\n"),
        (lambda: frame(0, b"", "a b", 0), b"id: 0\nevent: a b\nretry: 0\ndata: \n\n"),
        (lambda: frame(1, b"x", ""), b"id: 1\ndata: x\n\n"),
        (lambda: frame(1, b" x", "é", 2000), "id: 1\nevent: é\nretry: 2000\ndata:  x\n\n".encode()),
    ],
)
def test_frame_is_id_event_retry_data(make: Callable[[], bytes], wire: bytes) -> None:
    assert make() == wire


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_frame_refuses_a_line_end_inside_a_value(end: str) -> None:
    with pytest.raises(ValueError, match="data holds a line end"):
        frame(1, f"a{end}b".encode())
    with pytest.raises(ValueError, match="event type holds a line end"):
        frame(1, b"x", f"a{end}b")


def test_frame_refuses_a_negative_retry() -> None:
    with pytest.raises(ValueError, match="retry_ms is negative"):
        frame(1, b"x", retry_ms=-1)


one_line = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))
frames = st.tuples(st.integers(0, 2**63), one_line, st.none() | one_line, st.none() | st.integers(0, MAX_RETRY_MS))


@replayable
@given(st.lists(frames, max_size=6), splits)
def test_what_frame_writes_the_decoder_reads(
    events: list[tuple[int, str, str | None, int | None]], sizes: list[int]
) -> None:
    stream = PING.join(frame(seq, text.encode(), event, retry) for seq, text, event, retry in events)
    messages, decoder = read(pieces(stream, sizes))
    assert messages == [Message(text.encode(), event or "", str(seq)) for seq, text, event, _ in events]
    assert decoder.retry_ms == next((retry for *_, retry in reversed(events) if retry is not None), None)
    assert not decoder.pending


@pytest.mark.parametrize(
    "stream",
    [
        b"id: 1\0\ndata: x\n\nid: 2\ndata: y\n\n",
        b"data: adata: b\n\ndata: c\n\n",
        b"data: a\ndata: b\n\ndata: c\n\n",
        b"id: 1\nevent: a\nevent: b\ndata: c\n\n",
        b"event: a\nid: 1\ndata: c\n\nid: 2\ndata: d\n\n",
        b"id: 1\n\ndata: x\n\nid: \ndata: y\n\n",
        b"data: x\rdata: y\n\ndata: z\n\n",
        b"xdata: x\n\ndata: y\n\n",
        b"id: 1\ndata: x\n\nid: \xff2\ndata: y\n\nid: 3\nevent: \xfe\ndata: z\n\ndata: \xff\n\n",
    ],
)
def test_the_usual_form_is_no_other_road(stream: bytes) -> None:
    """Cut in two anywhere, so that what looks usual begins in the middle of something else; against one byte at a time."""
    slowly = Decoder()
    wanted = [message for at in range(len(stream)) for message in slowly.feed(stream[at : at + 1])]
    for at in range(len(stream)):
        decoder = Decoder()
        assert decoder.feed(stream[:at]) + decoder.feed(stream[at:]) == wanted, at
        assert decoder.last_event_id == slowly.last_event_id
