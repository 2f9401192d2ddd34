"""What an operator may choose about how events reach clients."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DrainOptions:
    window_s: float = 10.0
    """At shutdown viewers are told goodbye one after the other over this long, so that their reconnects are spread; a
    few of them take less of it. New connections are accepted until its end."""
    close_s: float = 5.0
    """How long open requests get to end after that."""


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    heartbeat_s: float = 15.0
    """The longest silence on an open stream; a comment (SSE) or a ping (WebSocket) ends it."""
    slow_s: float = 30.0
    """A reader that took not a single byte for this long while events wait is told goodbye `slow`."""
    backlog_bytes: int = 262_144
    """Most bytes that may wait in the kernel for one client, unsent. Its socket is full beyond that: it is caught up from
    the log at its own pace, and given at most one page (`fanout.page_bytes`) at a time."""
    max_age_s: float = 0.0
    """A native stream that goes on for longer is told goodbye `max_age` and comes back, perhaps to another replica: after
    a rolling restart all viewers are on those that were started first. Each has its own age, of this half at least; 0:
    never. Longer than most runs, or it ends streams for nothing. Streams of other faces are left alone: their clients
    cannot resume, or only a few times."""
    retry_min_ms: int = 1000
    """Shortest reconnect delay we tell clients in `retry:`."""
    retry_max_ms: int = 10000
    """Longest; each client gets its own in between, so that they do not come back all at once."""
    compress: bool = False
    """Whether streams (SSE, NDJSON) are compressed for clients that ask for gzip or zstd. Saves most of the bytes; costs
    about three times the CPU per viewer and event, and 32 KiB a viewer, for compressed bytes cannot be shared."""
    websocket_compress: bool = True
    """Compress history and larger messages on WebSockets whose clients offer permessage-deflate: once for all of them."""
