"""`python -m tests.campaign.rolling --viewers 1000 …`: restart everything, check it, report it. Status 1 if it failed."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import uvloop

from tests.campaign.rolling import judge, report
from tests.campaign.rolling.conduct import Options, rolling
from tests.support.upstream_client import ROOT


def main() -> int:
    given = _arguments()
    folder = given.record or Path(tempfile.mkdtemp(prefix="rolling-"))
    options = Options(
        viewers=given.viewers,
        runs=given.runs,
        replicas=given.replicas,
        seed=given.seed,
        rate=given.rate,
        between_s=given.between,
        settings=dict(pair.split("=", 1) for pair in given.set),
        out=folder,
        tree=given.tree.absolute(),
    )
    uvloop.run(rolling(options))
    result = judge.check(folder)
    report.write(given.out or folder, result)
    print(((given.out or folder) / "report.md").read_text())
    failed = bool(result["violations"] or result["troubles"]) or set(result["exits"]) != {"status 0"}
    if failed:
        print(f"FAILED. The record is in {folder}.")
    elif given.record is None and given.out is not None:
        shutil.rmtree(folder)
    return int(failed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.rolling", description=__doc__)
    parser.add_argument("--viewers", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=5.0, help="events a second and run")
    parser.add_argument(
        "--between", type=float, default=0.0, help="seconds between a replica's ready and the next stop"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="a setting of the relays"
    )
    parser.add_argument("--out", type=Path, help="where the report is written (default: with the record)")
    parser.add_argument("--record", type=Path, help="where the record is kept (default: a temporary folder)")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout whose relay is tested")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
