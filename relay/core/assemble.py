"""Observations in, native events out: each thing once, in order, whatever is seen twice, late or in other pieces.

The ingest cursor is all that must be remembered of a run to go on after a crash: per text part how much of it was
emitted and a checksum of that, per tool call what was said of it, how many nameless things have passed. It is written in
the same script call as the events it stands for (`changes`), a few fields per append however long the run is; no text is
kept. Text is measured in UTF-16, so that a surrogate pair cut in two between deltas is the same text as the pair.

Laws (C1 of the SeekrFlow/Minds reference): `run.started` first and once; one final event, last; a replay is aligned by the
ordinal of the text part (or its name, where names last) and by tool call id; who joined late appends no deltas; text that
contradicts what was emitted is told by `message.reset`, never rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from typing import Any, Final
from zlib import crc32

import msgspec

from relay.core.events import FINAL_STATUS, Draft, encode
from relay.core.observed import (
    Asked,
    Break,
    Call,
    Extra,
    Observation,
    Opens,
    Outcome,
    Snapshot,
    Started,
    Text,
    Texts,
)

FIELD: Final = "ingest_cursor"
"""The run hash field of the cursor's head; `ingest_cursor:<generation>:<what>` are its parts and tools."""
_HELD: Final = 8 * 1_048_576
"""Most bytes of a replayed part kept until it is known to agree with what was emitted."""
_NAME: Final = 120
_QUEUED: Final = ("queued", "")


class Head(msgspec.Struct):
    """The small part of the cursor, written with every append."""

    seq: int = 0
    """The last seq these words are true of: if the log ends elsewhere, rows were lost."""
    generation: int = 1
    """The first seq of this life of the log."""
    started: bool = False
    ended: bool = False
    extras: int = 0
    at: str = ""
    """`created_at` of the last event, below which none may fall."""


class _Part:
    __slots__ = ("crc", "size")

    def __init__(self, size: int = 0, crc: int = 0) -> None:
        self.size = size
        """Bytes of UTF-16 that were emitted."""
        self.crc = crc


class _Reading:
    """One part as this connection brings it, from its beginning."""

    __slots__ = ("crc", "held", "size")

    def __init__(self) -> None:
        self.size = 0
        self.crc = 0
        self.held: bytearray | None = bytearray()
        """What was read, until it has caught up with what was emitted, or is too much to keep; None from then on."""


