"""Who may come in: the one door for every route of every listener. Nothing is reached that this did not let through.

In this order, so that the cheapest refusal comes first and nothing hostile gets far: Host (DNS rebinding), bounds of the
query, Origin (pages of others, on WebSocket and on everything that acts), content type, credentials, what they allow.
Keys are compared by their hash, in constant time, against all of them. No credential is ever logged or echoed.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from aiohttp import hdrs, web

from relay.core.errors import Forbidden, InvalidRequest, RelayError, Unauthenticated, UnsupportedMediaType
from relay.core.ids import RunKey
from relay.web.options import AuthOptions, KeyOptions, ServerOptions
from relay.web.tokens import Tokens

QUERY_BYTES: Final = 4096
MANY_QUERY_BYTES: Final = 12_288
"""Where a query names many runs and may hold a cursor for all of them."""
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Access(enum.Enum):
    """What a route needs."""

    OPEN = "open"
    """Nothing: health, metrics, the dashboard's own files, the contracts."""
    VIEW = "view"
    """A key, or a viewer token of this run."""
    ACT = "act"
    """A key."""
    TALK = "talk"
    """As VIEW, but a WebSocket may come without credentials and send them as its first message."""
    ADMIN = "admin"
    """A key marked admin."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks."""

    name: str
    admin: bool = False
    run: RunKey | None = None
    """Set for a viewer token: the one run it may see."""
    expires_at: float | None = None
    """By our monotonic clock, so that a wall clock set later cuts nobody off and keeps nobody on; None for keys."""


_ANYONE: Final = Principal("anyone")
NOBODY: Final = Principal("nobody yet")
"""Of a WebSocket that has not sent its credentials yet. It may see nothing."""


class Admit:
    def __init__(self, server: ServerOptions, auth: AuthOptions, tokens: Tokens) -> None:
        self._mode = auth.mode
        self._keys: Sequence[KeyOptions] = auth.keys
        self._tokens = tokens
        self._any_host = "*" in server.allowed_hosts
        self._hosts = _LOOPBACK_NAMES | {server.host.lower()} | {host.lower() for host in server.allowed_hosts}
        self._origins = frozenset(origin.lower() for origin in server.cors_origins)

    def __call__(
        self, request: web.Request, access: Access, *, raw_key: bool = False, any_body: bool = False
    ) -> Principal:
        """The principal of a request that may come in; a RelayError for one that may not."""
        self.check_host(request)
        most = MANY_QUERY_BYTES if access is Access.TALK else QUERY_BYTES
        if len(request.raw_path) > most and len(request.rel_url.raw_query_string) > most:
            raise InvalidRequest.field("query", "too long", f"at most {most} bytes")
        if request.method not in (hdrs.METH_GET, hdrs.METH_HEAD) or _is_websocket(request):
            self._check_origin(request)
        if request.body_exists and not any_body and request.content_type != "application/json":
            raise UnsupportedMediaType("a request body must be application/json")
        return self._principal(request, access, raw_key=raw_key)

    def check_host(self, request: web.Request) -> None:
        """Only names that are ours: a page that rebinds its own name to our address must not reach us."""
        name = _host_name(request.headers.get(hdrs.HOST, ""))
        if self._any_host or name in self._hosts or _is_address(name) or (not name and request.version < (1, 1)):
            return
        raise Forbidden(
            "this Host is not served here; server.allowed_hosts names those that are", code="http.host_not_allowed"
        )

    def cors_origin(self, request: web.Request) -> str | None:
        """The Origin to name in the answer, if it is one that may read it."""
        origin = request.headers.get(hdrs.ORIGIN)
        return origin if origin is not None and origin.lower() in self._origins else None

    def _check_origin(self, request: web.Request) -> None:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None:  # not a browser, or not across origins
            return
        own = origin.lower().partition("://")[2]
        if own != request.headers.get(hdrs.HOST, "").lower() and origin.lower() not in self._origins:
            raise Forbidden(
                "this Origin may not act here; server.cors_origins names those that may", code="http.origin_not_allowed"
            )

    def _principal(self, request: web.Request, access: Access, *, raw_key: bool) -> Principal:
        if access is Access.OPEN:
            return _ANYONE
        header = request.headers.get(hdrs.AUTHORIZATION)
        token = request.query.get("access_token")
        if header is None and token is not None:
            return self._viewer(token, access)
        if access is Access.ADMIN and not any(key.admin for key in self._keys):
            raise Forbidden("closed: no admin key is configured", code="auth.forbidden")
        if self._mode == "none" and access is not Access.ADMIN:
            return _ANYONE
        if access is Access.TALK and header is None and _is_websocket(request):
            return NOBODY
        principal = self._key(header, raw=raw_key)
        if access is Access.ADMIN and not principal.admin:
            raise Forbidden("this key is not an admin key")
        return principal

    def spoken(self, credentials: str) -> Principal:
        """The principal of an API key, or a viewer token, that a client sent in a message. Raises Unauthenticated."""
        if credentials.count(".") == 2:  # a token; a key with two dots in it is tried as one first
            try:
                return self._viewer(credentials, Access.TALK)
            except Unauthenticated:
                if not self.knows(credentials):
                    raise
        return self._key(credentials, raw=True)

    def _viewer(self, token: str, access: Access) -> Principal:
        key, name, expires_at = self._tokens.read(token)
        if access not in (Access.VIEW, Access.TALK):
            raise Forbidden("a viewer token may only read its run")
        return Principal(f"{name} (viewer)", run=key, expires_at=time.monotonic() + expires_at - time.time())

    def knows(self, credentials: str) -> bool:
        """Whether this, with or without its scheme, is a key of ours, whatever the mode: such a one is passed to nobody."""
        try:
            self._key(credentials, raw=True)
        except Unauthenticated:
            return False
        return True

    def _key(self, header: str | None, *, raw: bool) -> Principal:
        if header is None:
            raise Unauthenticated("send an API key as Authorization: Bearer")
        scheme, _, presented = header.partition(" ")
        if raw and not presented.strip():
            scheme, presented = "bearer", scheme
        if scheme.lower() != "bearer" or not presented.strip():
            raise Unauthenticated("Authorization must be: Bearer <key>", code="auth.invalid_authorization")
        digest = "sha256:" + hashlib.sha256(presented.strip().encode("utf-8", "surrogateescape")).hexdigest()
        found: KeyOptions | None = None
        for key in self._keys:  # all of them, always: where the match is must not show in the time it takes
            if hmac.compare_digest(key.hash, digest):
                found = key
        if found is None:
            raise Unauthenticated("this API key is not known here", code="auth.invalid_api_key")
        return Principal(found.name, admin=found.admin)


def hash_of(key: str) -> str:
    """How a key stands in the configuration. Keys are 256 random bits, so a plain hash cannot be searched."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def challenge(error: RelayError) -> dict[str, str]:
    return {hdrs.WWW_AUTHENTICATE: "Bearer"} if error.status == 401 else {}


@lru_cache(maxsize=64)
def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name.lower() if rest == "" or rest.startswith(":") else host.lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True  # an address cannot be rebound to another one


def _is_websocket(request: web.Request) -> bool:
    return hdrs.UPGRADE in request.headers and request.headers[hdrs.UPGRADE].lower() == "websocket"
