"""What an event is, on its way in (Draft) and once it has its place in a run (Event).

A Draft is what a provider read from its wire; it is numbered and encoded exactly once, by `core.run`. An Event is
immutable and carries its native JSON as bytes, so that nobody down the road encodes it again.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

import msgspec

MAX_SEQ: Final = 2**63 - 1

_ENCODE: Final = msgspec.json.Encoder().encode
_DECODE: Final = msgspec.json.Decoder().decode

FINAL_STATUS: Final = {
    "run.completed": "completed",
    "run.failed": "failed",
    "run.cancelled": "cancelled",
    "run.interrupted": "interrupted",
}
"""Native types that end a run, and the status they end it with (docs/upstreams/arkloop.md)."""

MOVING_STATUS: Final = {
    "run.started": "running",
    "run.waiting_for_input": "waiting_for_input",
    "run.input_provided": "running",
    "run.resumed": "running",
    "run.cancel_requested": "cancelling",
}
"""Native types that change the status of a run that goes on."""

TERMINAL: Final = frozenset(FINAL_STATUS.values())


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event of a run: `json` is the native event, one line of UTF-8 JSON."""

    seq: int
    type: str
    json: bytes


class Draft(msgspec.Struct, gc=False):
    """An event as a provider read it: `body` is the native event, complete but for a seq we may have to give.

    `seq` is the upstream's own number where it numbers durably, else None.
    """

    seq: int | None
    type: str
    body: dict[str, Any]


def is_final(kind: str, data: object) -> bool:
    """Whether an event ends its run; a nested agent's end (`delegate_layer` "acp") does not."""
    if kind not in FINAL_STATUS:
        return False
    return not (isinstance(data, dict) and data.get("delegate_layer") == "acp")


def encode(body: object) -> bytes:
    """One line of JSON. Lone surrogates are written escaped. Raises ValueError for what is nested too deeply."""
    try:
        return _ENCODE(body)
    except UnicodeEncodeError:
        return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def decode(data: bytes) -> Any:
    """Any JSON value, every number as it was; raises ValueError.

    What the fast reader refuses but JSON allows (lone surrogates), and bytes that are not all UTF-8, the standard
    library reads.
    """
    try:
        return _DECODE(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _slowly(data.decode("utf-8", "replace"))


def _slowly(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number beyond what a double can hold")
    return number
