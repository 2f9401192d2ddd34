"""Names of runs, threads and upstreams: the only spellings that may reach a URL, a Redis key or a log line.

aiohttp decodes `%2F` inside a path parameter, so an unchecked id is a path traversal with our service token; whatever
comes from outside passes through here first.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from relay.core.errors import InvalidRequest

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_UPSTREAM = re.compile(r"[a-z0-9-]{1,32}", re.ASCII)

ID_ALLOWED = "1 to 128 of A-Z a-z 0-9 _ -"
UPSTREAM_ALLOWED = "1 to 32 of a-z 0-9 -"


class RunKey(NamedTuple):
    """A run, named fleet-wide: run ids are unique only within their upstream."""

    upstream: str
    run_id: str

    def __str__(self) -> str:
        return f"{self.upstream}/{self.run_id}"


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def is_upstream_name(text: str) -> bool:
    return _UPSTREAM.fullmatch(text) is not None


def checked_id(field: str, text: str) -> str:
    """The id itself, or InvalidRequest that names the field (and never echoes hostile text)."""
    if _ID.fullmatch(text) is None:
        raise InvalidRequest.field(field, "not a valid id", ID_ALLOWED)
    return text


def checked_upstream(field: str, text: str) -> str:
    if not is_upstream_name(text):
        raise InvalidRequest.field(field, "not a valid upstream name", UPSTREAM_ALLOWED)
    return text
