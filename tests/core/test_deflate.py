"""permessage-deflate: any client can read any slice, whichever it had before; what is short stays plain."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from relay.core.deflate import deflated
from relay.core.events import Event
from relay.core.many import RunWire
from relay.core.wires import Wire, websocket_messages

PAYLOADS = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda word, times: word * times, st.binary(min_size=1, max_size=50), st.integers(1, 3000)),
)


def inflated(payload: bytes, inflater: zlib._Decompress) -> bytes:
    return inflater.decompress(payload + b"\x00\x00\xff\xff")


@given(st.lists(st.lists(PAYLOADS, max_size=5), max_size=5), st.data())
def test_whichever_slices_a_client_has_had_it_reads_the_next(slices: list[list[bytes]], data: st.DataObject) -> None:
    """One inflater for the whole connection, as clients have it; plain messages pass it by."""
    inflater = zlib.decompressobj(wbits=-15)
    for payloads in slices:
        if data.draw(st.booleans()):
            continue  # this client was not there, or was given other slices
        squeezed = deflated(payloads)
        assert squeezed is None or [inflated(one, inflater) for one in squeezed] == payloads


def test_what_repeats_shrinks_and_what_is_short_stays_plain() -> None:
    event = (
        b'{"run_id":"0198a3b2-7c1d-7e00-8000-0000000000aa","seq":%d,"type":"message.delta","data":{"content":"w%d"}}'
    )
    slice_ = [event % (i, i) for i in range(200)]
    squeezed = deflated(slice_)
    assert squeezed is not None
    assert sum(map(len, squeezed)) < sum(map(len, slice_)) / 4
    assert deflated([b"x" * 100]) is None
    assert deflated([]) is None


def test_only_the_compressed_message_says_that_it_is() -> None:
    assert websocket_messages([b"x" * 4000], deflate=True)[0] == 0x81 | 0x40
    assert websocket_messages([b"x" * 20], deflate=True)[0] == 0x81
    assert websocket_messages([b"x" * 4000], deflate=False)[0] == 0x81


def test_wires_of_different_forms_never_share_bytes() -> None:
    events = [Event(1, "x", b'{"seq":1,"run_id":"r","data":"' + b"x" * 2000 + b'"}')]
    wires = [Wire("sse"), Wire("sse", chunked=True), Wire("websocket"), Wire("websocket-deflate"), Wire("ndjson"),
             RunWire("many-sse", "r"), RunWire("many-websocket", "r"), RunWire("many-websocket-deflate", "r")]  # fmt: skip
    assert len({wire.key for wire in wires}) == len({wire.events(events) for wire in wires}) == len(wires)
