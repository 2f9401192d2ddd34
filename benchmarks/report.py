"""Rounds -> medians and ratios -> a table on the terminal and docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import goals
from benchmarks.measure import Row
from benchmarks.workloads import WORKLOADS

BEGIN, END = "<!-- results: begin (written by python -m benchmarks) -->", "<!-- results: end -->"

PLOTS = ("benchmarks-ratios.svg", "benchmarks-latency.svg", "benchmarks-curves.svg")
"""The pictures, in the order they are shown; those that there are results for."""

COLUMNS: dict[str, tuple[str, str]] = {
    "deliveries_per_cpu_s": ("deliveries per CPU-s", ",.0f"),
    "delivered_per_s": ("delivered/s", ",.0f"),
    "cpu_pct": ("CPU %", ".0f"),
    "p50_ms": ("p50 ms", ".1f"),
    "p99_ms": ("p99 ms", ".1f"),
    "p999_ms": ("p99.9 ms", ".1f"),
    "redis_us_per_event": ("Redis µs/event", ".0f"),
    "client_cpu_pct": ("client CPU %", ".0f"),
    "all_caught_up_s": ("all caught up, s", ".2f"),
    "mbytes_per_s": ("MB/s", ",.0f"),
    "live_p99_ms": ("live viewers' p99 ms", ".1f"),
    "late_kb": ("KB until up to date", ",.0f"),
    "bytes_beyond_text": ("(bytes − 4 KB) ÷ text", ".2f"),
    "first_frame_ms": ("first frame, ms", ",.1f"),
    "caught_up_ms": ("up to date, ms", ",.1f"),
    "cpu_ms_per_joiner": ("CPU ms per joiner", ",.1f"),
    "kb_per_viewer": ("KB per viewer", ",.1f"),
    "rss_mb": ("RSS MB", ",.0f"),
    "rss_grown_mb": ("RSS grown MB", ",.1f"),
    "viewers": ("viewers", ",.0f"),
    "accepts_per_s": ("accepts/s", ",.0f"),
    "us_per_accept": ("CPU µs/accept", ",.0f"),
    "us_per_delivery": ("CPU µs/delivery", ",.2f"),
    "ready_ms": ("ready after, ms", ",.0f"),
    "start_cpu_ms": ("CPU ms until then", ",.0f"),
    "base_rss_mb": ("RSS MB at rest", ".1f"),
    "flood_events_per_cpu_s": ("events per CPU-s, flood", ",.0f"),
    "flood_events_per_s": ("events/s, flood", ",.0f"),
    "flood_cpu_us_per_event": ("CPU µs/event, flood", ".1f"),
    "flood_redis_us_per_event": ("Redis µs/event, flood", ".1f"),
    "paced_events_per_s": ("events/s, paced", ",.0f"),
    "paced_cpu_us_per_event": ("CPU µs/event, paced", ".1f"),
    "paced_redis_us_per_event": ("Redis µs/event, paced", ".1f"),
}
"""Number -> its heading and format."""


# --- medians and ratios ----------------------------------------------------------------------------------------------
def summary(workload: str, rounds: Sequence[Sequence[Row]]) -> list[Row]:
    """One row per contestant: the median of each number, and the median of relay's ratio to it, round by round."""
    metric = WORKLOADS[workload].metric
    rows = []
    for name in dict.fromkeys(row["contestant"] for turn in rounds for row in turn):
        mine = [row for turn in rounds for row in turn if row["contestant"] == name]
        numbers = {key: median(row[key] for row in mine) for key in mine[0] if isinstance(mine[0][key], int | float)}
        faults = sorted({fault for row in mine for fault in row["faults"]})
        each = ratios(rounds, metric, name)
        rows.append({"contestant": name, **numbers, "relay_ratio": median(each), "ratios": each, "faults": faults})
    return rows


def ratios(rounds: Sequence[Sequence[Row]], key: str, against: str) -> list[float]:
    """Relay's number divided by the other's, for each round the other was measured in."""
    found = []
    for turn in rounds:
        rows = {row["contestant"]: row for row in turn}
        if against in rows:
            found.append(rows["relay"][key] / rows[against][key] if rows[against][key] else 0.0)
    return found


# --- tables ----------------------------------------------------------------------------------------------------------
def table(workload: str, rows: Sequence[Row]) -> str:
    """Markdown, aligned so that it reads well on a terminal too."""
    known = WORKLOADS[workload]
    keys = [key for key in (known.metric, *known.columns) if any(key in row for row in rows)]
    heads = ["", *(COLUMNS[key][0] for key in keys), "relay ÷ this (each round)"]
    return aligned([heads, *(_cells(keys, row) for row in rows)])


def _cells(keys: Sequence[str], row: Row) -> list[str]:
    ratio = "" if row["contestant"] == "relay" else f"{row['relay_ratio']:.2f} ({_each(row['ratios'])})"
    numbers = [format(row[key], COLUMNS[key][1]) if key in row else "" for key in keys]
    return [row["contestant"] + (" *" if row["faults"] else ""), *numbers, ratio]


