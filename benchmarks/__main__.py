"""`python -m benchmarks`: take turns, check, count, print, and write down.

What was measured in full (not --short, at least three rounds, every contestant, the C client) replaces its workload in
results/latest.json and docs/benchmarks.md; so a long campaign can be done in parts. Anything less goes to
results/partial.local.json: half a measurement must not stand where a whole one did.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import orjson

from benchmarks import campaign, curves, machine, plots, report, rivals
from benchmarks.load import ROOT, Load
from benchmarks.workloads import WORKLOADS
from relay.store.embedded import EmbeddedServer
from relay.store.options import EmbeddedOptions

RESULTS = Path(__file__).parent / "results"
DOCS = ROOT / "docs"


def main() -> int:
    options = _options()
    if options.render:
        _write_docs(_latest())
        return 0
    machine.require()
    pin = machine.pinned()
    if pin:
        os.sched_setaffinity(0, {machine.REST_CORE})
    else:
        print("NOT PINNED: one core only, the load and what is measured take it from each other")
    with Load(force_python=options.python_client) as load, tempfile.TemporaryDirectory(prefix="relay-bench-") as place:
        if not load.fast:
            print(f"PYTHON LOAD CLIENT: {load.why_python}. It costs more CPU than relay; latencies are mostly its own.")
        server = EmbeddedServer.start(EmbeddedOptions(data_dir=str(Path(place) / "redis")))
        try:
            results = asyncio.run(campaign.run(options, load, server, Path(place), pin=pin))
        finally:
            server.stop()
    if not options.profile:
        _keep(results, whole=_whole(options, load))
    for name, why in results["failed"].items():
        print(f"FAILED: {name}: {why}", file=sys.stderr)
    return 1 if results["failed"] else 0


def _options() -> argparse.Namespace:
    parse = argparse.ArgumentParser(prog="python -m benchmarks", description="Relay under load, beside its peers.")
    parse.add_argument("--short", action="store_true", help="small and once, for CI: does it work, is it whole")
    parse.add_argument("--only", help=f"these workloads: {','.join(WORKLOADS)}")
    parse.add_argument("--curves", nargs="?", const=",".join(curves.CURVES), help="cost curves instead (all, or these)")
    parse.add_argument("--peers", help="beside relay, only these, or none (then nothing is written to the docs)")
    parse.add_argument("--rounds", type=int, help="how often everybody has a turn (default 3; 1 with --short)")
    parse.add_argument("--keep", action="store_true", help="write results and docs even of fewer than 3 rounds")
    parse.add_argument(
        "--profile", nargs="?", const="python", choices=["python", "native"], help="relay alone, with py-spy beside it"
    )
    parse.add_argument("--python-client", action="store_true", help="use viewers.py even where the C client is at hand")
    parse.add_argument("--render", action="store_true", help="write the docs again from results/latest.json")
    options = parse.parse_args()
    options.only = _names(parse, options.only, WORKLOADS)
    options.curves = _names(parse, options.curves, curves.CURVES)
    options.peers = _names(parse, options.peers, [*rivals.KNOWN, "none"])
    options.rounds = options.rounds or (1 if options.short or options.profile else 3)
    return options


def _names(parse: argparse.ArgumentParser, given: str | None, known: Any = None) -> list[str]:
    names = [name for name in (given or "").split(",") if name]
    for name in names if known is not None else ():
        if name not in known:
            parse.error(f"no {name!r}; there are {', '.join(known)}")
    return names


# --- what was measured -----------------------------------------------------------------------------------------------
def _whole(options: argparse.Namespace, load: Load) -> bool:
    enough = options.keep or options.rounds >= 3 or bool(options.curves)
    return enough and load.fast and not options.short and not options.peers


def _latest() -> dict[str, Any]:
    path = RESULTS / "latest.json"
    return orjson.loads(path.read_bytes()) if path.exists() else {"workloads": {}, "curves": {}}


def _keep(results: dict[str, Any], *, whole: bool) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / ("latest.json" if whole else "partial.local.json")
    kept = campaign.merged(_latest(), results) if whole else results
    path.write_bytes(orjson.dumps(kept, option=orjson.OPT_INDENT_2) + b"\n")
    if whole:
        _write_docs(kept)
    print(f"\nWritten: {path.name}{' and docs/benchmarks.md' if whole else ''}")
    if not results["failed"]:
        print("relay: 0 gaps, 0 repeats, nothing missing")


def _write_docs(results: dict[str, Any]) -> None:
    report.into_docs(results, DOCS / "benchmarks.md", plots.draw(results, DOCS))


if __name__ == "__main__":
    sys.exit(main())
