"""What an operator may choose about the listeners, who may come in, and the bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from relay.core.options import Secret


@dataclass(frozen=True, slots=True)
class ServerOptions:
    host: str = "127.0.0.1"
    """Address of the public listener. Anything but loopback needs `auth.mode` other than none."""
    port: int = 8080
    """Port of the public listener; 0 lets the system choose (printed at start)."""
    admin_host: str = "127.0.0.1"
    """Address of the admin listener (/healthz, /readyz, /metrics, /admin/*)."""
    admin_port: int = 9464
    """Port of the admin listener; 0 lets the system choose."""
    workers: int = 1
    """Processes on the one port, 1 to 64 (`relay serve --workers N` wins). Bounds of a process (`limits.connections`,
    `ingest.runs`, `fanout.memory_bytes`) are each worker's own. Linux deals connections out among them evenly."""
    allowed_hosts: tuple[str, ...] = ()
    """Names clients may use in `Host` besides loopback names, `server.host` and IP addresses (which cannot be
    rebound); `*` allows any. Guards against DNS rebinding."""
    cors_origins: tuple[str, ...] = ()
    """Origins (`https://app.example.com`) whose pages may read and act; the server's own origin always may."""


@dataclass(frozen=True, slots=True)
class FacesOptions:
    root: Literal["native", "arkloop", "seekrflow", "openai"] = "native"
    """The API shape served at `/`. Each is always at its own name too: /native, /arkloop, /seekrflow, /openai."""


@dataclass(frozen=True, slots=True)
class LimitOptions:
    connections: int = 10_000
    """Open streams (SSE, WebSocket, NDJSON) at once, per worker; one more is refused with 503 and `Retry-After`."""
    runs_per_connection: int = 100
    """Runs open at once on one connection of `/v1/events`. A cursor for 100 of them takes 1.2 to 2 KB."""
    body_bytes: int = 1_048_576
    """Largest request body."""
    head_bytes: int = 16_384
    """Largest request line, and largest single header field."""
    head_s: float = 20.0
    """How long a client may take to send the head of a request, from its first byte."""
    event_bytes: int = 8_388_608
    """Largest event; a larger one keeps its seq and type, its data becomes `{"truncated": true, "bytes": n}`."""


@dataclass(frozen=True, slots=True)
class KeyOptions:
    name: str
    """Who this key is, for logs and metrics: `[A-Za-z0-9._-]{1,64}`."""
    hash: str
    """`sha256:<64 hex digits>` of the key, as `relay token key NAME` prints it."""
    admin: bool = False
    """May use /admin/*."""


@dataclass(frozen=True, slots=True)
class AuthOptions:
    mode: str = "none"
    """none (loopback only) or api_keys."""
    keys: tuple[KeyOptions, ...] = ()
    """The API keys, stored hashed; a client sends the key as `Authorization: Bearer`."""
    token_secret: Secret | None = None
    """Signs viewer tokens (at least 32 characters). None: made once and kept in `embedded.data_dir` (embedded server
    only; with `redis.url` and api_keys it must be set, and be equal on every process)."""