class Assembler:
    """One run's events in the making. Not to be used on after an append failed: restore it from what is durable."""

    def __init__(self, run_id: str, *, named_parts: bool, generation: int = 1) -> None:
        self.run_id = run_id
        self.head = Head(seq=generation - 1, generation=generation)
        self.late = False
        """This connection joined in the middle: its text has no place."""
        self.said_failed: str | None = None
        """What a stream said of a failure, should the run turn out to have failed."""
        self.contradictions = 0
        self._named = named_parts
        self._parts: dict[str, _Part] = {}
        self._tools: dict[str, str] = {}
        """Per tool call: c (called), r (result), w (waited for)."""
        self._dirty: set[str] = set()
        self.connected()

    @classmethod
    def restored(cls, run_id: str, fields: Mapping[str, str], *, named_parts: bool) -> Assembler | None:
        """As it was when these fields were written; None if they hold no cursor, or a broken one."""
        try:
            head = msgspec.json.decode(fields.get(FIELD, ""), type=Head)
            made = cls(run_id, named_parts=named_parts, generation=head.generation)
            made.head = head
            for name, value in fields.items():
                made._remember(name.removeprefix(f"{FIELD}:{head.generation}:"), value)
        except (msgspec.MsgspecError, ValueError):
            return None
        return made

    def _remember(self, what: str, value: str) -> None:
        if what.startswith("p:"):
            size, crc = value.split()
            self._parts[what[2:]] = _Part(int(size), int(crc))
        elif what.startswith("t:"):
            self._tools[what[2:]] = value

    @property
    def status(self) -> str:
        return "running" if self.head.started else "queued"

    def connected(self) -> None:
        """A new stream begins: nothing of the last one's names and positions is true of it."""
        self.late = False
        self.sure = False
        """Whether this connection has shown where it begins."""
        self._lanes: dict[str, int] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._readings: dict[str, _Reading] = {}
        self._extras = 0

    def joins(self, *, late: bool) -> None:
        """Where the stream begins is known without looking at it."""
        self.late = late
        self.sure = True

    def changes(self, last_seq: int) -> dict[str, str]:
        """The fields of the run hash that make the cursor true of a log that ends with `last_seq`."""
        self.head.seq = last_seq
        prefix = f"{FIELD}:{self.head.generation}:"
        fields = {FIELD: encode(msgspec.structs.asdict(self.head)).decode()}
        for what in sorted(self._dirty):
            kind, key = what[0], what[2:]
            part = self._parts.get(key)
            if kind == "t":
                fields[prefix + what] = self._tools[key]
            elif part is not None:
                fields[prefix + what] = f"{part.size} {part.crc}"
        self._dirty.clear()
        return fields

    # --- observations -----------------------------------------------------------------------------------------------
    def take(self, seen: Iterable[Observation], now: str) -> list[Draft]:
        """The events these bring; `now` (RFC 3339, UTC) is when they were seen."""
        drafts: list[Draft] = []
        for one in seen:
            if self.head.ended:
                break
            make = _TAKE.get(type(one))
            if make is not None:
                drafts += make(self, one, now)
        return drafts

    def replayed(self, seen: Iterable[Observation], now: str) -> list[Draft]:
        """The same for what a stream brings. Its first observation tells whether it begins at the beginning."""
        found = list(seen)
        if found and not self.sure:
            self.sure = True
            self.late = not any(isinstance(one, Opens) for one in found[:2])
        return self.take(found, now)

    def gap(self, reason: str, now: str) -> list[Draft]:
        """Something of this run could not be had, and readers must know."""
        if self.head.ended:
            return []
        return [*self._started(now, None), self._draft("run.gap", {"reason": reason}, now, synthesized=True)]

    def finish(self, status: str, data: dict[str, Any], now: str, *, at: str | None = None) -> list[Draft]:
        """The one final event; nothing comes after it."""
        if self.head.ended:
            return []
        kind = next((name for name, value in FINAL_STATUS.items() if value == status), "run.failed")
        drafts = [*self._started(now, None), self._draft(kind, data, now, at=at)]
        self.head.ended = True
        return drafts

    # --- one kind each ----------------------------------------------------------------------------------------------
    def _on_started(self, seen: Started, now: str) -> list[Draft]:
        return self._started(now, seen.at)

    def _on_break(self, seen: Break, _now: str) -> list[Draft]:
        self._names = {at: key for at, key in self._names.items() if at[1] != seen.name}
        return []

    def _on_text(self, seen: Text, now: str) -> list[Draft]:
        if not seen.whole and (self.late or not seen.text):  # an empty delta opens no part: a replay may leave it out
            return []
        key = self._key(seen)
        data = _units(seen.text)
        if seen.whole:
            return self._whole(key, data, seen, now)
        reading = self._readings.setdefault(key, _Reading())
        return self._delta(key, reading, data, seen, now)

    def _on_call(self, seen: Call, now: str) -> list[Draft]:
        key = _short(seen.id)
        if "c" in self._tools.get(key, ""):
            return []
        self._tool(key, "c")
        body = {"tool_call_id": seen.id, "tool_name": seen.name, "arguments": seen.arguments, **seen.data}
        return [*self._started(now, None), self._draft("tool.call", body, now, at=seen.at)]

    def _on_outcome(self, seen: Outcome, now: str) -> list[Draft]:
        key = _short(seen.id)
        if "r" in self._tools.get(key, ""):
            return []
        drafts = self._on_call(seen.call, now) if seen.call is not None else []
        self._tool(key, "r")
        body: dict[str, Any] = {"tool_call_id": seen.id, "result": seen.output, **seen.data}
        if seen.error is not None:
            body |= {"is_error": True, "error": seen.error}
        return [*drafts, *self._started(now, None), self._draft("tool.result", body, now, at=seen.at)]

    def _on_asked(self, seen: Asked, now: str) -> list[Draft]:
        keys = [_short(one) for one in seen.ids]
        if all("w" in self._tools.get(key, "") for key in keys):
            return []
        for key in keys:
            self._tool(key, "w")
        return [*self._started(now, None), self._draft("run.waiting_for_input", dict(seen.data), now, at=seen.at)]

    def _on_extra(self, seen: Extra, now: str) -> list[Draft]:
        self._extras += 1
        if self.late or self._extras <= self.head.extras:
            return []
        self.head.extras = self._extras
        return [*self._started(now, None), self._draft(seen.type, dict(seen.data), now)]

    def _on_snapshot(self, seen: Snapshot, now: str) -> list[Draft]:
        """All but the end, which is told when everything else has been (`finish`)."""
        if seen.started_at is None and (seen.status in _QUEUED or not seen.known):
            return []
        drafts = self._started(now, seen.started_at or seen.created_at)
        for call in seen.calls:
            drafts += self._on_call(call, now)
        if seen.calls and seen.status == "waiting_for_input":
            calls = [{"id": one.id, "name": one.name, "arguments": one.arguments} for one in seen.calls]
            drafts += self._on_asked(Asked(tuple(one.id for one in seen.calls), {"tool_calls": calls}), now)
        return drafts

    # --- text -------------------------------------------------------------------------------------------------------
    def _key(self, seen: Text) -> str:
        if self._named:
            return _short(f"{seen.lane}@{seen.name}")
        name = (seen.lane, seen.name)
        if name not in self._names:
            count = self._lanes.get(seen.lane, 0)
            self._lanes[seen.lane] = count + 1
            self._names[name] = _short(f"{seen.lane}#{count}")
        return self._names[name]

    def _delta(self, key: str, reading: _Reading, data: bytes, seen: Text, now: str) -> list[Draft]:
        part = self._parts.setdefault(key, _Part())
        behind = max(0, part.size - reading.size)
        if len(data) < behind:
            reading.size += len(data)
            reading.crc = crc32(data, reading.crc)
            _hold(reading, data)
            return []
        if behind == 0 and reading.size != part.size:
            return []  # another connection's text was reset meanwhile: the reconciliation at the end says what is true
        if crc32(data[:behind], reading.crc) != part.crc:
            return self._contradicted(key, reading, data, seen, now)
        reading.size += len(data)
        reading.crc = crc32(data, reading.crc)
        reading.held = None
        return self._emit(key, data[behind:], seen, now)

    def _contradicted(self, key: str, reading: _Reading, data: bytes, seen: Text, now: str) -> list[Draft]:
        drafts = self._reset(key, seen, now)
        if reading.held is None:  # not kept: the end of the run brings all of it
            return drafts
        full = bytes(reading.held) + data
        reading.size, reading.crc, reading.held = len(full), crc32(full), None
        return drafts + self._emit(key, full, seen, now)

    def _whole(self, key: str, data: bytes, seen: Text, now: str) -> list[Draft]:
        part = self._parts.get(key) or _Part()
        if len(data) >= part.size and crc32(data[: part.size]) == part.crc:
            return self._emit(key, data[part.size :], seen, now, synthesized=True)
        if len(data) < part.size and not seen.final:
            return []  # a view that lags behind the stream
        return self._reset(key, seen, now) + self._emit(key, data, seen, now, synthesized=True)

    def _emit(self, key: str, data: bytes, seen: Text, now: str, *, synthesized: bool = False) -> list[Draft]:
        if not data:
            return []
        part = self._parts.setdefault(key, _Part())
        part.size += len(data)
        part.crc = crc32(data, part.crc)
        self._dirty.add(f"p:{key}")
        body = {"content": data.decode("utf-16-le", "surrogatepass"), **self._place(key, seen)}
        kind = _DELTA.get(seen.lane.partition(":")[0], "message.delta")
        return [*self._started(now, None), self._draft(kind, body, now, at=seen.at, synthesized=synthesized)]

    def _reset(self, key: str, seen: Text, now: str) -> list[Draft]:
        """What was emitted of this part is not what the upstream says now."""
        self.contradictions += 1
        self._parts[key] = _Part()
        self._dirty.add(f"p:{key}")
        body = {**self._place(key, seen), "reason": "the upstream's text differs from what it sent before"}
        return [self._draft("message.reset", body, now, synthesized=True)]

    def _place(self, key: str, seen: Text) -> dict[str, Any]:
        lane, _, name = key.partition("@" if self._named else "#")
        role = {"role": "assistant"} if lane == "text" else {"lane": lane}
        return {"part": name, **role, **seen.data}

    # --- all messages, without names --------------------------------------------------------------------------------
    def _on_texts(self, seen: Texts, now: str) -> list[Draft]:
        """Messages against parts (C1 rule 5): as one long text; else message by message from the end; else the i-th."""
        whole = [_units(text) for text in seen.texts if text]
        parts = [self._parts[key] for key in self._text_keys()]
        rest = _rest_of(b"".join(whole), parts)
        if rest is not None:
            return self._append_rest(whole, rest, now)
        if not seen.final:
            return []
        skip = len(parts) - len(whole)
        if skip > 0 and _ends_alike(parts[skip:], whole):
            return self._each(whole, skip, now)
        return self._each(whole, 0, now)

    def _text_keys(self) -> list[str]:
        count = sum(1 for key in self._parts if key.startswith("text#"))
        return [f"text#{i}" for i in range(count)]

    def _each(self, whole: list[bytes], first: int, now: str) -> list[Draft]:
        drafts: list[Draft] = []
        for i, data in enumerate(whole, first):
            drafts += self._whole(f"text#{i}", data, _FINAL, now)
        return drafts

    def _append_rest(self, whole: list[bytes], start: int, now: str) -> list[Draft]:
        """Emit everything from byte `start` of all messages on: the end of the last part, then a part per message."""
        drafts: list[Draft] = []
        count, at = len(self._text_keys()), 0
        for data in whole:
            begin, at = max(start, at), at + len(data)
            if begin >= at:
                continue
            inside = begin > at - len(data) and count > 0
            index = count - 1 if inside else count
            count += not inside
            drafts += self._emit(f"text#{index}", data[begin - at :], _FINAL, now, synthesized=True)
        return drafts

    # --- small ------------------------------------------------------------------------------------------------------
    def _tool(self, key: str, mark: str) -> None:
        self._tools[key] = self._tools.get(key, "") + mark
        self._dirty.add(f"t:{key}")

    def _started(self, now: str, at: str | None) -> list[Draft]:
        if self.head.started:
            return []
        self.head.started = True
        return [self._draft("run.started", {}, now, at=at)]

    def _draft(
        self, kind: str, data: dict[str, Any], now: str, *, at: str | None = None, synthesized: bool = False
    ) -> Draft:
        self.head.at = max(self.head.at, at or now)  # all of one form, so they sort as text
        body: dict[str, Any] = {"seq": None, "type": kind, "data": data, "created_at": self.head.at}
        body["run_id"] = self.run_id
        if synthesized:
            body["synthesized"] = True
        return Draft(None, kind, body)


