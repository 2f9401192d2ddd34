"""The vector cursor: exact for any set of runs, short, URL-safe, and bounded and refused by name for hostile bytes."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core import vector
from relay.core.errors import InvalidRequest
from relay.core.events import MAX_SEQ
from relay.core.ids import RunKey
from relay.core.vector import Place, Tally, Vector, later, read

IDS = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", min_size=1, max_size=128)
KEYS = st.builds(RunKey, st.sampled_from(["main", "other"]), IDS)
PLACES = st.builds(Place, st.integers(0, MAX_SEQ), st.booleans())


def tally_of(places: dict[RunKey, Place], mark: int = 0) -> Tally:
    tally = Tally(Vector({}, mark))
    for key, place in places.items():
        tally.put(key, place)
    return tally


@given(st.dictionaries(KEYS, PLACES, max_size=30), st.integers(0, 2**63))
def test_what_was_written_is_read(places: dict[RunKey, Place], mark: int) -> None:
    found = read("cursor", tally_of(places, mark).text().decode())
    assert found.mark == mark
    assert {key: found.place(key, places) for key in places} == places
    assert not found.knows(RunKey("main", "never-heard-of"))
    assert found.place(RunKey("main", "never-heard-of"), places) == Place()


@given(st.lists(st.tuples(KEYS, st.one_of(st.none(), PLACES)), max_size=40))
def test_the_text_says_the_last_word_on_each_run(moves: list[tuple[RunKey, Place | None]]) -> None:
    tally, model = Tally(), dict[RunKey, Place]()
    for key, place in moves:
        if place is None:
            tally.drop(key)
            model.pop(key, None)
        else:
            tally.put(key, place)
            model[key] = place
    found = read("cursor", tally.text().decode())
    assert len(tally) == len(model)
    assert {key: found.place(key, model) for key, _ in moves} == {key: model.get(key, Place()) for key, _ in moves}


def test_a_hundred_runs_take_less_than_two_kilobytes() -> None:
    def length(seq: int) -> int:
        keys = [RunKey("main", f"0198a3b2-7c1d-7e00-8000-{i:012d}") for i in range(100)]
        text = tally_of({key: Place(seq + i, True) for i, key in enumerate(keys)}, mark=1_790_000_000_000_000).text()
        assert re.fullmatch(rb"[A-Za-z0-9_-]+", text)
        return len(text)

    assert length(5_000) < 1_220
    assert length(1_790_000_000_000_000) < 2_048  # a generation begins at a clock's microseconds


@given(st.text(max_size=200))
def test_any_text_is_a_cursor_or_refused_by_name(text: str) -> None:
    try:
        found = read("Last-Event-ID", text)
    except InvalidRequest as error:
        named = error.details["field"] if error.details else ""
        assert named == "Last-Event-ID"
    else:
        assert all(0 <= place.seq <= MAX_SEQ for places in found.entries.values() for place in places)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_cursor_or_refused(raw: bytes) -> None:
    text = base64.urlsafe_b64encode(b"\x01\x00" + raw).rstrip(b"=").decode()
    try:
        found = read("cursor", text)
    except InvalidRequest:
        return
    assert sum(map(len, found.entries.values())) * 8 <= len(raw)
    assert all(0 <= place.seq <= MAX_SEQ for places in found.entries.values() for place in places)


@given(st.dictionaries(KEYS, PLACES, min_size=1, max_size=5), st.data())
def test_a_cursor_that_was_cut_short_never_says_more_than_the_whole(
    places: dict[RunKey, Place], data: st.DataObject
) -> None:
    text = tally_of(places).text().decode()
    part = text[: data.draw(st.integers(1, len(text) - 1))]
    try:
        found = read("cursor", part)
    except InvalidRequest:
        return
    assert all(found.place(key, places) in (place, Place()) for key, place in places.items())


@pytest.mark.parametrize(
    "text",
    [
        "A" * 20_000,  # longer than any
        "Ag",  # another version
        "AQ",  # no mark
        "AQCA",  # a hash without its seq
        "AQ==",
        "AQ+/",
        "12345",
        base64.urlsafe_b64encode(b"\x01\x00" + b"x" * 7 + b"\xff" * 10).decode().rstrip("="),  # a number without end
        base64.urlsafe_b64encode(b"\x01\x00" + b"x" * 7 + b"\xff" * 9 + b"\x7f").decode().rstrip("="),  # 70 bits
        base64.urlsafe_b64encode(b"\x01\x00" + (b"x" * 7 + b"\x00") * 1025).decode().rstrip("="),
    ],
)
def test_what_is_no_cursor(text: str) -> None:
    with pytest.raises(InvalidRequest):
        read("cursor", text)


def test_nothing_is_the_beginning() -> None:
    assert read("cursor", None) == read("cursor", "") == Vector()
    assert read("cursor", Tally().text().decode()).entries == {}


@given(st.dictionaries(KEYS, PLACES, max_size=8), st.dictionaries(KEYS, PLACES, max_size=8))
def test_the_later_of_two_counts_run_by_run(one: dict[RunKey, Place], other: dict[RunKey, Place]) -> None:
    both = later(read("a", tally_of(one).text().decode()), read("b", tally_of(other).text().decode()))
    for key in {*one, *other}:
        assert both.place(key) == max(one.get(key, Place()), other.get(key, Place()))


@given(st.dictionaries(KEYS, PLACES, max_size=10), st.data())
def test_what_the_old_cursor_says_of_runs_not_met_yet_is_said_on(
    before: dict[RunKey, Place], data: st.DataObject
) -> None:
    cursor = read("cursor", tally_of(before, 7).text().decode())
    tally = Tally(cursor)
    met = {key: data.draw(PLACES) for key in before if data.draw(st.booleans())}
    for key, place in met.items():
        tally.put(key, place)
    found = read("cursor", tally.text().decode())
    assert found.mark == 7
    assert {key: found.place(key, before) for key in before} == {**before, **met}
    tally.settle()
    found = read("cursor", tally.text().decode())
    assert {key: found.place(key, before) for key in before} == {key: met.get(key, Place()) for key in before}


# ── collisions ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def colliding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first letter of a run id counts: collisions everywhere."""
    monkeypatch.setattr(vector, "_hash", lambda key: key.run_id[:1].encode() * 7)


