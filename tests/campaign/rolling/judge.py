"""The offline judge of a rolling restart: the campaign's checker for what was shown, and what the restart cost people.

A pure function of the recorded files; imports nothing of relay. The measures:

- *reconnects*: attempts to connect that are not a viewer's first, per second; *refused*: cut before an answer (the replica
  no longer listened, or none was ready), *503* (which ends a plain `EventSource` for good), answered.
- *pauses*: of viewers whose own replica went away: from the end of the connection to the first event after it. The delay
  they were asked to wait is part of it.
- *handover*: of viewers on *other* replicas, whose connection lived on, but whose run the replica that went away had
  pumped: the greatest lateness (from the upstream's word to the viewer) of what was said around the SIGTERM.
- *staying*: the same for viewers on the replica itself, between the SIGTERM and their goodbye.
- *bystanders*: the same for runs that others pumped: what the machine itself did to everybody at that time.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from pathlib import Path

from tests.campaign.checker import Delivery, Evidence, Findings, Readers, Row, Truth, read, rows, summary

_AROUND_S = 1.0
"""What is said so long after a SIGTERM and is late is blamed on it, however late: a longer pause begins in here too."""
_STOOD_S = 0.3
"""A connection must be this old at a SIGTERM to count as one that lived through it."""


@dataclass(slots=True)
class Attempt:
    """One connection of one viewer."""

    viewer: str
    run: str
    wire: str
    t0: float
    replica: int
    """-1: none took it."""
    again: bool
    status: int = 0
    goodbye: bool = False
    t1: float = float("inf")
    how: str = "open"
    first_event: float | None = None

    @property
    def outcome(self) -> str:
        if self.status in (200, 101, 204):
            return "answered"
        return str(self.status) if self.status else ("refused" if self.how != "open" else "open")


@dataclass(slots=True)
class Record:
    """One folder, read."""

    meta: Row
    restarts: list[Row]
    balancer: list[Row]
    evidence: Evidence
    attempts: list[Attempt] = field(default_factory=list)


class Places:
    """Which replica the connection from a local port led to: ports are used again, so the nearest in time is it."""

    def __init__(self, balancer: Sequence[Row]) -> None:
        self._by_port: dict[int, list[tuple[float, int]]] = defaultdict(list)
        for row in balancer:
            if "p" in row:
                self._by_port[row["p"]].append((row["t"], row["to"] if row["ok"] else -1))

    def of(self, port: int, t: float) -> int:
        known = self._by_port.get(port, [])
        return min(known, key=lambda one: abs(one[0] - t))[1] if known else -1


def load(folder: Path) -> Record:
    """Journals are merged by time; `o` becomes the replica, and each connection an attempt."""
    meta = json.loads((folder / "meta.json").read_text())
    balancer = list(rows(folder / "balancer.jsonl"))
    evidence = Evidence(
        meta=meta,
        processes=list(rows(folder / "processes.jsonl")),
        runs=list(rows(folder / "runs.jsonl")),
        truth=list(rows(folder / "truth.jsonl")),
        texts=[row for path in sorted(folder.glob("texts-*.jsonl")) for row in rows(path)],
    )
    record = Record(meta, list(rows(folder / "restarts.jsonl")), balancer, evidence)
    journals = [rows(path) for path in sorted(folder.glob("journal-*.jsonl"))]
    evidence.journal = noted(merge(*journals, key=lambda row: row["t"]), Places(balancer), record.attempts)
    return record


def noted(journal: Iterator[Row], places: Places, attempts: list[Attempt]) -> Iterator[Row]:
    now: dict[str, Attempt] = {}
    for row in journal:
        if "o" in row:
            row["o"] = places.of(row["o"], row["t"])
            now[row["r"]] = Attempt(row["r"], row["run"], row["w"], row["t"], row["o"], bool(row["n"]))
            attempts.append(now[row["r"]])
        elif "s" in row:
            now[row["r"]].status = row["s"]
        elif "e" in row and now[row["r"]].first_event is None:
            now[row["r"]].first_event = row["t"]
        elif row.get("f") == "relay.goodbye":
            now[row["r"]].goodbye = True
        elif "x" in row:
            now[row["r"]].t1, now[row["r"]].how = row["t"], row["x"]
        yield row


def judge(record: Record) -> Row:
    found, runs = Findings(), record.evidence.runs
    truths, _, readers = read(record.evidence, found)
    began = record.restarts[0]["t0"] if record.restarts else 0.0
    shown = _by_run(readers.deliveries)
    restarts = [_restart(record, index, truths, shown) for index in range(len(record.restarts))]
    for restart in restarts:
        restart |= {name: round(restart[name] - began, 3) for name in ("sigterm_at", "exit_at", "ready_at")}
    pauses = [pause for restart in restarts for pause in restart.pop("pause_samples")]
    handover = [pause for restart in restarts for pause in restart.pop("handover_samples")]
    staying = [pause for restart in restarts for pause in restart.pop("staying_samples")]
    bystanders = [pause for restart in restarts for pause in restart.pop("bystander_samples")]
    return {
        "meta": record.meta,
        "violations": dict(found.counts),
        "examples": found.examples,
        "viewers": len(readers.readers),
        "told_the_end": sum(reader.ended_at is not None for reader in readers.readers.values()),
        "events": sum(len(truth.seqs) for truth in truths.values()),
        "deliveries": len(readers.deliveries),
        "connections": len(record.attempts),
        "reconnects": _reconnects(record, began),
        "restarts": restarts,
        "pauses": {**summary(pauses), "samples": _rounded(pauses)},
        "handover": {**summary(handover), "samples": _rounded(handover)},
        "staying": {**summary(staying), "samples": _rounded(staying)},
        "bystanders": summary(bystanders),
        "lateness_before": summary(_lateness(truths, readers, record.meta["quiet"])),
        "connection_ends": dict(readers.ways),
        "goodbyes": dict(readers.goodbyes),
        "exits": _exits(record.evidence.processes),
        "troubles": {name: words for name, words in record.meta["troubles"].items() if words},
        "following_streams_of_a_run_at_most": max((run["counters"]["max_following"] for run in runs), default=0),
        "machine": _machine(record),
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in sorted(values)]


def _exits(processes: Sequence[Row]) -> Row:
    """How the replicas' lives ended; `by itself` and `would not end` should never be there."""
    ends = Counter(f"status {row['status']}" for row in processes if row["what"] == "exit" and row["expected"])
    ends["by itself"] = sum(row["what"] == "exit" and not row["expected"] for row in processes)
    ends["would not end"] = sum(row["what"] == "would_not_end" for row in processes)
    return {name: count for name, count in ends.items() if count}


