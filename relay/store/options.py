"""What an operator may choose about Redis, the embedded server and how long logs are kept."""

from __future__ import annotations

from dataclasses import dataclass

from relay.core.options import Secret


@dataclass(frozen=True, slots=True)
class RedisOptions:
    url: Secret | None = None
    """redis://, rediss:// or unix:// address of Redis >= 7.0, or several servers: redis+sentinel://host:port,…/master,
    redis+cluster://host:port,…; None starts an embedded server in `embedded.data_dir`."""
    prefix: str = "relay"
    """First part of every key and channel, so that several relays can share one Redis."""
    partitions: int = 64
    """How many hash slots the runs are spread over (1..4096); must be equal on every process of a fleet, for ever."""
    timeout_s: float = 5.0
    """How long one command may take before Redis counts as away."""


@dataclass(frozen=True, slots=True)
class EmbeddedOptions:
    data_dir: str = ".relay"
    """Where the embedded server keeps its append-only file, its socket and its lock; made with mode 700."""


@dataclass(frozen=True, slots=True)
class RetentionOptions:
    sealed_s: float = 3600.0
    """How long a finished run's log is kept after its seal; a later reader makes us fetch it again."""
    live_s: float = 86400.0
    """How long a log that nobody renews any more is kept (its owner does so every third of a lease); no less than a
    lease."""
    live_events: int = 1_000_000
    """How many events a log may hold; beyond it the head is trimmed (about), and fetched again for who reads there."""
    old_s: float = 300.0
    """How long a trimmed head that was fetched again is kept after it was last read or written."""