_FINAL: Final = Text("", whole=True, final=True)
_DELTA: Final = {"reasoning": "reasoning.delta", "nested": "nested.message.delta"}
_TAKE: Final[dict[type, Callable[[Assembler, Any, str], list[Draft]]]] = {
    Started: Assembler._on_started,
    Break: Assembler._on_break,
    Text: Assembler._on_text,
    Texts: Assembler._on_texts,
    Call: Assembler._on_call,
    Outcome: Assembler._on_outcome,
    Asked: Assembler._on_asked,
    Extra: Assembler._on_extra,
    Snapshot: Assembler._on_snapshot,
}


def final_data(seen: Snapshot, said_failed: str | None) -> dict[str, Any]:
    """What the final event tells of a run that ended as `seen` says."""
    data: dict[str, Any] = {"upstream_status": seen.raw_status}
    if seen.usage is not None:
        data["usage"] = seen.usage
    if seen.status == "failed":
        error = seen.error or {}
        data["reason"] = error.get("code") or seen.raw_status or "failed"
        message = error.get("message") or said_failed
        if message:
            data["message"] = message
    return data


def _units(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass")


def _short(name: str) -> str:
    """A name that may stand in a field: what is long, or no text at all, by its digest."""
    if len(name) <= _NAME and name.isprintable():
        return name
    return "sha256-" + sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _hold(reading: _Reading, data: bytes) -> None:
    if reading.held is not None:
        reading.held += data
        if len(reading.held) > _HELD:
            reading.held = None


def _rest_of(whole: bytes, parts: list[_Part]) -> int | None:
    """Where what was not emitted yet begins, if the parts together are a beginning of the whole."""
    at = 0
    for part in parts:
        if at + part.size > len(whole) or crc32(whole[at : at + part.size]) != part.crc:
            return None
        at += part.size
    return at


def _ends_alike(parts: list[_Part], whole: list[bytes]) -> bool:
    """Each message is what was emitted last, or goes on from there (intermediate text may be in no message)."""
    return all(
        len(data) >= part.size and crc32(data[: part.size]) == part.crc for part, data in zip(parts, whole, strict=True)
    )
