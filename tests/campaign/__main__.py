"""`python -m tests.campaign --seed S --rounds N …`: run it, check it, report it. Exit status 1 if anything was violated."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from tests.campaign import checker, report
from tests.campaign.conduct import Options, campaign
from tests.support.upstream_client import ROOT

MIX = ("single", "sentinel", "cluster")


def main() -> int:
    options = _arguments()
    parts = MIX if options.topology == "mix" else (options.topology,)
    out = options.out or Path(tempfile.mkdtemp(prefix="campaign-"))
    results = []
    for part in parts:
        folder = out / part if len(parts) > 1 else out
        given = Options(
            seed=options.seed,
            rounds=-(-options.rounds // len(parts)),
            topology=part,
            runs=options.runs,
            relays=options.relays,
            seconds=options.seconds,
            out=folder,
            tree=options.tree.absolute(),
            bug=options.bug,
            brief=options.brief,
            quiet=options.quiet,
            audience=options.audience,
            kinds=options.kinds.split(",") if options.kinds else [],
        )
        began = time.monotonic()
        uvloop.run(campaign(given))
        print(f"{part}: ran {time.monotonic() - began:.0f} s; checking", flush=True)
        results.append(checker.check(folder))
        report.write(folder, results[-1:])
    if len(parts) > 1:
        report.write(out, results)
    print((out / "report.md").read_text())
    failed = any(result["violations"] for result in results)
    if failed:
        print(f"FAILED. The record is in {out}; the same schedule again:\n  {_replay(options)}")
    elif options.out is None:
        shutil.rmtree(out)
    return int(failed)


def _replay(options: argparse.Namespace) -> str:
    words = [f"--seed {options.seed} --rounds {options.rounds} --topology {options.topology}"]
    words.append(f"--runs {options.runs} --relays {options.relays}")
    words += [f"--seconds {options.seconds:g}"] if options.seconds is not None else []
    words += ["--audience many"] if options.audience == "many" else []
    words += ["--brief"] if options.brief else []
    words += [f"--tree {options.tree}"] if options.tree != ROOT else []
    words += [f"--bug {options.bug}"] if options.bug else []
    words += [f"--kinds {options.kinds}"] if options.kinds else []
    return f"{sys.executable} -m tests.campaign " + " ".join(words)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--topology", choices=(*MIX, "mix"), default="single")
    parser.add_argument("--runs", type=int, default=8, help="runs active at a time")
    parser.add_argument("--relays", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="stop injecting after so long")
    parser.add_argument(
        "--out", type=Path, help="where the record is kept (default: a temporary folder, kept on failure)"
    )
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout whose relay is tested")
    parser.add_argument("--bug", help="start relays with a seeded bug (tests/campaign/bugs.py)")
    parser.add_argument("--brief", action="store_true", help="short runs")
    parser.add_argument("--kinds", help="only these kinds of rounds, with commas")
    parser.add_argument("--audience", choices=("all", "many"), default="all", help="many: all runs on one connection")
    parser.add_argument("--quiet", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