A1, A2, A3, B = (RunKey("main", name) for name in ("a1", "a2", "a3", "b"))


@pytest.mark.usefixtures("colliding")
def test_of_colliding_runs_the_earliest_place_is_written_for_all() -> None:
    places = {A1: Place(10), A2: Place(7, True), B: Place(3)}
    found = read("cursor", tally_of(places).text().decode())
    assert [found.place(key, places) for key in places] == [Place(7, True), Place(7, True), Place(3)]


@pytest.mark.usefixtures("colliding")
def test_a_run_that_was_not_in_the_cursor_never_gets_the_place_of_one_it_collides_with() -> None:
    found = read("cursor", tally_of({A1: Place(10), A2: Place(7)}).text().decode())
    assert [found.place(key, [A1, A2, A3]) for key in (A1, A2, A3)] == [Place(), Place(), Place()]
    alone = read("cursor", tally_of({A1: Place(10)}).text().decode())
    assert alone.place(A1, [A1, B]) == Place(10)
    assert alone.place(A1, [A1, A2]) == Place()


@pytest.mark.usefixtures("colliding")
def test_of_colliding_runs_one_of_which_was_met_neither_loses_its_place() -> None:
    tally = Tally(read("cursor", tally_of({A1: Place(10), A2: Place(7)}).text().decode()))
    tally.put(A1, Place(12))
    found = read("cursor", tally.text().decode())
    assert [found.place(key, [A1, A2]) for key in (A1, A2)] == [Place(7), Place(7)]


@pytest.mark.usefixtures("colliding")
def test_a_collision_that_goes_leaves_the_other_its_own_place() -> None:
    tally = tally_of({A1: Place(10), A2: Place(7)})
    tally.drop(A2)
    assert read("cursor", tally.text().decode()).place(A1) == Place(10)
