"""What an operator may choose about the upstreams and how we read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from relay.core.options import Secret


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    name: str
    """Our name for it, `[a-z0-9-]{1,32}`: part of every key of its runs, so never change it lightly."""
    provider: str
    """Which kind of system it is; `relay check` lists the known ones."""
    base_url: str
    """http:// or https:// address without a query; a path prefix is kept."""
    token: Secret | None = None
    """The credentials, sent in `Authorization`; None sends none."""
    discover: bool = False
    """Pump every active run, watched or not: one process of the fleet lists the upstream's runs, all share the pumping."""
    authorization: Literal["auto", "bearer", "raw"] = "auto"
    """How the token is written: after `Bearer `, as it is, or (auto) as the provider's own SDK does. Where that is as it
    is and refused with 401, `Bearer ` is tried once, and what was accepted is kept to."""
    create: str = "auto"
    """How a run is made, where a system has several ways (SeekrFlow: runs, runs/stream/vercel, runs/stream); auto: the
    first of them. One that answers with the run's stream is read from its first token on."""
    team_id: str | None = None
    """Sent as `x-team-id` with every request (SeekrFlow); None sends none."""
    poll_s: float = 1.0
    """How often a run without a stream is looked at, where the upstream has none for us; up to five times as long while
    nothing changes. What the upstream asks for (`openai-poll-after-ms`, `Retry-After`) goes first."""

    mark_runs: bool = True
    """Runs made through relay carry one more entry in their metadata (`relay_mark`), by which a run whose making was not
    answered is found again; where an upstream keeps runs in threads. Off for a system that refuses metadata."""


@dataclass(frozen=True, slots=True)
class IngestOptions:
    @property
    def answer_s(self) -> float:
        """How long a whole answer of an upstream may take, its head included."""
        return self.connect_timeout_s * 3

    linger_s: float = 15.0
    """How long we go on listening after the terminal event (titles come late) before the run is sealed."""
    stall_s: float = 45.0
    """An upstream stream without a byte for this long is dead and opened again (it pings every 15 s)."""
    connect_timeout_s: float = 10.0
    """How long connecting, and waiting for an upstream's response head, may take."""
    idle_check_s: float = 60.0
    """A followed run without an event for this long is checked with GET run: it may have ended silently."""
    backoff_base_s: float = 0.25
    """First ceiling of the full-jitter back-off between fruitless upstream attempts."""
    backoff_cap_s: float = 10.0
    """Last ceiling of it."""
    lease_s: float = 3.0
    """How long the right to pump a run lasts without renewal (renewed each third of it); may differ between processes
    of a fleet by up to four times."""
    unwanted_s: float = 60.0
    """A run nobody has watched for this long is no longer pumped (it is resumed when somebody comes). May differ
    likewise."""
    runs: int = 5000
    """How many runs one process (each of `server.workers`) pumps at once; a further one waits."""
    discover_s: float = 5.0
    """How long between two looks at the runs of an upstream with `discover`."""
    discover_per_s: float = 50.0
    """How many newly found runs a second discovery hands to the fleet to pump, per upstream: a start against thousands of
    active runs must not storm it, or Redis."""
