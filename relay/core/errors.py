"""Every error this project raises, on one screen: whose fault it is, and whether trying again is useful.

Foreign exceptions (aiohttp, redis, OSError) are translated into these where they enter, with the cause chained.
The wire form of an error is the envelope `{"code", "message", "details"?, "trace_id"}`; `status` is its HTTP status.
"""

from __future__ import annotations

from typing import Any, ClassVar


class RelayError(Exception):
    """The base: a code of the public contract, a sentence for people, and what a program may want to know."""

    status: ClassVar[int] = 500
    code: str = "internal.error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        details: dict[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.details = details
        self.retry_after_s = retry_after_s
        if retry_after_s is None and self.status in (429, 503):
            self.retry_after_s = 2.0  # "not now" must always say when to come back


# --- the caller's fault: trying again unchanged is useless ---------------------------------------------------------
class ConfigError(RelayError):
    """The configuration cannot be used. The process says so in one line and exits with status 2."""

    code = "config.invalid"


class InvalidRequest(RelayError):
    """A field of the request is wrong; `details` names the field, the problem and what is allowed."""

    status = 422
    code = "validation.error"

    @classmethod
    def field(cls, field: str, problem: str, allowed: str) -> InvalidRequest:
        return cls(f"{field}: {problem}", details={"field": field, "problem": problem, "allowed": allowed})


class Unauthenticated(RelayError):
    status = 401
    code = "auth.missing_token"


class Forbidden(RelayError):
    status = 403
    code = "auth.forbidden"


class NotFound(RelayError):
    status = 404
    code = "runs.not_found"


class MethodNotAllowed(RelayError):
    status = 405
    code = "http.method_not_allowed"


class NotAcceptable(RelayError):
    status = 406
    code = "http.not_acceptable"


class Conflict(RelayError):
    status = 409
    code = "runs.not_active"


class TooLarge(RelayError):
    status = 413
    code = "http.request_too_large"


class UnsupportedMediaType(RelayError):
    status = 415
    code = "http.unsupported_media_type"


class VersionNotSupported(RelayError):
    status = 505
    code = "http.version_not_supported"


# --- nobody's fault: trying again later is useful ------------------------------------------------------------------
class TooManyRequests(RelayError):
    status = 429
    code = "limits.exceeded"


class Overloaded(RelayError):
    """We are full, or going away. Always carries `retry_after_s`."""

    status = 503
    code = "limits.connections"


class StoreUnavailable(RelayError):
    """Redis is away (unreachable, loading, read-only, out of memory…). Nothing was lost; try again."""

    status = 503
    code = "store.unavailable"


# --- the upstream's fault ------------------------------------------------------------------------------------------
class UpstreamError(RelayError):
    """The upstream answered with something that is none of its documented answers."""

    status = 502
    code = "upstream.error"


class Unsupported(RelayError):
    """The upstream has no such call. Trying again is useless until it gets one."""

    status = 501
    code = "upstream.unsupported"


class UpstreamUnavailable(RelayError):
    """The upstream cannot be reached or says it is overloaded; try again."""

    status = 503
    code = "upstream.unavailable"


class UpstreamTimeout(RelayError):
    status = 504
    code = "upstream.timeout"


# --- between our own parts ------------------------------------------------------------------------------------------
class LeaseLost(RelayError):
    """Another owner writes this run now (or the run's state is gone): stop, and claim again if it is still wanted."""

    code = "lease.lost"


class Unwanted(RelayError):
    """Nobody wants this run pumped any more: give it up."""

    code = "lease.unwanted"


class LogMoved(RelayError):
    """The log's end is not where its writer thought (a flush, a failover, an unknown outcome): resume from its end."""

    code = "log.moved"


class StartupError(RelayError):
    """The process cannot start (port in use, Redis unreachable). One line and exit status 1."""

    code = "startup.failed"
