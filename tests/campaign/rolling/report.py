"""What the judge found, for people: `report.json`, a table (`report.md`), and `reconnects.svg` where matplotlib is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.campaign.report import PROMISES, milliseconds

_JUDGED = ("lost", "repeated", "reordered", "invented", "altered", "announced_loss", "ended_early", "ended_twice",
           "after_end", "stuck", "refused")  # fmt: skip
_COLOURS = {"answered": "#0b7285", "refused": "#e8590c", "503": "#c92a2a"}


def write(folder: Path, result: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "report.md").write_text("\n".join(_lines(result)) + "\n")
    _plot(folder / "reconnects.svg", result)


def _lines(result: dict[str, Any]) -> list[str]:
    meta, again = result["meta"], result["reconnects"]
    lines = [
        f"# Rolling restart of {meta['replicas']} replicas under {meta['viewers']} viewers, seed {meta['seed']}",
        "",
        "![reconnects per second](reconnects.svg)",
        "",
        "| | |",
        "|---|---|",
    ]

    def row(name: str, value: Any) -> None:
        lines.append(f"| {name} | {value} |")

    row("runs, events, deliveries", f"{meta['runs']}, {result['events']}, {result['deliveries']}")
    for kind in sorted({*_JUDGED, *result["violations"]}, key=list(PROMISES).index):
        row(f"**{kind}**: {PROMISES[kind]}", result["violations"].get(kind, 0))
    row("viewers told the end", f"{result['told_the_end']} of {result['viewers']}")
    row("reconnects", again["total"])
    row("reconnects in the worst second", f"**{again['peak_in_a_second']}** ({again['peak_in_100_ms']} in 100 ms)")
    row("refused before an answer (no listener, or none ready)", again["refused"])
    row("refused with 503 (ends a plain `EventSource`)", again["503"])
    row("pause of viewers whose replica went away", milliseconds(result["pauses"]))
    row("pause of viewers elsewhere whose run was handed over", milliseconds(result["handover"]))
    row("pause of its own viewers before their goodbye, run handed over", milliseconds(result["staying"]))
    row("the same for viewers of runs that were not handed over", milliseconds(result["bystanders"]))
    row("lateness before the first restart", milliseconds(result["lateness_before"]))
    row("following upstream streams of a run, at most at once", result["following_streams_of_a_run_at_most"])
    row("settings", ", ".join(f"`{k}={v}`" for k, v in meta["settings"].items()) or "defaults")
    row("cores; load before the start", f"{meta['cores']}; {meta['load_before']}")
    row("exits", _words(result["exits"]))
    row("cores used by everything but relay and Redis", _words(result["machine"]["cores_used"]))
    return [*lines, "", *_restarts(result["restarts"]), *_closing(result)]


def _restarts(restarts: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| replica | SIGTERM at | to exit | to ready again | viewers (told goodbye) | their pause, ms | runs pumped | "
        "hand-over elsewhere, ms |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in restarts:
        lines.append(
            f"| {one['replica']} | {one['sigterm_at']:.1f} s | {one['exit_s']:.2f} s | {one['ready_s']:.2f} s | "
            f"{one['viewers']} ({one['told_goodbye']}) | {milliseconds(one['pause'])} | {one['runs_pumped']} | "
            f"{milliseconds(one['handover'])} |"
        )
    return lines


def _closing(result: dict[str, Any]) -> list[str]:
    meta = result["meta"]
    lines = [
        "",
        "A pause is what a viewer sees: from the cut to the first event after it, the delay it was told to wait included.",
        f"One machine for all of it; viewers behave like browsers. Again: `make rolling SEED={meta['seed']}`.",
    ]
    if result["examples"]:
        lines += ["", "## Violations (first examples)", ""]
        lines += [f"- `{json.dumps(example)[:700]}`" for example in result["examples"][:40]]
    return lines


def _words(value: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in value.items()) or "none"


def _plot(path: Path, result: dict[str, Any]) -> None:
    try:
        import matplotlib
    except ImportError:
        print(f"matplotlib is absent: no {path.name} (pip install 'run-relay[bench]')")
        return
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "relay", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot

    again = result["reconnects"]
    figure, axes = pyplot.subplots(figsize=(9, 3.8), layout="constrained")
    for one in result["restarts"]:
        axes.axvspan(one["sigterm_at"], one["exit_at"], color="#ffe8cc", zorder=0)
        axes.axvspan(one["exit_at"], one["ready_at"], color="#f1f3f5", zorder=0)
        axes.axvline(one["sigterm_at"], color="#e8590c", linewidth=1)
        axes.annotate(f"SIGTERM {one['replica']}", (one["sigterm_at"], 0.98), xycoords=("data", "axes fraction"),
                      xytext=(2, 0), textcoords="offset points", fontsize=8, rotation=90, va="top")  # fmt: skip
    below = [0] * max((len(counts) for counts in again["per_second"].values()), default=0)
    for name, counts in again["per_second"].items():
        axes.bar(range(len(counts)), counts, 0.9, below, align="edge", label=name, color=_COLOURS.get(name, "#868e96"))
        below = [low + count for low, count in zip(below, counts, strict=True)]
    axes.set(xlabel="seconds since the first SIGTERM", ylabel="reconnects per second", xlim=(-1, len(below) + 1))
    axes.set_title(f"{result['meta']['viewers']} viewers, {result['meta']['replicas']} replicas restarted in turn")
    if below:
        axes.legend(loc="upper right")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
