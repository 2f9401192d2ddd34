"""Every metric of the relay and its meaning, in one list. The log is logs.py; who tells takes both from here.

Nothing here is called per event: counters of events are moved once per batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from typing import Any

from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

from relay import logs

logger = logs.logger

REGISTRY = CollectorRegistry()
"""What a process that serves counts."""
PARENT = CollectorRegistry()
"""What the parent of several workers counts itself; theirs stand beside it on the same page."""

_LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Tally:
    """A series that is counted with every event: an addition, where a counter takes a lock and looks at its arguments."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def inc(self, amount: int) -> None:
        self.count += amount


class TalliedCounter(Counter):
    """A counter that takes over what its tallies have counted when somebody looks at it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._tallies: list[tuple[Counter, Tally]] = []
        super().__init__(*args, **kwargs)

    def tally(self, *labels: str) -> Tally:
        """For the event loop's thread alone. To be kept: it is counted for as long as the process lives."""
        tally = Tally()
        self._tallies.append((self.labels(*labels), tally))
        return tally

    def collect(self) -> Iterable[Metric]:
        for counter, tally in self._tallies:
            counted, tally.count = tally.count, 0
            counter.inc(counted)
        return super().collect()


def _counter(name: str, meaning: str, *labels: str, registry: CollectorRegistry = REGISTRY) -> Counter:
    return Counter(name, meaning, labels, registry=registry)


def _gauge(name: str, meaning: str, *labels: str, registry: CollectorRegistry = REGISTRY) -> Gauge:
    return Gauge(name, meaning, labels, registry=registry)


def _histogram(name: str, meaning: str, *labels: str) -> Histogram:
    return Histogram(name, meaning, labels, buckets=_LATENCY, registry=REGISTRY)


# --- ingest: the upstream's side -------------------------------------------------------------------------------------
UPSTREAM_CONNECTIONS = _gauge(
    "relay_upstream_connections", "Open upstream event streams; kind is follow or drain.", "upstream", "kind"
)
UPSTREAM_ENDS = _counter(
    "relay_upstream_disconnects_total", "How upstream event streams ended, by reason.", "upstream", "reason"
)
UPSTREAM_REQUESTS = _counter(
    "relay_upstream_requests_total", "Requests to the upstream's runs API, by outcome.", "upstream", "outcome"
)
EVENTS_INGESTED = _counter("relay_events_ingested_total", "Events made durable.", "upstream")
EVENTS_REPEATED = _counter(
    "relay_events_repeated_total", "Upstream events dropped because their seq was already there.", "upstream"
)
EVENTS_GAPS = _counter(
    "relay_events_gaps_total",
    "Steps in seq; unconfirmed ones were read again, confirmed ones accepted.",
    "upstream",
    "kind",
)
INGEST_LAG = _histogram(
    "relay_ingest_lag_seconds",
    "From an event's upstream timestamp to its arrival here (clock skew included); at most one a second and run.",
    "upstream",
)
RUNS_PUMPED = _gauge("relay_runs_pumped", "Runs this process pumps, or waits to claim.", "upstream")
RUNS_SEALED = _counter("relay_runs_sealed_total", "Runs that ended, by status.", "upstream", "status")
ENDS_SYNTHESIZED = _counter(
    "relay_ends_synthesized_total", "Runs whose end we had to write because the upstream never did.", "upstream"
)
RUNS_DISCOVERED = _counter("relay_runs_discovered_total", "Runs wanted because discovery found them.", "upstream")
RUNS_WAITING = _gauge(
    "relay_runs_waiting", "Runs discovery found that still wait to be wanted (bounded rate).", "upstream"
)
RUNS_ACTIVE = _gauge(
    "relay_runs_active", "Active runs the upstream listed last; only in the process that looks.", "upstream"
)
LOOKING = _gauge("relay_looking", "1 in the process that looks for the runs of an upstream with discover.", "upstream")
LOOKS = _counter(
    "relay_looks_total",
    "Looks at an upstream's runs: ok, odd (some rows were no runs), store (Redis away), crashed, or how it was refused.",
    "upstream",
    "outcome",
)
UPSTREAM_ODD = _counter(
    "relay_upstream_odd_total",
    "Words of an upstream that made no sense, by kind: they end no run, and nothing is guessed from them.",
    "upstream",
    "what",
)
GENERATIONS = _counter(
    "relay_log_generations_total", "Own-seq logs that lost rows and were begun again above every seq.", "upstream"
)
CONTRADICTIONS = _counter(
    "relay_text_contradictions_total",
    "Text parts an upstream told differently from before (message.reset).",
    "upstream",
)
PUMP_CRASHES = _counter("relay_pump_crashes_total", "Pumps that died of an unexpected error and were started again.")

HEAD_FILLS = _counter(
    "relay_head_fills_total", "Reads of a trimmed head from the upstream, by how they went.", "upstream", "outcome"
)
HEAD_EVENTS = _counter("relay_head_events_total", "Events of trimmed heads fetched again.", "upstream")