def _machine(record: Record) -> Row:
    """Whether anything but relay was the bottleneck."""
    lags = [row["lag"] for row in record.balancer if "lag" in row]
    return {
        "cores_used": record.meta["cores_used"],
        "balancer_lag_s": round(max(lags, default=0.0), 3),
        "viewers_lag_s": record.meta["lag_s"],
    }


# ── one restart ─────────────────────────────────────────────────────────────────────────────────────────────────────
Shown = dict[str, dict[str, list[Delivery]]]
"""Run -> viewer -> what it was shown, in order."""


def _by_run(deliveries: Sequence[Delivery]) -> Shown:
    shown: Shown = defaultdict(lambda: defaultdict(list))
    for delivery in deliveries:
        shown[delivery.run][delivery.reader].append(delivery)
    return shown


def _restart(record: Record, index: int, truths: dict[str, Truth], shown: Shown) -> Row:
    about = record.restarts[index]
    t0, t1, replica = about["t0"], about["t1"], about["replica"]
    later = [row["t0"] for row in record.restarts[index + 1 :]]
    until = min([t0 + _AROUND_S, record.meta["ended"], *(at - 0.2 for at in later)])
    cut = [one for one in record.attempts if one.replica == replica and one.t0 <= t1 and t0 <= one.t1 <= t1 + 1]
    pauses = _pauses(record, cut)
    owned = set(about["owned"])
    late: dict[str, list[float]] = {"handover": [], "staying": [], "bystander": []}
    for run, viewers in shown.items():
        elsewhere = "handover" if run in owned else "bystander"
        for each in viewers.values():
            late[elsewhere] += _late(truths[run], each, lambda at: at != replica, t0, until)
            late["staying"] += _late(truths[run], each, lambda at: at == replica, t0, until) if run in owned else []
    return {
        "replica": replica,
        "sigterm_at": t0,
        "exit_at": t1,
        "ready_at": about["t2"],
        "exit_s": round(t1 - t0, 3),
        "ready_s": round(about["t2"] - t1, 3),
        "viewers": len(cut),
        "runs_pumped": len(owned),
        "told_goodbye": sum(one.goodbye for one in cut),
        "pause": summary(pauses),
        "handover": summary(late["handover"]),
        "staying": summary(late["staying"]),
        "bystanders": summary(late["bystander"]),
        "pause_samples": pauses,
        **{f"{name}_samples": values for name, values in late.items()},
    }


