"""What Redis answers, as ours: entries of streams as events, replies as text."""

from __future__ import annotations

from typing import Any

from relay.core.events import Event


def event_of(entry: tuple[bytes, Any]) -> Event:
    """An entry of a log (or of an `old` stream), as redis-py or as a script gives it."""
    stream_id, fields = entry
    if isinstance(fields, dict):
        return Event(int(stream_id[:-2]), fields[b"type"].decode(), fields[b"event"])
    return Event(int(stream_id[:-2]), fields[1].decode(), fields[3])


def text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