# --- store: Redis ----------------------------------------------------------------------------------------------------
APPEND_SECONDS = _histogram("relay_append_seconds", "One group commit: from the first waiting event to the answer.")
APPEND_RUNS = _counter("relay_append_runs_total", "Runs appended to, over all group commits.")
APPEND_COMMITS = _counter("relay_append_commits_total", "Group commits (round trips).")
APPEND_REFUSED = _counter(
    "relay_append_refused_total", "Appends Redis refused: lost (log moved) or fenced (other owner).", "reason"
)
CLOCK_JUMPS = _counter(
    "relay_redis_clock_jumps_total", "Jumps of a Redis server's clock against ours, by more than half a second."
)
STORE_ERRORS = _counter("relay_store_errors_total", "Redis was away: failed round trips, by what was tried.", "what")
STORE_FAILOVERS = _counter(
    "relay_store_failovers_total", "Redis servers left because others hold their keys now (Sentinel, Cluster)."
)

# --- fan-out and delivery --------------------------------------------------------------------------------------------
TOPICS = _gauge("relay_topics", "Runs watched in this process.")
WINDOW_BYTES = _gauge("relay_window_bytes", "Event bytes held in memory for watched runs.")
VIEWERS = _gauge("relay_viewers", "Open streams to clients, by wire.", "wire")
EVENTS_DELIVERED = TalliedCounter(
    "relay_events_delivered_total", "Events written to clients, by wire.", ("wire",), registry=REGISTRY
)
GOODBYES = _counter("relay_goodbyes_total", "Streams we ended, by reason.", "code")
RESETS = _counter("relay_resets_total", "relay.reset frames sent: events that can no longer be had.")
SLOW_READERS = _gauge("relay_slow_readers", "Streams whose client takes less than there is for it, at the moment.")
VIEWER_LAG = _gauge(
    "relay_viewer_lag_events",
    "How many events viewers are behind what is published here, at the moment: median, slowest percent, slowest.",
    "quantile",
)
VIEWER_BACKLOG = _gauge(
    "relay_viewer_backlog_bytes", "Bytes written for a viewer that its kernel has not taken yet, likewise.", "quantile"
)
SNAPSHOTS = _counter("relay_snapshots_total", "relay.snapshot frames given, by wire.", "wire")
FOLDS_KEPT = _counter("relay_folds_kept_total", "Folds of long runs written beside their logs.")
FOLLOW_LAG = _histogram(
    "relay_follow_lag_seconds",
    "From a bell to its events published to viewers; of each read, the one that waited longest.",
)
BELLS_LOST = _counter("relay_bells_lost_total", "Growth found by the position check instead of a bell.")
DRAIN_LAG = _histogram("relay_client_drain_seconds", "How long a slow client took to take what was written to it.")

# --- web --------------------------------------------------------------------------------------------------------------
REQUESTS = _counter("relay_http_requests_total", "Requests, by route and status.", "route", "status")
REFUSED = _counter("relay_http_refused_total", "Requests refused before a route saw them, by error code.", "code")
PARENT.register(REQUESTS)  # of the admin listener, if it is the parent's; workers' series have a label `worker`
PARENT.register(REFUSED)


# What every request, stream and group commit counts: finding a child by its labels costs more than counting.
@cache
def requests(route: str, status: int) -> Counter:
    return REQUESTS.labels(route, str(status))


@cache
def viewers(wire: str) -> Gauge:
    return VIEWERS.labels(wire)


@cache
def ingested(upstream: str) -> Counter:
    return EVENTS_INGESTED.labels(upstream)


@cache
def delivered(wire: str) -> Tally:
    return EVENTS_DELIVERED.tally(wire)


# --- workers: counted by their parent (`relay serve --workers N`) ------------------------------------------------------
WORKERS_WANTED = _gauge("relay_workers_wanted", "Workers there should be: server.workers.", registry=PARENT)
WORKERS_RUNNING = _gauge("relay_workers_running", "Workers that have started and serve.", registry=PARENT)
WORKERS_RESTARTED = _counter(
    "relay_worker_restarts_total",
    "Workers replaced; reason is killed (by a signal), failed (exit status) or stopped (asked to, from outside).",
    "reason",
    registry=PARENT,
)
WORKERS_SILENT = _counter(
    "relay_worker_silent_total",
    "Questions a worker did not answer in time, so that the answer for all is without it.",
    "question",
    registry=PARENT,
)


def page(registry: CollectorRegistry = REGISTRY) -> bytes:
    """All series of a registry, as /metrics shows them."""
    return generate_latest(registry)


class _NoTraceback(logging.Filter):
    """What no HTTP parser can read is the client's doing: one line, the kind of trouble, nothing of what was sent."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):  # a bug of our own keeps its traceback
            record.msg, record.args = "a request could not be read: %s", (type(error).__name__,)
            record.exc_info = record.exc_text = None
        return True


def server_logger() -> logging.Logger:
    """What aiohttp's server may complain to."""
    log = logging.getLogger("relay.http")
    if not log.filters:
        log.addFilter(_NoTraceback())
    return log
