"""A campaign: workloads round by round, everybody's turn within a round, one line of progress per turn."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import curves, machine, report, rivals
from benchmarks.contest import Contestant, Place, Relay
from benchmarks.load import Load
from benchmarks.measure import Arena, Row, Shape, noted
from benchmarks.profile import Profile
from benchmarks.workloads import WORKLOADS, Turn
from relay.store.embedded import EmbeddedServer

EVENT_BYTES = 220
"""JSON of an event as viewers get it, about 235 bytes with its SSE framing. Relay gets smaller payloads, so that its
events, which grow on their way, are as large as all others'."""
_SHORT_WITH_A_PEER = ("W1", "W2")
"""Where the short form has the first peer beside relay; it asks whether all of it works, not how fast it is."""


async def run(options: argparse.Namespace, load: Load, server: EmbeddedServer, directory: Path, *, pin: bool) -> Any:
    """What was asked for, as a part of results/latest.json."""
    place = Place(directory, server.url, server.pid, pin)
    facts = machine.facts(server.describe, load.name, pin=pin)
    print(report.told(facts))
    field, absent = rivals.present(load, place)
    for name, why in absent.items():
        print(f"SKIPPED {name}: {why}")
    grown = facts["grown"] = 0 if options.short else await Relay(place).growth()
    field["relay"] = Relay(place, grown=grown)
    arena = Arena(load, place, EVENT_BYTES, _profile(options))
    if options.peers:
        field = {name: who for name, who in field.items() if name in ("relay", *options.peers)}
    results: dict[str, Any] = {"workloads": {}, "curves": {}, "failed": {}}
    for name in [] if options.curves else options.only or WORKLOADS:
        async with noted(name, results["failed"]):
            told = await _workload(name, options, arena, field)
            results["workloads"][name] = {"facts": facts, "skipped": absent, **told}
    for name in options.curves:
        results["curves"][name] = {"facts": facts, **await curves.draw(name, arena, field, results["failed"])}
    return results


def merged(latest: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Each workload and each curve as it was measured last, in the order of the table."""
    workloads = {**latest.get("workloads", {}), **new["workloads"]}
    drawn = {**latest.get("curves", {}), **new["curves"]}
    return {
        "workloads": {name: workloads[name] for name in WORKLOADS if name in workloads},
        "curves": {name: drawn[name] for name in curves.CURVES if name in drawn},
    }


def _profile(options: argparse.Namespace) -> Profile | None:
    if not options.profile:
        return None
    return Profile(Path(__file__).parent / "results" / "profile.local.txt", native=options.profile == "native")


# --- one workload ----------------------------------------------------------------------------------------------------
async def _workload(
    name: str, options: argparse.Namespace, arena: Arena, field: Mapping[str, Contestant]
) -> dict[str, Any]:
    workload = WORKLOADS[name]
    shape = workload.shaped(short=options.short or not arena.load.fast)
    turns = _turns(name, options, field)
    rounds = []
    for number in range(1, options.rounds + 1):
        # The other way round every second time: whoever is first on a warm or a busy machine is not always the same.
        order = turns if number % 2 else turns[::-1]
        taken = [await _turn(name, turn, arena, field, shape, f"{number}/{options.rounds}") for turn in order]
        rows = [row for row in taken if row is not None]
        rounds.append(sorted(rows, key=lambda row: [turn.name for turn in turns].index(row["contestant"])))
    told: dict[str, Any] = {"what": workload.told(shape), "rounds": rounds, "summary": report.summary(name, rounds)}
    if not options.profile and not options.short:
        print(f"\n{name}: {told['what']}\n{report.table(name, told['summary'])}")
        print("\n".join(["", *report.fell_short(told["summary"])]), flush=True)
    return told


def _turns(name: str, options: argparse.Namespace, field: Mapping[str, Contestant]) -> list[Turn]:
    here = [turn for turn in WORKLOADS[name].turns if turn.who in field]
    if options.profile or options.short:
        return here[: 1 + (options.short and name in _SHORT_WITH_A_PEER)]
    return here


async def _turn(
    name: str, turn: Turn, arena: Arena, field: Mapping[str, Contestant], shape: Shape, number: str
) -> Row | None:
    """None: a peer could not be measured. It is said, and the campaign goes on without that row; of relay it ends it."""
    began = time.monotonic()
    print(f"{name:8} {number}  {turn.name:15} ", end="", flush=True)
    # Less for slow peers is less than the full form, not more than the short one.
    changes = {key: value for key, value in turn.changes.items() if not _more(value, getattr(shape, key))}
    try:
        row = await WORKLOADS[name].measure(arena, field[turn.who], replace(shape, **changes))
    except (TimeoutError, RuntimeError, OSError) as error:
        if turn.who == "relay":
            raise
        print(f"FAILED, left out of this round: {error!r}", flush=True)
        return None
    print(f"{_brief(name, row)}   ({time.monotonic() - began:.0f} s)", flush=True)
    return {"contestant": turn.name, **row}


def _more(value: Any, than: Any) -> bool:
    numbers = isinstance(value, int | float) and isinstance(than, int | float)
    return numbers and not isinstance(value, bool) and value > than


def _brief(name: str, row: Row) -> str:
    workload = WORKLOADS[name]
    keys = [key for key in (workload.metric, *workload.columns) if key in row][:5]
    told = ", ".join(f"{report.COLUMNS[key][0]} {format(row[key], report.COLUMNS[key][1])}" for key in keys)
    return told + (f"  INCOMPLETE: {', '.join(row['faults'])}" if row["faults"] else "")
