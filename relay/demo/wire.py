"""The Arkloop wire as bytes: frames, times, ids, query values, refusals (arkloop.md sections 1.1, 1.8 and 2.2).

Pure, and independent of the rest of relay on purpose: tests take these bytes as the truth that relay is checked against,
so nothing here may share code with the side that reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

PING = b": ping\n\n"
TERMINAL = frozenset({"run.completed", "run.failed", "run.cancelled", "run.interrupted"})
INT64_MAX = 2**63 - 1

# Go's encoding/json escapes these five; in valid JSON their bytes occur inside strings only.
_GO_ESCAPES = (
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    (b"&", b"\\u0026"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)
# uuid.Parse of Go: dashed, bare 32 hex digits, in braces, or as a URN.
_UUID = re.compile(
    r"(?:urn:uuid:)?\{?([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})\}?", re.I
)
_SCANNED_INT = re.compile(r"[ \t]*([+-]?[0-9]+)")
_FOLLOW = {"": True, "true": True, "1": True, "false": False, "0": False}


class Refusal(Exception):
    """An answer other than success: the error envelope of section 1.1."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.headers = dict(headers or {})

    def body(self, trace_id: str) -> bytes:
        """The envelope, keys in the order of the real server; `details` only where there are any."""
        envelope: dict[str, Any] = {"code": self.code, "message": self.message, "trace_id": trace_id}
        if self.details is not None:
            envelope["details"] = dict(self.details)
        return orjson.dumps(envelope)


def invalid(message: str) -> Refusal:
    """What every malformed id, query value or body is answered with."""
    return Refusal(422, "validation.error", message)


def to_json(value: object) -> bytes:
    """JSON as the real server writes it: keys sorted, `< > &` and U+2028/9 escaped, other text raw UTF-8."""
    raw = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    for plain, escaped in _GO_ESCAPES:
        raw = raw.replace(plain, escaped)
    return raw


def timestamp(at: datetime, digits: int = 3) -> str:
    """RFC 3339 in UTC with at most `digits` decimals and trailing zeros cut: `…:07Z`, `…:07.12Z`."""
    at = at.astimezone(UTC)
    fraction = f"{at.microsecond:06d}"[:digits].rstrip("0")
    return at.strftime("%Y-%m-%dT%H:%M:%S") + (f".{fraction}" if fraction else "") + "Z"


def frame(seq: int, kind: str, event: bytes) -> bytes:
    """One event on the stream."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (seq, kind.encode(), event)


def frame_json(framed: bytes) -> bytes:
    """The event JSON inside a frame made by `frame`."""
    return framed[framed.index(b"\ndata: ") + 7 : -2]


def is_terminal(kind: str, data: object) -> bool:
    """Whether this event ends its run. A nested agent's end (`delegate_layer` acp) does not (section 0, fact 5)."""
    if kind not in TERMINAL:
        return False
    if isinstance(data, bytes):
        data = json.loads(data)
    return not (isinstance(data, Mapping) and data.get("delegate_layer") == "acp")


def canonical_uuid(text: str) -> str | None:
    """The dashed lower-case form of anything Go's `uuid.Parse` takes, else None."""
    found = _UUID.fullmatch(text)
    return "-".join(found.groups()).lower() if found else None


def after_seq(text: str) -> int:
    """`after_seq` as Go's `%d` scan reads it: `12abc` is 12, `5.9` is 5, blank is 0. Raises `Refusal` 422."""
    if not text.strip():
        return 0
    found = _SCANNED_INT.match(text)
    number = int(found.group(1)) if found else -1
    if not 0 <= number <= INT64_MAX:
        raise invalid("after_seq must be a non-negative integer")
    return number


def follow(text: str) -> bool:
    """`follow`: true|1 (and blank), false|0; anything else is refused."""
    try:
        return _FOLLOW[text]
    except KeyError:
        raise invalid("follow must be true or false") from None


def bounded(text: str | None, name: str, default: int, low: int, high: int) -> int:
    """A whole number of a list query within its bounds. Raises `Refusal` 422."""
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,18}", text) or not low <= int(text) <= high:
        raise invalid(f"{name} must be an integer between {low} and {high}")
    return int(text)
