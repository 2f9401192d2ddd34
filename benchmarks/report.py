"""Rounds -> medians and ratios -> a table on the terminal and docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.workloads import METRIC, Row

BEGIN, END = "<!-- results: begin (written by python -m benchmarks) -->", "<!-- results: end -->"

_COLUMNS: dict[str, list[tuple[str, str, str]]] = {
    "fanout": [
        ("deliveries_per_cpu_s", "deliveries per CPU-s", ",.0f"),
        ("delivered_per_s", "delivered/s", ",.0f"),
        ("cpu_pct", "CPU %", ".0f"),
        ("p50_ms", "p50 ms", ".1f"),
        ("p99_ms", "p99 ms", ".1f"),
        ("p999_ms", "p99.9 ms", ".1f"),
    ],
    "joiners": [
        ("events_per_s", "events/s", ",.0f"),
        ("all_caught_up_s", "all caught up, s", ".2f"),
        ("deliveries_per_cpu_s", "deliveries per CPU-s", ",.0f"),
        ("mbytes_per_s", "MB/s", ",.0f"),
        ("client_cpu_pct", "client CPU %", ".0f"),
    ],
    "ingest": [
        ("flood_events_per_s", "durable events/s, flood", ",.0f"),
        ("flood_cpu_us_per_event", "CPU µs/event, flood", ".1f"),
        ("paced_events_per_s", "events/s, paced", ",.0f"),
        ("paced_cpu_us_per_event", "CPU µs/event, paced", ".1f"),
        ("flood_redis_us_per_event", "Redis µs/event, flood", ".1f"),
        ("paced_redis_us_per_event", "Redis µs/event, paced", ".1f"),
    ],
}
_COLUMNS["many"] = _COLUMNS["fanout"]


def summary(workload: str, rounds: Sequence[Sequence[Row]]) -> list[Row]:
    """One row per contestant: the median of each number, and the median of relay's ratio to it, round by round."""
    metric = METRIC[workload][0]
    rows = []
    for name in [row["contestant"] for row in rounds[0]]:
        mine = [next(row for row in turn if row["contestant"] == name) for turn in rounds]
        relays = [next(row for row in turn if row["contestant"] == "relay") for turn in rounds]
        ratios = [ours[metric] / theirs[metric] for ours, theirs in zip(relays, mine, strict=True)]
        numbers = {key: median(row[key] for row in mine) for key in mine[0] if key != "contestant"}
        rows.append({"contestant": name, **numbers, "relay_ratio": median(ratios), "ratios": ratios})
    return rows


def table(workload: str, rows: Sequence[Row]) -> str:
    """Markdown, aligned so that it reads well on a terminal too."""
    heads = ["", *(title for _, title, _ in _COLUMNS[workload]), "relay ÷ this (each round)"]
    lines = [heads, *(_cells(workload, row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    marks = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(line, widths) for line in (lines[0], marks, *lines[1:]))


def _cells(workload: str, row: Row) -> list[str]:
    ratio = "" if row["contestant"] == "relay" else f"{row['relay_ratio']:.2f} ({_each(row['ratios'])})"
    return [row["contestant"], *(format(row[key], form) for key, _, form in _COLUMNS[workload]), ratio]


def _each(ratios: Sequence[float]) -> str:
    return ", ".join(f"{ratio:.2f}" for ratio in ratios)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return f"| {' | '.join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))])} |"


def told(facts: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    pinned = "server on core 0, everything else on core 1" if facts["pinned"] else "NOT pinned: one core only"
    return (
        f"{facts['date']} · {facts['cpu']}, {facts['cores']} cores ({pinned}), load {facts['load_before']} before the "
        f"start · {facts['system']} · Python {facts['python']} · {facts['redis']} · {packages} · "
        f"viewers: {facts['load_client']}"
    )


def into_docs(results: dict[str, Any], path: Path, plots: Sequence[str]) -> None:
    """Replace what stands between the markers; the words around them are written by hand."""
    parts = [told(results["facts"]), ""]
    parts += [f"Events as viewers get them: {results['event_bytes']} bytes of JSON. Rounds: {results['rounds']}.", ""]
    for name, workload in results["workloads"].items():
        parts += [f"### {name}", "", workload["what"], "", table(name, workload["summary"]), ""]
    parts += [f"![{Path(plot).stem}]({plot})\n" for plot in plots]
    text = path.read_text("utf-8")
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{path.name} has lost its markers: {BEGIN} … {END}")
    path.write_text(before + BEGIN + "\n" + "\n".join(parts) + END + after, "utf-8")
