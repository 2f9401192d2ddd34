"""What relay must reach, and whether it did: a table that is written from the same results as everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Rounds = Sequence[Sequence[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the bar: a number of relay, or its ratio to the same number of somebody in the same round."""

    workload: str
    what: str
    bound: float
    measured: Callable[[Rounds], float | None]
    """None: who it is about is not in the results."""
    at_least: bool = True
    unit: str = ""

    def line(self, workload: Mapping[str, Any]) -> list[str]:
        found = self.measured(workload["rounds"])
        wanted = f"{'≥' if self.at_least else '≤'} {self.bound:g}{self.unit}"
        if found is None:
            return [f"{self.workload}: {self.what}", wanted, "–", "not measured"]
        met = found >= self.bound if self.at_least else found <= self.bound
        return [f"{self.workload}: {self.what}", wanted, _short(found) + self.unit, "yes" if met else "**no**"]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


# --- how a number is found -------------------------------------------------------------------------------------------
def _rows(turn: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return next((row for row in turn if row["contestant"] == name), None)


def own(key: str) -> Callable[[Rounds], float | None]:
    """The median of relay's own number."""

    def found(rounds: Rounds) -> float | None:
        values = [row[key] for turn in rounds if (row := _rows(turn, "relay")) and key in row]
        return median(values) if values else None

    return found


def ratio(key: str, against: str) -> Callable[[Rounds], float | None]:
    """The median over the rounds of relay's number divided by the other's."""

    def found(rounds: Rounds) -> float | None:
        pairs = [(_rows(turn, "relay"), _rows(turn, against)) for turn in rounds]
        values = [ours[key] / theirs[key] for ours, theirs in pairs if ours and theirs and theirs.get(key)]
        return median(values) if values else None

    return found


def _per_stalled(rounds: Rounds) -> float | None:
    """MB that each reader who stalls costs: what relay grew beyond what it grows by without them."""
    values = []
    for turn in rounds:
        with_them, without = _rows(turn, "relay"), _rows(turn, "relay, no stall")
        if with_them and without:
            values.append(max(0.0, with_them["rss_grown_mb"] - without["rss_grown_mb"]) / with_them["stalled"])
    return median(values) if values else None


_PER_CPU = "deliveries_per_cpu_s"

GOALS: tuple[Goal, ...] = (
    Goal("W1", "deliveries per CPU-s ÷ c-each", 0.78, ratio(_PER_CPU, "c-each")),
    Goal("W1", "deliveries per CPU-s ÷ nchan", 1.4, ratio(_PER_CPU, "nchan")),
    Goal("W1", "p99 ÷ nchan's", 1, ratio("p99_ms", "nchan"), at_least=False),
    Goal("W1", "p50, publisher → upstream → viewer", 5, own("p50_ms"), at_least=False, unit=" ms"),
    Goal("W1m", "CPU per delivery ÷ c-each", 0.6, ratio("us_per_delivery", "c-each"), at_least=False),
    Goal("W1m", "p99", 20, own("p99_ms"), at_least=False, unit=" ms"),
    Goal("W2", "deliveries per CPU-s ÷ c-batch", 0.75, ratio(_PER_CPU, "c-batch")),
    Goal("W2", "deliveries per CPU-s ÷ nchan", 45, ratio(_PER_CPU, "nchan")),
    Goal("W2", "deliveries per CPU-s ÷ node", 15, ratio(_PER_CPU, "node")),
    Goal("W2", "deliveries per CPU-s ÷ fastapi", 150, ratio(_PER_CPU, "fastapi")),
    Goal("W3", "deliveries per CPU-s ÷ c-batch", 0.5, ratio(_PER_CPU, "c-batch")),
    Goal("W3", "deliveries per CPU-s ÷ nchan", 0.9, ratio(_PER_CPU, "nchan")),
    Goal("W3", "p99", 10, own("p99_ms"), at_least=False, unit=" ms"),
    Goal("W4", "delivered/s ÷ c-batch", 0.8, ratio("delivered_per_s", "c-batch")),
    Goal("W4", "delivered/s ÷ nchan", 40, ratio("delivered_per_s", "nchan")),
    Goal("W4", "live viewers' p99 meanwhile", 30, own("live_p99_ms"), at_least=False, unit=" ms"),
    Goal("late", "(bytes until up to date − 4 KB) ÷ the run's text", 1.2, own("bytes_beyond_text"), at_least=False),
    Goal("W5", "memory per idle viewer ÷ nchan", 0.3, ratio("kb_per_viewer", "nchan"), at_least=False),
    Goal("W5", "memory per idle viewer", 3, own("kb_per_viewer"), at_least=False, unit=" KB"),
    Goal("W6", "accepts/s ÷ c-each", 0.6, ratio("accepts_per_s", "c-each")),
    Goal("W6", "accepts/s ÷ nchan", 0.6, ratio("accepts_per_s", "nchan")),
    Goal("W6", "CPU per accept", 60, own("us_per_accept"), at_least=False, unit=" µs"),
    Goal("slow", "deliveries per CPU-s to the healthy ÷ no stall", 0.85, ratio(_PER_CPU, "relay, no stall")),
    Goal("slow", "memory per stalled viewer", 0.3, _per_stalled, at_least=False, unit=" MB"),
    Goal("stall-1", "p99 of the rest ÷ no stall", 1.1, ratio("p99_ms", "relay, no stall"), at_least=False),
    Goal("stall-1", "memory of the one that stalls", 4, _per_stalled, at_least=False, unit=" MB"),
    Goal("ingest", "CPU per event, flood", 10, own("flood_cpu_us_per_event"), at_least=False, unit=" µs"),
    Goal("start", "ready to serve after", 600, own("ready_ms"), at_least=False, unit=" ms"),
    Goal("start", "memory at rest", 60, own("base_rss_mb"), at_least=False, unit=" MB"),
    Goal("W1-ws", "deliveries per CPU-s ÷ c-each (SSE)", 0.78, ratio(_PER_CPU, "c-each")),
    Goal("W1-ws", "deliveries per CPU-s ÷ nchan", 1.4, ratio(_PER_CPU, "nchan")),
    Goal("W1-ws", "p99 ÷ nchan's", 1, ratio("p99_ms", "nchan"), at_least=False),
    Goal("W1-ws", "p50, publisher → upstream → viewer", 5, own("p50_ms"), at_least=False, unit=" ms"),
    Goal("W2-ws", "deliveries per CPU-s ÷ c-batch (SSE)", 0.75, ratio(_PER_CPU, "c-batch")),
    Goal("W2-ws", "deliveries per CPU-s ÷ nchan", 45, ratio(_PER_CPU, "nchan")),
)


def lines(workloads: Mapping[str, Any]) -> list[list[str]]:
    """What is asked, the bound, what was measured, and whether that is enough."""
    return [goal.line(workloads[goal.workload]) for goal in GOALS if goal.workload in workloads]
