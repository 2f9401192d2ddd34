"""What an HTTP refusal of an upstream means to us: by status, with the words and the code it gave if they can be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from relay.core.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    RelayError,
    TooLarge,
    TooManyRequests,
    UpstreamError,
    UpstreamUnavailable,
)

_ERRORS: Final[dict[int, type[RelayError]]] = {
    400: InvalidRequest,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: InvalidRequest,
    429: TooManyRequests,
    502: UpstreamUnavailable,
    503: UpstreamUnavailable,
    504: UpstreamUnavailable,
}
_CODE = re.compile(r"[a-z0-9_]{1,40}(\.[a-z0-9_]{1,40}){0,3}", re.ASCII)


def refused(
    status: int,
    headers: Mapping[str, str],
    *,
    message: object = None,
    code: object = None,
    details: dict[str, Any] | None = None,
) -> RelayError:
    """`message` and `code` are the upstream's, whatever they are; ours stand in for what cannot be shown."""
    words = str(message or f"the upstream answered {status}")[:500]
    if status == 401:
        # It is our service token that was refused, not the caller's: never pass that on as the caller's fault.
        return UpstreamError("the upstream refused the relay's credentials", code="upstream.unauthorized")
    kind = _ERRORS.get(status)
    if kind is None:
        return UpstreamError(words, code="upstream.error", details={"upstream_status": status})
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        code = kind.code
    return kind(words, code=code, details=details, retry_after_s=_retry_after(headers))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After", "")
    return min(float(text), 3600.0) if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) else None
