"""What was asked of the scripted upstream: every request, every open stream, every fault that fired. Counts, no sockets."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

from tests.support.upstream_faults import Fault
from tests.support.upstream_stream import Stream

KEPT_HEADERS = (
    "Authorization",
    "Accept",
    "Last-Event-ID",
    "User-Agent",
    "X-Trace-Id",
    "Idempotency-Key",
    "Content-Type",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """Only `KEPT_HEADERS`, under these names."""
    body: str
    at: float
    """Monotonic seconds."""


@dataclass(slots=True)
class _Counts:
    followers: list[Stream] = field(default_factory=list)
    drainers: list[Stream] = field(default_factory=list)
    followed: int = 0
    drained: int = 0
    max_following: int = 0
    max_draining: int = 0


def _alive(streams: list[Stream]) -> int:
    return sum(not stream.transport.is_closing() for stream in streams)


class Traffic:
    """The record."""

    def __init__(self) -> None:
        self.requests: deque[Asked] = deque(maxlen=200_000)
        self.fired: list[tuple[str | None, Fault]] = []
        self._runs: defaultdict[str, _Counts] = defaultdict(_Counts)

    def counts(self, run_id: str) -> dict[str, int]:
        counts = self._runs[run_id]
        return {
            "following": _alive(counts.followers),
            "max_following": counts.max_following,
            "follows": counts.followed,
            "draining": _alive(counts.drainers),
            "max_draining": counts.max_draining,
            "drains": counts.drained,
        }

    def run_ids(self) -> list[str]:
        return list(self._runs)

    def streams(self, run_id: str | None = None) -> list[Stream]:
        """Open streams of a run, or of all."""
        chosen = self._runs.values() if run_id is None else [self._runs[run_id]]
        return [stream for counts in chosen for stream in (*counts.followers, *counts.drainers)]

    def followers(self, run_id: str) -> list[Stream]:
        return self._runs[run_id].followers

    @contextmanager
    def open(self, stream: Stream, *, follow: bool) -> Iterator[None]:
        """Counts a stream while it is served."""
        counts = self._runs[stream.run.run_id]
        streams = counts.followers if follow else counts.drainers
        streams.append(stream)
        if follow:
            counts.followed += 1
            counts.max_following = max(counts.max_following, _alive(streams))
        else:
            counts.drained += 1
            counts.max_draining = max(counts.max_draining, _alive(streams))
        try:
            yield
        finally:
            streams.remove(stream)

    def ask(self, request: web.Request, body: str) -> None:
        headers = {name: request.headers[name] for name in KEPT_HEADERS if name in request.headers}
        query = dict(request.query)
        self.requests.append(Asked(request.method, request.path, query, headers, body, time.monotonic()))

    def fire(self, run_id: str | None, fault: Fault) -> None:
        self.fired.append((run_id, fault))
