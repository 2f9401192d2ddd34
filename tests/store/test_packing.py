"""The command that every event takes is the same words as any other, though most of it is packed once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.core.events import Event
from relay.store import packing
from relay.store.packing import packed, packed_append, words

KIND = st.sampled_from(["message.delta", "tool.call", "é", "a\r\nb", "\ud800", "x" * 500]) | st.text(max_size=5)


@given(
    st.lists(st.tuples(st.integers(1, 2**63 - 1), KIND, st.binary(max_size=20)), max_size=8),
    st.dictionaries(st.sampled_from(["status", "floor"]), st.text("ab", max_size=3)),
    st.integers(0, 2**63 - 1),
)
def test_an_append_is_packed_as_its_words(
    said: list[tuple[int, str, bytes]], fields: dict[str, str], prev: int
) -> None:
    events = [Event(seq, kind, json) for seq, kind, json in said]
    head, limits = ("EVALSHA", "sha", 3, "log", "run", "bell", "owner", "fence"), (1000, 0)
    named = [part for field in fields.items() for part in field]
    rows = [word for seq, kind, json in said for word in (seq, kind.encode("utf-8", "replace"), json)]
    assert packed_append(words(*head), prev, words(*limits), fields, events) == packed(
        (*head, prev, *limits, len(fields), *named, *rows)
    )


def test_the_types_that_are_remembered_are_few_and_short() -> None:
    for at in range(2000):
        packed_append(b"", 0, b"", {}, [Event(1, f"made.up.{at}", b"{}"), Event(2, "x" * 200 + str(at), b"{}")])
    assert len(packing._KINDS) <= 512
    assert max(len(kind) for kind in packing._KINDS) <= 128