def _pauses(record: Record, cut: Sequence[Attempt]) -> list[float]:
    of_viewer: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in record.attempts:
        of_viewer[attempt.viewer].append(attempt)
    found = []
    for one in cut:
        if one.first_event is None and not one.goodbye:
            continue  # it was never let in there: this is part of an earlier pause
        after = [a.first_event for a in of_viewer[one.viewer] if a.t0 >= one.t1 and a.first_event is not None]
        if after:
            found.append(min(after) - one.t1)
    return found


def _late(truth: Truth, each: Sequence[Delivery], on: Callable[[int], bool], t0: float, until: float) -> list[float]:
    """The greatest lateness of what was said around a SIGTERM, for a viewer whose connection lived through it; or none."""
    low, high = t0 - 0.2, until
    late = [
        delivery.t - truth.at[delivery.seq]
        for delivery in each[bisect_left(each, low, key=lambda d: d.t) :]
        if delivery.seq in truth.at
        and low <= truth.at[delivery.seq] <= high
        and delivery.t > t0
        and on(delivery.relay)
        and delivery.since < t0 - _STOOD_S
    ]
    return [max(late)] if late else []


def _lateness(truths: dict[str, Truth], readers: Readers, quiet: Sequence[float]) -> list[float]:
    """From the upstream's word to the viewer, while nothing happened."""
    low, high = quiet
    return [
        delivery.t - truths[delivery.run].at[delivery.seq]
        for delivery in readers.deliveries
        if low <= delivery.t <= high and delivery.since < low - 1 and delivery.seq in truths[delivery.run].at
    ]


# ── reconnects ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _reconnects(record: Record, began: float) -> Row:
    """Up to the ends of the runs; seconds are counted from the first SIGTERM."""
    again = [one for one in record.attempts if one.again and began <= one.t0 < record.meta["ended"]]
    times = sorted(one.t0 for one in again)
    per_s: dict[int, Counter[str]] = defaultdict(Counter)
    for one in again:
        per_s[int(one.t0 - began)][one.outcome] += 1
    length = max(per_s, default=-1) + 1
    outcomes = Counter(one.outcome for one in again)
    return {
        "total": len(again),
        "peak_in_a_second": _peak(times, 1.0),
        "peak_in_100_ms": _peak(times, 0.1),
        "refused": outcomes["refused"],
        "503": outcomes["503"],
        "outcomes": dict(outcomes),
        "per_second": {name: [per_s[second][name] for second in range(length)] for name in sorted(outcomes)},
    }


def _peak(times: Sequence[float], window_s: float) -> int:
    """Most in any window of this length, wherever it starts."""
    return max((bisect_right(times, t + window_s) - i for i, t in enumerate(times)), default=0)


def check(folder: Path) -> Row:
    """Judge a folder."""
    return judge(load(folder))