def _each(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the head, the first column is text."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    marks = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(line, widths) for line in (lines[0], marks, *lines[1:]))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return f"| {' | '.join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))])} |"


def fell_short(rows: Sequence[Row]) -> list[str]:
    """Of peers only: relay is whole or there is no result."""
    return [
        f"\\* {row['contestant']}: not everything arrived ({', '.join(row['faults'])}), "
        f"{100 * row.get('delivered_share', 1):.0f} % did."
        for row in rows
        if row["faults"]
    ]


def told(facts: Mapping[str, Any]) -> str:
    return f"{_when(facts)} · {_where(facts)}"


def _when(facts: Mapping[str, Any]) -> str:
    return f"{facts['date']} · commit {facts['commit']} · load {facts['load_before']} before the start"


def _where(facts: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    pinned = "server on core 0, everything else on core 1" if facts["pinned"] else "NOT pinned: one core only"
    return (
        f"{facts['cpu']}, {facts['cores']} cores ({pinned}) · {facts['system']} · Python {facts['python']} · "
        f"{facts['redis']} · {packages} · viewers: {facts['load_client']}"
    )


# --- the document ----------------------------------------------------------------------------------------------------
def ahead(workloads: Mapping[str, Any]) -> list[str]:
    """Whoever does better than relay in the number a workload's ratios are about."""
    lines = []
    for name, workload in workloads.items():
        less = WORKLOADS[name].less_is_better
        better = [
            f"{row['contestant']} ({row['relay_ratio']:.2f})"
            for row in workload["summary"]
            if not row["contestant"].startswith("relay")
            and (row["relay_ratio"] > 1 if less else row["relay_ratio"] < 1)
        ]
        if better:
            lines.append(f"- {name}, {COLUMNS[WORKLOADS[name].metric][0]}: {', '.join(better)}")
    return lines


def document(results: Mapping[str, Any], plots: Sequence[str]) -> str:
    """What stands between the markers. The same results give the same text."""
    workloads = {name: results["workloads"][name] for name in WORKLOADS if name in results["workloads"]}
    curves = results.get("curves", {})
    if not workloads and not curves:
        return "Nothing has been measured in this form yet: `make bench` writes it here.\n"
    measured = [*workloads.values(), *curves.values()]
    parts = [f"{where}\n" for where in dict.fromkeys(_where(one["facts"]) for one in measured)]
    parts += _verdict(workloads) if workloads else []
    parts += [line for name, workload in workloads.items() for line in _section(name, workload)]
    for name, curve in curves.items():
        parts += ["", f"### Cost against {name}", "", curve["what"], "", _curve_table(curve), "", _when(curve["facts"])]
    parts += ["", "### Pictures", *(f"\n![{Path(plot).stem}]({plot})" for plot in plots)] if plots else []
    return "\n".join([*parts, ""])


def _verdict(workloads: Mapping[str, Any]) -> list[str]:
    bar = [["medians over the rounds", "goal", "measured", "met"], *goals.lines(workloads)]
    better = ahead(workloads) or ["Nobody, in any workload."]
    bracket = "In brackets: relay's number divided by theirs."
    return ["### The bar", "", aligned(bar), "", "### Who is ahead of relay", "", bracket, "", *better]


def _section(name: str, workload: Mapping[str, Any]) -> list[str]:
    lines = ["", f"### {name}: {WORKLOADS[name].title}", "", workload["what"], "", table(name, workload["summary"]), ""]
    lines += [f"{line}\n" for line in fell_short(workload["summary"])]
    lines += [f"Not there: {', '.join(workload['skipped'])}.\n"] if workload["skipped"] else []
    rounds = len(workload["rounds"])
    return [*lines, f"{rounds} round{'s' if rounds != 1 else ''} · {_when(workload['facts'])}"]


def _curve_table(curve: Mapping[str, Any]) -> str:
    heads = [curve["axis"]]
    names = list(dict.fromkeys(row["contestant"] for point in curve["points"] for row in point["rows"]))
    heads += [f"{name}: {unit}" for name in names for unit in ("CPU µs/delivery", "RSS MB", "p99 ms")]
    lines = [heads]
    for point in curve["points"]:
        line = [f"{point['at']:,}"]
        for name in names:
            row: Row = next((row for row in point["rows"] if row["contestant"] == name), {})
            line += [
                format(row[key], COLUMNS[key][1]) if row else "" for key in ("us_per_delivery", "rss_mb", "p99_ms")
            ]
        lines.append(line)
    return aligned(lines)


def into_docs(results: Mapping[str, Any], path: Path, plots: Sequence[str]) -> None:
    """Replace what stands between the markers; the words around them are written by hand."""
    text = path.read_text("utf-8")
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{path.name} has lost its markers: {BEGIN} … {END}")
    path.write_text(before + BEGIN + "\n" + document(results, plots) + END + after, "utf-8")
