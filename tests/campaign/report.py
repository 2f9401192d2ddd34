"""What the checker found, for people: a table (`report.md`) and, where matplotlib is there, the pauses (`pauses.svg`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PROMISES = {
    "lost": "an event a reader never got",
    "repeated": "an event a reader got twice",
    "reordered": "an event out of order",
    "invented": "an event the upstream never said",
    "altered": "an event that is not what the upstream said",
    "visible_before_durable": "shown before its append was sent",
    "never_durable": "shown, and never appended",
    "announced_loss": "`relay.reset` although the upstream has everything",
    "ended_early": "told the end before it was the end",
    "ended_twice": "told the end twice",
    "after_end": "an event after the end",
    "stuck": "never told the end",
    "two_owners": "a write accepted under an old fence",
    "stale_renewal": "a lease renewed under an old fence",
    "fence_fell": "a claim with a lower fence than an earlier one",
    "old_master": "a write an old master took although another one had been named long ago",
    "two_followers": "two upstream streams of a run, unexplained",
    "written_twice": "one seq appended twice",
    "log_hole": "a hole in the final log",
    "log_invented": "an event in the final log that never was",
    "log_lost": "a log that vanished by itself",
    "refused": "404 or 500 for a run that exists",
    "unrecorded": "(harness) a delivery without its text",
    "unreadable": "(harness) a script call the tap cannot read",
}


def write(folder: Path, results: list[dict[str, Any]]) -> None:
    bare = [
        {**one, "meta": {k: v for k, v in one.get("meta", {}).items() if k not in ("out", "tree")}} for one in results
    ]
    (folder / "report.json").write_text(
        json.dumps(bare if len(bare) > 1 else bare[0], indent=1)
    )  # no path of a machine
    (folder / "report.md").write_text("\n".join(_lines(results)) + "\n")
    _plot(folder / "pauses.svg", results)


def _lines(results: list[dict[str, Any]]) -> list[str]:
    heads = [str(result["meta"].get("topology", "?")) for result in results]
    lines = [f"# Fault campaign, seed {results[0]['meta'].get('seed')}", ""]
    lines += ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]

    def row(name: str, *values: Any) -> None:
        lines.append(f"| {name} | " + " | ".join(str(value) for value in values) + " |")

    for name in ("rounds", "rounds_with_readers", "runs", "events", "readers", "connections", "deliveries"):
        row(name.replace("_", " "), *(result[name] for result in results))
    row("rounds not done", *(len(result["rounds_not_done"]) for result in results))
    for kind, words in PROMISES.items():
        if not words.startswith("(harness)") or any(kind in result["violations"] for result in results):
            row(f"**{kind}**: {words}", *(result["violations"].get(kind, 0) for result in results))
    row(
        "writes under an old fence that cannot be judged (a claim lost in a failover; two masters)",
        *(_words(result["old_fence_writes_around_failovers"]) for result in results),
    )
    row("old masters", *(_words(result["old_masters"]) for result in results))
    for what, words in (("kill", "kill -9 of the owner"), ("drain", "drain of the owner")):
        for part in ("clean", "all"):
            row(
                f"pause of viewers elsewhere, {words}, {part}",
                *(milliseconds(r["pauses"][what][part]) for r in results),
            )
    row("lateness of all deliveries", *(milliseconds(result["lateness"]) for result in results))
    for name in ("most_at_once", "overlaps", "overlaps_longer_than_a_moment", "overlaps_explained_by_takeover",
                 "overlap_seconds", "longest_overlap_s", "stream_seconds"):  # fmt: skip
        row("following upstream streams of a run: " + name.replace("_", " "), *(r["following"][name] for r in results))
    for name in ("statuses", "connection_ends", "goodbyes", "writes", "incidents"):
        row(name.replace("_", " "), *(_words(result[name]) for result in results))
    lines += ["", "## Rounds by kind", ""]
    kinds = sorted({kind for result in results for kind in result["kinds"]})
    lines += ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for kind in kinds:
        row(kind, *(result["kinds"].get(kind, 0) for result in results))
    examples = [example for result in results for example in result["examples"]]
    if examples:
        lines += ["", "## Violations (first examples)", ""]
        lines += [f"- `{json.dumps(example)[:700]}`" for example in examples[:60]]
    return lines


def _words(value: Any) -> str:
    return ", ".join(f"{name}: {count}" for name, count in value.items()) or "none"


def milliseconds(summary: dict[str, Any]) -> str:
    if not summary["n"]:
        return "no sample"
    parts = [f"{name} {summary[name] * 1000:.0f}" for name in ("p50", "p90", "p99", "max")]
    return f"{', '.join(parts)} ms (n={summary['n']})"


def _plot(path: Path, results: list[dict[str, Any]]) -> None:
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is absent: no pauses.svg (pip install 'run-relay[bench]')", file=sys.stderr)
        return
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, what, title in ((axes[0], "kill", "kill -9 of the owner"), (axes[1], "drain", "drain of the owner")):
        for result in results:
            samples = result["pauses"][what]["samples"]["clean"]
            if samples:
                label = f"{result['meta'].get('topology')} (n={len(samples)})"
                axis.hist(samples, bins=40, histtype="step", label=label, linewidth=1.4)
        axis.set(title=title, xlabel="pause of viewers on other processes, s", ylabel="viewers")
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    figure.savefig(path)
    pyplot.close(figure)
