"""Reads a recorded run, one JSON object a line: `{"seq", "type", "data", "dt_ms"}`, and gives it as a script to play.

A line that is not that is refused with its file, its number and what is wrong; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from relay.demo.script import Script, Step


class RecordingError(ValueError):
    """A recording that cannot be played; the text names file and line."""


def read_recording(path: Path | str) -> Script:
    """The recorded run as a script, its seqs and pacing kept. Raises `RecordingError`, `OSError`."""
    path = Path(path)
    steps: list[Step] = []
    last = 0
    for where, raw in _lines(path):
        seq, step = _step(raw, where)
        if seq <= last:
            raise RecordingError(f"{where}: seq {seq} does not follow {last}")
        last = seq
        steps.append(step)
    if not steps:
        raise RecordingError(f"{path}: no events")
    return Script(path.stem, tuple(steps))


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    # Split at LF only: U+2028 and friends are text inside JSON, not line ends.
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        if raw.strip():
            yield f"{path} line {number}", raw


def _step(raw: bytes, where: str) -> tuple[int, Step]:
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RecordingError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise RecordingError(f"{where}: not an object")
    seq = _field(row, "seq", int, where)
    dt_ms = _field(row, "dt_ms", (int, float), where)
    if seq < 1 or dt_ms < 0:
        raise RecordingError(f"{where}: seq must be at least 1 and dt_ms at least 0, got {seq} and {dt_ms}")
    return seq, Step(_field(row, "type", str, where), _field(row, "data", dict, where), dt_ms, seq)


def _field(row: dict[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    value = row.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RecordingError(f"{where}: `{name}` is missing or wrong: {value!r}")
    return value
