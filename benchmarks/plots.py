"""The pictures: relay's ratio to each contestant, and latency by quantile. Needs matplotlib (the extra `bench`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.workloads import METRIC

try:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
except ImportError:
    matplotlib = None

_QUANTILES = {"p50_ms": "50 %", "p90_ms": "90 %", "p99_ms": "99 %", "p999_ms": "99.9 %", "max_ms": "all"}
_COLOURS = {"relay": "#0b7285", "c-each": "#adb5bd", "c-batch": "#868e96", "aiohttp-queue": "#e8590c"}


def draw(results: dict[str, Any], folder: Path) -> list[str]:
    """Writes SVG files; their names. Nothing without matplotlib, said aloud."""
    if matplotlib is None:
        print("\nNO PLOTS: matplotlib is not installed (pip install 'run-relay[bench]')")
        return []
    # The same results give the same bytes: no random ids, no date.
    matplotlib.rcParams.update({"svg.hashsalt": "relay", "svg.fonttype": "none", "font.size": 10})
    drawn = [_ratios(results["workloads"], folder / "benchmarks-ratios.svg")]
    if "fanout" in results["workloads"]:
        drawn.append(_latency(results["workloads"]["fanout"]["summary"], folder / "benchmarks-latency.svg"))
    return drawn


def _ratios(workloads: Mapping[str, Any], path: Path) -> str:
    bars = [
        (f"{name}: {row['contestant']}", row["relay_ratio"], min(row["ratios"]), max(row["ratios"]), row["contestant"])
        for name, workload in workloads.items()
        for row in workload["summary"]
        if row["contestant"] != "relay"
    ][::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(bars) + 1.4), layout="constrained")
    for at, (_, ratio, low, high, who) in enumerate(bars):
        axes.barh(at, ratio, color=_COLOURS.get(who, "#e8590c"), xerr=[[ratio - low], [high - ratio]], capsize=3)
        axes.text(high * 1.06, at, f"{ratio:.2f}", va="center")
    axes.set_yticks(range(len(bars)), [bar[0] for bar in bars])
    axes.axvline(1, color="#0b7285", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(min(0.1, *(bar[2] * 0.8 for bar in bars)), max(bar[3] for bar in bars) * 2)
    axes.set_xlabel("relay ÷ contestant: " + "; ".join(f"{name} in {METRIC[name][1]}" for name in workloads), wrap=True)
    axes.set_title("More than 1: relay does more (median; whiskers: the rounds)")
    return _saved(figure, path)


def _latency(rows: list[dict[str, Any]], path: Path) -> str:
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for row in rows:
        values = [row[name] for name in _QUANTILES]
        axes.plot(
            list(_QUANTILES.values()), values, "o-", label=row["contestant"], color=_COLOURS.get(row["contestant"])
        )
    axes.set_yscale("log")
    axes.set_ylabel("ms from the event's stamp to the viewer")
    axes.set_xlabel("share of deliveries that took no longer")
    axes.set_title("Latency, one run with many viewers (relay: through its upstream and Redis)")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    return _saved(figure, path)


def _saved(figure: Any, path: Path) -> str:
    figure.savefig(path, metadata={"Date": None})
    return path.name
