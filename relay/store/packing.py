"""Commands as they go over the wire (RESP); of the two that every event takes, all that stays the same is packed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from relay.core.events import Event

Command = tuple[str | bytes | int, ...]


def packed(command: Command) -> bytes:
    """A whole command."""
    words = [word if type(word) is bytes else str(word).encode() for word in command]
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def words(*values: str | bytes | int) -> bytes:
    """Some words of a command, without its head."""
    return packed(values).partition(b"\n")[2]


def packed_append(head: bytes, prev: int, limits: bytes, fields: Mapping[str, str], events: Sequence[Event]) -> bytes:
    """lua/append.lua. `head`: EVALSHA, the script, its keys, owner and fence. `limits`: live_ms and cap (0: no look)."""
    at = b"%d" % prev
    parts = [
        b"*%d\r\n" % (12 + 2 * len(fields) + 3 * len(events)), head, b"$%d\r\n%b\r\n" % (len(at), at), limits
    ]  # fmt: skip
    parts.append(words(len(fields), *[part for field in fields.items() for part in field]) if fields else _NO_FIELDS)
    kinds = _KINDS
    for event in events:
        seq, json = b"%d" % event.seq, event.json
        kind = kinds.get(event.type) or _packed_kind(event.type)
        parts.append(
            b"$%d\r\n%b\r\n%b$%d\r\n%b\r\n" % (len(seq), seq, kind, len(json), json)
        )  # one format for all three: each call costs more than what it does
    return b"".join(parts)


def _packed_kind(kind: str) -> bytes:
    """An event's type as a word, remembered: there are few, but their names are the upstream's."""
    if len(_KINDS) >= _MOST_KINDS:
        _KINDS.clear()
    if len(kind) > _KIND_LETTERS:
        return words(kind.encode("utf-8", "replace"))
    word = _KINDS[kind] = words(kind.encode("utf-8", "replace"))
    return word


_NO_FIELDS = words(0)
_KINDS: dict[str, bytes] = {}
_MOST_KINDS = 512
_KIND_LETTERS = 128


def packed_range(head: bytes, after: int, most: int) -> bytes:
    """XRANGE behind `after`. `head`: the command and its key."""
    start, count = b"(%d-0" % after, b"%d" % most
    return b"*6\r\n%b$%d\r\n%b\r\n$1\r\n+\r\n$5\r\nCOUNT\r\n$%d\r\n%b\r\n" % (
        head, len(start), start, len(count), count
    )  # fmt: skip
