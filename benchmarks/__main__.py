"""`python -m benchmarks`: take turns, check, count, print, and write down.

A full run writes results/latest.json, docs/benchmarks.md and its plots. Anything less (--short, --only) writes only
results/partial.local.json and its table: half a measurement must not stand where a whole one did.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from benchmarks import contest, machine, plots, report
from benchmarks.load import ROOT, Load, Violation
from benchmarks.workloads import FULL, SHORT, WORKLOADS, Arena, Row, Size
from relay.store.embedded import EmbeddedServer
from relay.store.options import EmbeddedOptions

RESULTS = Path(__file__).parent / "results"
DOCS = ROOT / "docs"


def main() -> int:
    options = _options()
    if options.render:
        _write_docs(orjson.loads((RESULTS / "latest.json").read_bytes()))
        return 0
    machine.require()
    pin = machine.pinned()
    if pin:
        os.sched_setaffinity(0, {machine.REST_CORE})
    else:
        print("NOT PINNED: one core only, the load and what is measured take it from each other")
    with Load(force_python=options.python_client) as load, tempfile.TemporaryDirectory(prefix="relay-bench-") as place:
        if not load.fast:
            print(
                f"PYTHON LOAD CLIENT: {load.why_python}. It costs more CPU than relay; latencies are largely its own."
            )
        server = EmbeddedServer.start(EmbeddedOptions(data_dir=str(Path(place) / "redis")))
        try:
            results = asyncio.run(_measure(options, load, server, Path(place), pin))
        except (Violation, TimeoutError) as error:
            print(f"\nFAILED: {error}", file=sys.stderr)
            return 1
        finally:
            server.stop()
    _keep(results, whole=not options.short and not options.only and load.fast)
    return 0


def _options() -> argparse.Namespace:
    parse = argparse.ArgumentParser(prog="python -m benchmarks", description="Relay under load, beside its peers.")
    parse.add_argument("--short", action="store_true", help="small and once, for CI: does it work, is it whole")
    parse.add_argument("--only", action="append", choices=list(WORKLOADS), help="this workload only (repeatable)")
    parse.add_argument("--rounds", type=int, help="how often everybody has a turn (default 3; 1 with --short)")
    parse.add_argument("--python-client", action="store_true", help="use viewers.py even where the C client is at hand")
    parse.add_argument("--render", action="store_true", help="write the docs again from results/latest.json")
    return parse.parse_args()


async def _measure(
    options: argparse.Namespace, load: Load, server: EmbeddedServer, place: Path, pin: bool
) -> dict[str, Any]:
    size = SHORT if options.short or not load.fast else FULL
    rounds = options.rounds or (1 if options.short else 3)
    facts = machine.facts(server.describe, load.name, pin=pin)
    print(report.told(facts))
    measured: dict[str, list[list[Row]]] = {}
    event_bytes = 0
    for name in options.only or WORKLOADS:
        # A relay of its own for each workload: none inherits the runs of the one before.
        async with contest.relay(server.url, place, pin=pin) as relay:
            event_bytes = await relay.event_bytes()
            peers = contest.peers(load.cfan, event_bytes, pin=pin)
            arena = Arena(relay, peers, load, size, server.pid, pin)
            try:
                measured[name] = [await _round(name, arena, number, rounds) for number in range(1, rounds + 1)]
            finally:
                for peer in peers:
                    await peer.close()
            await relay.redis.flushall()
    return {
        "facts": facts,
        "rounds": rounds,
        "event_bytes": event_bytes,
        "workloads": {name: _summed_up(name, turns, size) for name, turns in measured.items()},
    }


async def _round(name: str, arena: Arena, number: int, rounds: int) -> list[Row]:
    began = time.monotonic()
    print(f"{name}: round {number} of {rounds} … ", end="", flush=True)
    rows = await WORKLOADS[name](arena, f"-{number}")
    print(f"{time.monotonic() - began:.0f} s")
    return rows


def _summed_up(name: str, turns: list[list[Row]], size: Size) -> dict[str, Any]:
    return {"what": _what(name, size), "rounds": turns, "summary": report.summary(name, turns)}


def _what(name: str, size: Size) -> str:
    """The workload in one line, with its numbers."""
    return {
        "fanout": f"One run, {size.viewers:,} viewers, {size.rate:g} events/s for {size.secs:g} s; all connected before.",
        "joiners": f"One run with {size.history:,} events; {size.joiners} viewers join at its start at once.",
        "ingest": (
            f"{size.runs:,} runs made durable, nobody watching: {size.ingest_rate:g} events/s on each for {size.secs:g} "
            f"s (paced), then {size.flood} on each as fast as the upstream writes (flood)."
        ),
        "many": f"{size.runs:,} runs, 2 viewers and {size.ingest_rate:g} events/s on each, for {size.secs:g} s.",
    }[name]


def _keep(results: dict[str, Any], *, whole: bool) -> None:
    for name, workload in results["workloads"].items():
        print(f"\n{name}: {workload['what']}\n{report.table(name, workload['summary'])}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / ("latest.json" if whole else "partial.local.json")
    path.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")
    if whole:
        _write_docs(results)
    print(f"\n0 gaps, 0 repeats, nothing missing. Written: {path.relative_to(ROOT)}{' and docs' if whole else ''}")


def _write_docs(results: dict[str, Any]) -> None:
    report.into_docs(results, DOCS / "benchmarks.md", plots.draw(results, DOCS))


if __name__ == "__main__":
    sys.exit(main())
