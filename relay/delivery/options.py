"""What an operator may choose about how events reach clients."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    heartbeat_s: float = 15.0
    """The longest silence on an open stream; a comment (SSE) or a ping (WebSocket) ends it."""
    slow_s: float = 30.0
    """A reader that took not a single byte for this long while events wait is told goodbye `slow`."""
    retry_min_ms: int = 1000
    """Shortest reconnect delay we tell clients in `retry:`."""
    retry_max_ms: int = 10000
    """Longest; each client gets its own in between, so that they do not come back all at once."""
