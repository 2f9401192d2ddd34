"""The pictures: relay's ratio to each contestant, latency by quantile, cost curves. Needs matplotlib (extra `bench`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import PLOTS
from benchmarks.workloads import WORKLOADS

try:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
except ImportError:
    matplotlib = None

_QUANTILES = {"p50_ms": "50 %", "p90_ms": "90 %", "p99_ms": "99 %", "p999_ms": "99.9 %", "max_ms": "all"}
_LATENCY_OF = ("W1", "W1m", "W3")
_COLOURS = {
    "relay": "#0b7285",
    "c-each": "#adb5bd",
    "c-batch": "#868e96",
    "nchan": "#5c940d",
    "node": "#e67700",
    "aiohttp-sse": "#9c36b5",
    "fastapi": "#1864ab",
    "aiohttp-queue": "#e8590c",
}
_OTHER = "#495057"
_CURVE_NUMBERS = {"us_per_delivery": "CPU µs per delivery", "rss_mb": "RSS, MB", "p99_ms": "p99, ms"}


def draw(results: Mapping[str, Any], folder: Path) -> list[str]:
    """Writes SVG files; their names. Without matplotlib, said aloud, those that are there already."""
    if matplotlib is None:
        print("\nNO NEW PLOTS: matplotlib is not installed (pip install 'run-relay[bench]')")
        return [name for name in PLOTS if (folder / name).exists()]
    # The same results give the same bytes: no random ids, no date.
    matplotlib.rcParams.update({"svg.hashsalt": "relay", "svg.fonttype": "none", "font.size": 10})
    workloads = results["workloads"]
    drawn = [_ratios(workloads, folder / PLOTS[0])] if workloads else []
    known = [name for name in _LATENCY_OF if name in workloads]
    if known:
        drawn.append(_latency(workloads, known, folder / PLOTS[1]))
    if results.get("curves"):
        drawn.append(_curves(results["curves"], folder / PLOTS[2]))
    return drawn


def _better(name: str, row: Mapping[str, Any]) -> list[float]:
    """How many times better relay is: the median, the lowest and the highest round. More is better, always."""
    each = [ratio for ratio in row["ratios"] if ratio] or [1.0]
    if WORKLOADS[name].less_is_better:
        each = [1 / ratio for ratio in each]
    ranked = sorted(each)
    return [ranked[len(ranked) // 2], ranked[0], ranked[-1]]


def _ratios(workloads: Mapping[str, Any], path: Path) -> str:
    bars = [
        (f"{name}: {row['contestant']}", *_better(name, row), row["contestant"])
        for name, workload in workloads.items()
        for row in workload["summary"]
        if row["contestant"] != "relay"
    ][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.3 * len(bars) + 1.4), layout="constrained")
    for at, (_, ratio, low, high, who) in enumerate(bars):
        axes.barh(at, ratio, color=_COLOURS.get(who, _OTHER), xerr=[[ratio - low], [high - ratio]], capsize=2)
        axes.text(max(high, 1) * 1.06, at, f"{ratio:.3g}", va="center")
    axes.set_yticks(range(len(bars)), [bar[0] for bar in bars])
    axes.axvline(1, color="#0b7285", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(min(0.1, *(bar[2] * 0.8 for bar in bars)), max(bar[3] for bar in bars) * 3)
    axes.set_ylim(-0.7, len(bars) - 0.3)
    axes.set_xlabel("relay ÷ contestant in the workload's number (memory and p99: the other way round)")
    axes.set_title("More than 1: relay does better (median; whiskers: the rounds)")
    return _saved(figure, path)


def _latency(workloads: Mapping[str, Any], names: Sequence[str], path: Path) -> str:
    figure, each = pyplot.subplots(1, len(names), figsize=(4.6 * len(names), 4.2), layout="constrained", squeeze=False)
    for name, axes in zip(names, each[0], strict=True):
        for row in workloads[name]["summary"]:
            values = [row[key] for key in _QUANTILES]
            who = row["contestant"]
            axes.plot(list(_QUANTILES.values()), values, "o-", label=who, color=_COLOURS.get(who, _OTHER), ms=3)
        axes.set_yscale("log")
        axes.set_title(name)
        axes.grid(visible=True, which="both", alpha=0.2)
    each[0][0].set_ylabel("ms from the publisher to the viewer")
    each[0][0].legend(fontsize=8)
    figure.suptitle("Share of deliveries that took no longer (relay: through its upstream and Redis)")
    return _saved(figure, path)


def _curves(curves: Mapping[str, Any], path: Path) -> str:
    figure, each = pyplot.subplots(
        len(curves), len(_CURVE_NUMBERS), figsize=(13, 3.2 * len(curves)), layout="constrained", squeeze=False
    )
    for curve, line in zip(curves.values(), each, strict=True):
        for (key, title), axes in zip(_CURVE_NUMBERS.items(), line, strict=True):
            _curve(curve, key, axes)
            axes.set_xlabel(curve["axis"])
            axes.set_ylabel(title)
    each[0][0].legend(fontsize=8)
    return _saved(figure, path)


def _curve(curve: Mapping[str, Any], key: str, axes: Any) -> None:
    """One number of everybody against the curve's size. Points where a peer fell short are left open."""
    for who in dict.fromkeys(row["contestant"] for point in curve["points"] for row in point["rows"]):
        dots = [(point["at"], row) for point in curve["points"] for row in point["rows"] if row["contestant"] == who]
        colour = _COLOURS.get(who, _OTHER)
        axes.plot([at for at, _ in dots], [row[key] for _, row in dots], "-", color=colour, label=who)
        for whole, face in ((True, colour), (False, "white")):
            some = [(at, row[key]) for at, row in dots if (not row["faults"]) is whole]
            axes.plot([at for at, _ in some], [value for _, value in some], "o", ms=4, mfc=face, mec=colour)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(visible=True, which="both", alpha=0.2)


def _saved(figure: Any, path: Path) -> str:
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path.name
