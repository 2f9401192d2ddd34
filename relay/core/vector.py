"""The cursor of a reader of many runs: one short, opaque, URL-safe text that says how far it is in each of them.

Layout, before base64url without padding: a version byte, a mark (varint; see `Vector.mark`), then for each run seven
bytes of a hash of its full name and a varint of `seq * 2 + told`. A hundred runs take about 1,200 characters, and 2,002
with the largest seqs we give (a generation begins at a clock's microseconds).

Seven bytes are no proof of a name. Runs of one cursor whose hashes collide are each written with the smallest of their
seqs, and where fewer entries of a hash are found than runs are asked for, all of them begin at zero: a collision costs
repeats, which readers of many runs drop by run_id and seq, and never an event.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from relay.core.errors import InvalidRequest
from relay.core.events import MAX_SEQ
from relay.core.ids import RunKey

_VERSION: Final = b"\x01"
_HASH_BYTES: Final = 7
_VARINT_BYTES: Final = 10
_TEXT: Final = re.compile(r"[A-Za-z0-9_-]{2,16000}", re.ASCII)
_MOST_ENTRIES: Final = 1024
ALLOWED: Final = "an id: of this resource, unchanged"


class Place(NamedTuple):
    """How far a reader is in one run."""

    seq: int = 0
    """The last seq it has seen."""
    told: bool = False
    """Whether it was told that the run has ended there."""


class Vector(NamedTuple):
    """A cursor that was read."""

    entries: Mapping[bytes, tuple[Place, ...]] = {}
    mark: int = 0
    """Of a thread's cursor: the reader knows all runs made up to then, in unix microseconds; 0 for none."""

    def knows(self, key: RunKey) -> bool:
        return _hash(key) in self.entries

    def reads_beyond(self, keys: Iterable[RunKey]) -> bool:
        """Whether it speaks of a run that had not ended, and is none of these."""
        names = {_hash(key) for key in keys}
        return any(not place.told for name, places in self.entries.items() if name not in names for place in places)

    def place(self, key: RunKey, others: Iterable[RunKey] = ()) -> Place:
        """The place in one run; `others` are all runs the reader asks for, so that collisions are seen."""
        found = self.entries.get(name := _hash(key), ())
        sharing = {other for other in others if _hash(other) == name} | {key}
        return _earliest(found) if len(found) >= len(sharing) else Place()


class Tally:
    """Where a reader is in each of its runs, kept so that the text for all of them is made quickly, again and again.

    `before`: the cursor it came with. What that says of runs we have not met yet is said on, until `settle`: a reader who
    leaves while they are still looked for must not lose its place in them.
    """

    def __init__(self, before: Vector | None = None) -> None:
        self.mark = before.mark if before is not None else 0
        self._before = {name: list(places) for name, places in before.entries.items()} if before is not None else {}
        self._places: dict[RunKey, Place] = {}
        self._hashes: dict[RunKey, bytes] = {}
        self._sharing: dict[bytes, set[RunKey]] = {}
        self._entries: dict[RunKey, bytes] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: RunKey) -> bool:
        return key in self._places

    def put(self, key: RunKey, place: Place) -> None:
        """This is how far the reader is in this run now."""
        name = self._hashes.get(key)
        if name is None:
            name = self._hashes[key] = _hash(key)
            self._sharing.setdefault(name, set()).add(key)
            self._met(name)
        self._places[key] = place
        self._write(name)

    def drop(self, key: RunKey) -> None:
        """The reader's next cursor says nothing of this run."""
        if self._places.pop(key, None) is None:
            return
        name = self._hashes.pop(key)
        del self._entries[key]
        self._sharing[name].discard(key)
        self._write(name)

    def settle(self) -> None:
        """All runs there are were met: forget what else the old cursor spoke of."""
        self._before.clear()

    def _met(self, name: bytes) -> None:
        places = self._before.get(name)
        if places is not None:
            places.pop()
            if not places:
                del self._before[name]

    def told(self, key: RunKey) -> bool:
        """Whether the reader knows that this run has ended."""
        return self._places.get(key, Place()).told

    def text(self) -> bytes:
        raw = b"".join((_VERSION, _varint(self.mark), *self._entries.values(), *self._unmet()))
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    def _unmet(self) -> list[bytes]:
        return [_entry(name, place) for name, places in self._before.items() for place in places]

    def _write(self, name: bytes) -> None:
        sharing = self._sharing[name]
        if not sharing:
            del self._sharing[name]
            return
        place = _earliest([self._places[key] for key in sharing])
        entry = _entry(name, place)
        for key in sharing:
            self._entries[key] = entry


def read(field: str, text: str | None) -> Vector:
    """A cursor from outside; absent or empty is the beginning of everything, any other text an InvalidRequest."""
    if not text:
        return Vector()
    try:
        return _parsed(text)
    except ValueError as error:
        raise InvalidRequest.field(field, "not a cursor", ALLOWED) from error


def later(one: Vector, other: Vector) -> Vector:
    """Whichever is further, run by run: a browser keeps its URL, and so an old cursor, when it reconnects."""
    entries = dict(one.entries)
    for name, places in other.entries.items():
        known = entries.get(name, ())
        entries[name] = places if not known or _earliest(places) > _earliest(known) else known
    return Vector(entries, max(one.mark, other.mark))


def _parsed(text: str) -> Vector:
    if not _TEXT.fullmatch(text) or len(text) % 4 == 1:
        raise ValueError("not base64url")
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if raw[:1] != _VERSION:
        raise ValueError("another version")
    mark, at = _number(raw, 1)
    entries: dict[bytes, tuple[Place, ...]] = {}
    count = 0
    while at < len(raw):
        name = raw[at : at + _HASH_BYTES]
        number, at = _number(raw, at + _HASH_BYTES)
        entries[name] = (*entries.get(name, ()), Place(number >> 1, bool(number & 1)))
        count += 1
        if count > _MOST_ENTRIES or number >> 1 > MAX_SEQ:
            raise ValueError("beyond all bounds")
    return Vector(entries, mark)


def _earliest(places: Iterable[Place]) -> Place:
    return min(places, default=Place())


def _hash(key: RunKey) -> bytes:
    return hashlib.blake2b(str(key).encode(), digest_size=_HASH_BYTES).digest()


def _entry(name: bytes, place: Place) -> bytes:
    return name + _varint(place.seq * 2 + place.told)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the least first; the high bit says that more follow."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _number(raw: bytes, at: int) -> tuple[int, int]:
    """The varint at this place, and where it ends. Raises ValueError if it does not, or has more than 64 bits."""
    number = 0
    for offset, byte in enumerate(raw[at : at + _VARINT_BYTES]):
        number |= (byte & 0x7F) << (7 * offset)
        if byte < 0x80:
            if number >= 1 << 64:
                break
            return number, at + offset + 1
    raise ValueError("a broken number")
