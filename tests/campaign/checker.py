"""The offline judge: reads what a campaign recorded and says what was promised and not kept.

Shares no code with relay, the readers, or the rest of the campaign; a pure function of the files (`judge`). What it sees:

- *lost, repeated, reordered, invented, altered, after_end*: every reader's logical journal (all its connections) against
  the upstream's own record of each run. JSON is compared by value; what relay may add is written down in `_differs`.
- *ended_early, ended_twice, announced_loss, stuck*: frames and ways a connection ended; `stuck` is a reader who was never
  told the end although all faults were healed (or a run's whole patience of 75 s had passed).
- *visible_before_durable, never_durable*: the first delivery of an event to anybody against the moment the first append
  that carries it left relay (the proxy overhears both ways). Sound, but not sharp: an event shown in the very
  millisecond its append was sent is not seen; one shown while Redis was away is.
- *two_owners, stale_renewal*: an append, seal or renewal that left *after* the answer to a later claim than its own had
  come back, and was accepted all the same, by the same server, which was no replica in between. Which of two claims is
  the later one, time tells; where they overlapped, their fences do. Where claim and write went to different servers (two
  masters at once, or a claim that a failover lost) fences prove nothing; such writes are counted, not judged. How long
  there may be two masters is judged:
- *old_master*: a write that relay sent more than `CONVERGE_S` after most sentinels (or cluster nodes) named another
  master, and that the old one accepted.
- *fence_fell*: a claim got a lower fence than an earlier one at the same server. Inherent only where the run's state was
  lost and the clock of Redis had been set back.
- *two_followers*: upstream streams of one run open at once, longer than a moment, without a fault that explains it.
- *written_twice, log_hole, log_invented, log_lost*: accepted appends, and the log in Redis at the end; what was written
  to a server that was demoted afterwards may be lost, and written again to another.
- pauses: for every kill -9 and every drain, how late viewers on *other* processes got events of runs the victim had
  been following. `clean` samples have no other fault near; `all` have.

Clocks: a round that sets a clock of Redis may move runs, so it explains an overlap of upstream streams; a failover it
causes (servers take a jump for silence) is witnessed like any other. One by days is a loss, for every key expires. One that
sets the clock of a relay explains nothing at all.

What it cannot see: what relay did and nobody was shown; anything between proxy and Redis.
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FINAL = {"run.completed", "run.failed", "run.cancelled", "run.interrupted"}
LOSSES = ("redis.flushall", "redis.lose_log", "redis.clock_days")
STATE_LOSSES = ("redis.flushall", "redis.lose_state", "redis.clock_days")
MOMENT_S = 0.3
CONVERGE_S = 2.0
"""How long relay may go on writing to an old master after most sentinels, or cluster nodes, have named another."""
GLANCE_S = 0.5
"""A change of role may have been seen this much later than it was."""
EXAMPLES = 8
"""Of each kind of violation."""


@dataclass(slots=True)
class Evidence:
    """The files of one campaign."""

    meta: Row = field(default_factory=dict)
    faults: list[Row] = field(default_factory=list)
    processes: list[Row] = field(default_factory=list)
    runs: list[Row] = field(default_factory=list)
    truth: list[Row] = field(default_factory=list)
    writes: list[Row] = field(default_factory=list)
    streams: list[Row] = field(default_factory=list)
    journal: Iterable[Row] = field(default_factory=list)
    texts: Iterable[Row] = field(default_factory=list)
    log: list[Row] = field(default_factory=list)
    masters: list[Row] = field(default_factory=list)


@dataclass(slots=True)
class Delivery:
    """Somebody was shown an event."""

    reader: str
    run: str
    relay: int
    since: float
    """When this connection was opened."""
    seq: int
    t: float


class Findings:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: list[Row] = []
        self._shown: Counter[str] = Counter()

    def add(self, kind: str, **what: Any) -> None:
        self.counts[kind] += 1
        self._shown[kind] += 1
        if self._shown[kind] <= EXAMPLES:
            self.examples.append({"kind": kind, **what})


# ── the truth ───────────────────────────────────────────────────────────────────────────────────────────────────────
class Truth:
    """One run as its upstream has it."""

    def __init__(self, events: Sequence[Row], wall_minus_monotonic: float) -> None:
        self.events = {event["seq"]: event for event in events}
        self.seqs = sorted(self.events)
        self.at = {seq: _wall(event["ts"]) - wall_minus_monotonic for seq, event in self.events.items()}
        finals = [seq for seq in self.seqs if _is_final(self.events[seq])]
        self.final = finals[0] if finals else None

    @property
    def last(self) -> int:
        return self.seqs[-1] if self.seqs else 0

    def between(self, after: int, before: int) -> list[int]:
        return self.seqs[bisect_right(self.seqs, after) : bisect_left(self.seqs, before)]


def _wall(ts: str) -> float:
    head, _, tail = ts.rstrip("Z").partition(".")
    return datetime.fromisoformat(head + "+00:00").timestamp() + float(f"0.{tail or 0}")


def _is_final(event: Row) -> bool:
    data = event.get("data")
    return event["type"] in FINAL and not (isinstance(data, dict) and data.get("delegate_layer") == "acp")


def _differs(true: Row, shown: Row) -> str:
    """Why `shown` is not `true` with only what relay may add; empty if it is."""
    for name, value in true.items():
        if name == "data":
            why = _data_differs(value, shown.get("data"))
            if why:
                return why
        elif name == "type" and value == "run.input_requested":
            if shown.get("type") != "run.waiting_for_input" or shown.get("upstream_type") != value:
                return "type not mapped"
        elif name not in shown or shown[name] != value:
            return f"{name} is {shown.get(name)!r}, was {value!r}"
    extra = set(shown) - set(true) - {"created_at", "upstream_type"}
    if extra:
        return f"added {sorted(extra)}"
    return "" if shown.get("created_at") == true["ts"] else "created_at is not ts"


def _data_differs(true: Any, shown: Any) -> str:
    if not isinstance(true, dict) or not isinstance(shown, dict):
        return "" if true == shown else "data"
    if any(name not in shown or shown[name] != value for name, value in true.items()):
        return "data"
    extra = set(shown) - set(true)
    if extra - {"content"} or ("content" in extra and shown["content"] != true.get("content_delta")):
        return f"data has {sorted(extra)}"
    return ""


def _verdict(truth: Truth, seq: int, text: str) -> tuple[str, str]:
    """("", "") for a true event, ("synthesized", "") for a marked end that is due, else what is wrong and why."""
    try:
        shown = json.loads(text)
    except ValueError:
        return "altered", "not JSON"
    if shown.get("seq") != seq:
        return "altered", f"its id is {seq}, its seq {shown.get('seq')}"
    if seq in truth.events:
        why = _differs(truth.events[seq], shown)
        return ("altered", why) if why else ("", "")
    if shown.get("synthesized") is True and truth.final is None and seq == truth.last + 1 and _is_final(shown):
        return "synthesized", ""
    return "invented", text[:200]


# ── readers ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class _Reader:
    def __init__(self, name: str, run: str) -> None:
        self.name = name
        self.run = run
        self.last = 0
        self.seen: set[int] = set()
        self.ended_at: float | None = None
        self.ended_now = False
        """… on this connection."""
        self.relay = -1
        self.since = 0.0
        self.connections = 0
        self.done = ""


class Readers:
    """Goes through the journal once."""

    def __init__(
        self, truths: dict[str, Truth], verdicts: dict[tuple[str, int, str], tuple[str, str]], found: Findings
    ) -> None:
        self.readers: dict[str, _Reader] = {}
        self.deliveries: list[Delivery] = []
        self.first: dict[tuple[str, int], Delivery] = {}
        self.statuses: Counter[int] = Counter()
        self.ways: Counter[str] = Counter()
        self.goodbyes: Counter[str] = Counter()
        self.open: list[tuple[float, float, int]] = []
        """Connections: from, to, relay."""
        self._truths = truths
        self._verdicts = verdicts
        self._found = found

    def take(self, row: Row) -> None:
        reader = self.readers.get(row["r"])
        if reader is None:
            if "run" not in row:
                return
            reader = self.readers[row["r"]] = _Reader(row["r"], row["run"])
        if "e" in row:
            for seq, sha in row["e"]:
                self._event(reader, row["t"], seq, sha)
        elif "o" in row:
            reader.relay, reader.since, reader.ended_now = row["o"], row["t"], False
            reader.connections += 1
            if reader.ended_at is not None:
                self._say("ended_twice", reader, row["t"], why="came back after the end")
        elif "f" in row:
            self._frame(reader, row)
        elif "x" in row:
            self._over(reader, row)
        elif "s" in row:
            self.statuses[row["s"]] += 1
            if row["s"] in (404, 410, 500):
                self._say("refused", reader, row["t"], status=row["s"])
        elif "q" in row:
            reader.done = row["q"]

    def _say(self, kind: str, reader: _Reader, t: float, **more: Any) -> None:
        self._found.add(kind, reader=reader.name, run=reader.run, t=t, connection=reader.connections,
                        relay=reader.relay, **more)  # fmt: skip

    def _event(self, reader: _Reader, t: float, seq: int, sha: str) -> None:
        truth = self._truths.get(reader.run)
        if truth is None:
            return
        if reader.ended_at is not None:
            self._say("after_end", reader, t, seq=seq)
        if seq in reader.seen:
            self._say("repeated", reader, t, seq=seq)
        elif seq < reader.last:
            self._say("reordered", reader, t, seq=seq, after=reader.last)
        else:
            missing = truth.between(reader.last, seq)
            if missing:
                self._say("lost", reader, t, seqs=missing[:20], count=len(missing), then=seq)
            reader.last = seq
        reader.seen.add(seq)
        kind, why = self._verdicts.get((reader.run, seq, sha), ("unrecorded", "no text"))
        if kind not in ("", "synthesized"):
            self._say(kind, reader, t, seq=seq, why=why)
        delivery = Delivery(reader.name, reader.run, reader.relay, reader.since, seq, t)
        self.deliveries.append(delivery)
        first = self.first.get((reader.run, seq))
        if first is None or t < first.t:
            self.first[reader.run, seq] = delivery

    def _frame(self, reader: _Reader, row: Row) -> None:
        name, t = row["f"], row["t"]
        if name == "relay.end":
            if reader.ended_at is not None:
                self._say("ended_twice", reader, t)
            self._told_end(reader, t, row["d"].get("last_seq"))
        elif name == "relay.reset":
            self._say("announced_loss", reader, t, data=row["d"])
        elif name == "relay.goodbye":
            self.goodbyes[row["d"].get("code", "?")] += 1

    def _told_end(self, reader: _Reader, t: float, last_seq: int | None) -> None:
        reader.ended_at, reader.ended_now = t, True
        truth = self._truths.get(reader.run)
        if truth is None:
            return
        missing = truth.between(reader.last, truth.last + 1)
        unsaid = [seq for seq in missing if truth.at[seq] > t]
        if unsaid:
            self._say("ended_early", reader, t, why="the upstream went on afterwards", unsaid=unsaid[:5])
        elif missing:
            self._say("lost", reader, t, seqs=missing[:20], count=len(missing), then="end")
        if last_seq is not None and last_seq < truth.last and not missing:
            self._say("ended_early", reader, t, why=f"relay.end says {last_seq}, the run has {truth.last}")

    def _over(self, reader: _Reader, row: Row) -> None:
        how = row["x"]
        self.ways[how] += 1
        self.open.append((reader.since, row["t"], reader.relay))
        if how == "204":
            self._told_end(reader, row["t"], None)
        elif how in ("eof", "ws 1000") and not reader.ended_now:
            self._say("ended_early", reader, row["t"], why=f"a proper end ({how}) without relay.end")


def _unfinished(runs: Sequence[Row], readers: dict[str, _Reader], found: Findings) -> None:
    for run in runs:
        for name, about in run["readers"].items():
            reader = readers.get(name)
            if about["leaves"] or (reader is not None and reader.ended_at is not None):
                continue
            last = reader.last if reader is not None else 0
            found.add("stuck", reader=name, run=run["run"], t=run["t2"], last=last, why="never told the end")


# ── writers ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def _near(faults: Sequence[Row], kinds: Sequence[str], low: float, high: float, run: str | None = None) -> bool:
    return any(
        fault["kind"].startswith(tuple(kinds))
        and fault["t0"] <= high
        and fault["t1"] >= low
        and (run is None or fault.get("run") in (None, run))
        for fault in faults
    )


def _durability(first: dict[tuple[str, int], Delivery], writes: Sequence[Row], found: Findings) -> None:
    left: dict[tuple[str, int], float] = {}
    for write in writes:
        if write["op"] == "append" and (write["answer"] in ("OK", "NONE")):
            for low, high in write["seqs"]:
                for seq in range(low, high + 1):
                    key = (write["run"], seq)
                    left[key] = min(left.get(key, write["t0"]), write["t0"])
    for (run, seq), delivery in first.items():
        sent = left.get((run, seq))
        if sent is None:
            found.add("never_durable", run=run, seq=seq, t=delivery.t, reader=delivery.reader, relay=delivery.relay)
        elif delivery.t < sent:
            found.add("visible_before_durable", run=run, seq=seq, t=delivery.t, reader=delivery.reader,
                      relay=delivery.relay, early_s=round(sent - delivery.t, 6))  # fmt: skip


class Masters:
    """Who was master when, as the witness saw it. Where nothing was seen (one server) nothing ever changed."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._roles: dict[str, list[float]] = defaultdict(list)
        """By server, when its own word on its role changed."""
        self._reigns: dict[str, list[tuple[float, str]]] = defaultdict(list)
        """By group, who was named when."""
        for row in sorted(rows, key=lambda row: row["t"]):
            if "node" in row:
                self._roles[row["node"]].append(row["t"])
            else:
                self._reigns[row["group"]].append((row["t"], row["master"]))
        self._group = {name: group for group, reigns in self._reigns.items() for _, name in reigns}

    @property
    def failovers(self) -> int:
        return sum(len(reigns) - 1 for reigns in self._reigns.values())

    def steady(self, node: str, low: float, high: float) -> bool:
        """Whether a server remembers at `high` what it took at `low`: it was nobody's copy meanwhile."""
        return not any(low <= t <= high + GLANCE_S for t in self._roles[node][1:])

    def deposed_for(self, node: str, t: float) -> float | None:
        """How long another one had been named in its place by then; None if none had, or it was about to be named anew."""
        reigns = self._reigns.get(self._group.get(node, ""), [])
        now = sum(since <= t for since, _ in reigns)
        mine = [i for i, (_, name) in enumerate(reigns[:now]) if name == node]
        if not mine or mine[-1] == now - 1:
            return None
        if any(name == node and since - t < CONVERGE_S for since, name in reigns[now : now + 1]):
            return None
        return t - reigns[mine[-1] + 1][0]

    def lost_after(self, node: str, t: float) -> bool:
        """Whether what a server took at `t` may be lost: it was deposed since, or before."""
        reigns = self._reigns.get(self._group.get(node, ""), ())
        return self.deposed_for(node, t) is not None or any(since > t and name != node for since, name in reigns)


def _same_server(masters: Masters, before: Row, after: Row) -> bool:
    """Whether what was done first is known to whoever did the second."""
    node = after.get("node", "")
    return before.get("node", "") == node and masters.steady(node, before["t0"], after["t1"])


@dataclass(slots=True)
class _Claim:
    owner: str
    fence: int
    asked: float
    came: float
    row: Row

    def after(self, other: _Claim) -> bool:
        """Whether it was granted after `other` was."""
        if self.asked >= other.came:
            return True
        return self.came > other.asked and self.fence > other.fence


def _claims(writes: Sequence[Row]) -> dict[str, list[_Claim]]:
    """Of each run, in the order in which their answers came."""
    claims: dict[str, list[_Claim]] = defaultdict(list)
    for write in writes:
        if write["op"] == "claim" and write["answer"] == "OK" and write["t1"] is not None:
            claims[write["run"]].append(_Claim(write["owner"], write["fence"], write["t0"], write["t1"], write))
    for each in claims.values():
        each.sort(key=lambda claim: claim.came)
    return claims


def _fences(writes: Sequence[Row], faults: Sequence[Row], masters: Masters, found: Findings) -> Counter[str]:
    """Gives how many writes under an old fence cannot be judged: two masters at once, or a claim that was lost."""
    unjudged: Counter[str] = Counter({"two_masters": 0, "claim_lost": 0})
    claims = _claims(writes)
    _falls(claims, faults, masters, found)
    for write in writes:
        if write["op"] not in ("append", "seal", "renew") or write["answer"] != "OK":
            continue
        granted = claims.get(write["run"], ())
        later = _later(granted, write)
        known = [claim for claim in later if _same_server(masters, claim.row, write)]
        if known:
            kind = "stale_renewal" if write["op"] == "renew" else "two_owners"
            late_s, fence = write["t0"] - known[0].came, known[0].fence
            why = f"fence {write['fence']} accepted {late_s:.3f} s after {fence} was given"
            found.add(kind, run=write["run"], t=write["t0"], relay=write["relay"], op=write["op"], why=why,
                      seqs=write.get("seqs"))  # fmt: skip
        elif later:
            old = masters.deposed_for(write.get("node", ""), write["t0"]) is not None
            unjudged["two_masters" if old else "claim_lost"] += 1
    return unjudged


def _later(claims: Sequence[_Claim], write: Row) -> list[_Claim]:
    """The claims answered before a write left, and granted after the one that gave it its lease."""
    # Of two claims with the same owner and fence (the answer to the first was lost with its server) the later one is meant.
    mine = [claim for claim in claims if (claim.owner, claim.fence) == (write["owner"], write["fence"])]
    own = next((claim for claim in reversed(mine) if claim.came < write["t0"]), mine[0] if mine else None)
    return [
        claim
        for claim in claims
        if claim.came < write["t0"] and (claim.after(own) if own is not None else claim.fence > write["fence"])
    ]


def _falls(claims: dict[str, list[_Claim]], faults: Sequence[Row], masters: Masters, found: Findings) -> None:
    for run, each in claims.items():
        for earlier, later in pairwise(each):
            if later.asked < earlier.came or later.fence > earlier.fence:
                continue
            if not _same_server(masters, earlier.row, later.row):
                continue
            if not _near(faults, STATE_LOSSES, earlier.asked - 0.1, later.came, run):
                found.add("fence_fell", run=run, t=later.asked, why=f"{later.fence} after {earlier.fence}")


def _old_masters(writes: Sequence[Row], masters: Masters, found: Findings) -> Row:
    """What servers took after another one was named in their place."""
    late: list[float] = []
    for write in writes:
        if write["answer"] != "OK" or "node" not in write:
            continue
        sent = write.get("sent", write["t0"])
        deposed_s = masters.deposed_for(write["node"], sent)
        if deposed_s is None:
            continue
        late.append(deposed_s)
        if deposed_s > CONVERGE_S:
            found.add("old_master", run=write["run"], t=sent, relay=write["relay"], op=write["op"], node=write["node"],
                      why=f"accepted {deposed_s:.3f} s after another master was named")  # fmt: skip
    return {
        "failovers": masters.failovers,
        "writes_to_an_old_master": len(late),
        "latest_s": round(max(late, default=0.0), 3),
    }


def _twice(writes: Sequence[Row], faults: Sequence[Row], masters: Masters, found: Findings) -> None:
    before: dict[tuple[str, int], Row] = {}
    for write in sorted((w for w in writes if w["op"] == "append" and w["answer"] == "OK"), key=lambda w: w["t0"]):
        for low, high in write["seqs"]:
            for seq in range(low, high + 1):
                other = before.get((write["run"], seq))
                before[write["run"], seq] = write
                if other is None or not _same_server(masters, other, write):
                    continue
                if not _near(faults, LOSSES, other["t0"] - 0.1, write["t1"], write["run"]):
                    found.add("written_twice", run=write["run"], seq=seq, t=write["t0"], relay=write["relay"])


def _final_log(evidence: Evidence, truths: dict[str, Truth], verdicts: dict[tuple[str, int, str], tuple[str, str]],
               masters: Masters, found: Findings) -> None:  # fmt: skip
    last_write: dict[str, Row] = {}
    for write in evidence.writes:
        if write["op"] == "append" and write["answer"] == "OK":
            last_write[write["run"]] = max(last_write.get(write["run"], write), write, key=lambda row: row["t1"])
    for row in evidence.log:
        run, truth = row["run"], truths.get(row["run"])
        if truth is None:
            continue
        last = last_write.get(run, {"t1": 0.0})
        lost = _near(evidence.faults, LOSSES, last["t1"] - 1.0, float("inf"), run)
        lost |= masters.lost_after(last.get("node", ""), last["t1"])
        seqs = [int(entry[0].partition("-")[0]) for entry in row["entries"]]
        for seq, (_, sha) in zip(seqs, row["entries"], strict=True):
            verdict = verdicts.get((run, seq, sha))
            if verdict is not None and verdict[0] not in ("", "synthesized"):
                found.add("log_invented", run=run, seq=seq, why=verdict)
            elif seq not in truth.events and not (truth.final is None and seq == truth.last + 1):
                found.add("log_invented", run=run, seq=seq, why="not in the truth")
        missing = sorted(set(truth.seqs) - set(seqs))
        if not missing:
            continue
        if not seqs:
            if not lost:
                found.add("log_lost", run=run, why="no log, and nothing was injected that loses one")
        elif missing[0] < seqs[-1] or not lost:
            found.add("log_hole", run=run, seqs=missing[:20], count=len(missing), state=row.get("state"))


# ── upstream streams ────────────────────────────────────────────────────────────────────────────────────────────────
def _following(evidence: Evidence, found: Findings) -> Row:
    """Overlaps of following streams of one run."""
    by_run: dict[str, list[Row]] = defaultdict(list)
    for stream in evidence.streams:
        if stream["follow"] and stream["status"] == 200:
            by_run[stream["run"]].append(stream)
    overlaps: list[Row] = []
    most = 0
    for run, streams in by_run.items():
        streams.sort(key=lambda stream: stream["t0"])
        most = max(most, _concurrent(streams))
        for i, older in enumerate(streams):
            for newer in streams[i + 1 :]:
                length = min(older["t1"], newer["t1"]) - newer["t0"]
                if newer["t0"] >= older["t1"]:
                    break
                cause = _cause(evidence.faults, older, newer)
                overlaps.append({"run": run, "t": newer["t0"], "s": round(length, 3), "cause": cause,
                                 "relays": [older["relay"], newer["relay"]]})  # fmt: skip
                if length > MOMENT_S and cause is None:
                    found.add("two_followers", run=run, t=newer["t0"], length_s=round(length, 3),
                              relays=[older["relay"], newer["relay"]])  # fmt: skip
    explained = [overlap for overlap in overlaps if overlap["cause"] is not None]
    total = sum(stream["t1"] - stream["t0"] for streams in by_run.values() for stream in streams)
    return {
        "streams": sum(map(len, by_run.values())),
        "stream_seconds": round(total, 1),
        "most_at_once": most,
        "overlaps": len(overlaps),
        "overlaps_longer_than_a_moment": sum(overlap["s"] > MOMENT_S for overlap in overlaps),
        "overlaps_explained_by_takeover": len(explained),
        "overlap_seconds": round(sum(overlap["s"] for overlap in overlaps), 2),
        "longest_overlap_s": max((overlap["s"] for overlap in overlaps), default=0.0),
        "max_following_by_upstream": dict(Counter(run["counters"]["max_following"] for run in evidence.runs)),
    }


def _concurrent(streams: Sequence[Row]) -> int:
    marks = sorted([(s["t0"], 1) for s in streams] + [(s["t1"], -1) for s in streams])
    now = most = 0
    for _, step in marks:
        now += step
        most = max(most, now)
    return most


def _cause(faults: Sequence[Row], older: Row, newer: Row) -> int | None:
    """The round that took the older stream's owner out of the way (it could not know), if one did."""
    for fault in faults:
        if fault["t0"] > newer["t0"] or fault["t1"] < newer["t0"] - 8.0:
            continue
        kind = fault["kind"]
        if kind == "relay.clock":
            continue
        relays = fault.get("relays") or [fault.get("relay")]
        if kind.startswith(("relay.", "store_link.", "upstream_link.")) and (
            older["relay"] in relays or relays == [None]
        ):
            return int(fault["n"])
        if kind.startswith("redis."):
            return int(fault["n"])
    return None


# ── pauses ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def _pauses(evidence: Evidence, truths: dict[str, Truth], deliveries: Sequence[Delivery]) -> dict[str, Row]:
    by_run: dict[str, dict[str, list[Delivery]]] = defaultdict(lambda: defaultdict(list))
    for delivery in deliveries:
        by_run[delivery.run][delivery.reader].append(delivery)
    samples: dict[str, dict[str, list[float]]] = {
        "kill": {"clean": [], "all": []}, "drain": {"clean": [], "all": []}
    }  # fmt: skip
    worst: dict[str, list[Row]] = {"kill": [], "drain": []}
    for fault in evidence.faults:
        what = fault["kind"].removeprefix("relay.").removesuffix("_owner")
        if what not in samples or not fault["kind"].startswith("relay.") or "owned" not in fault:
            continue
        for run in fault["owned"]:
            if run not in truths:
                continue
            for name, shown in by_run[run].items():
                pause = _pause(fault, truths[run], shown)
                if pause is None:
                    continue
                samples[what]["all"].append(pause)
                if not _others(evidence.faults, fault, run, shown[0].relay, pause):
                    samples[what]["clean"].append(pause)
                    worst[what].append({"s": round(pause, 3), "round": fault["n"], "run": run, "reader": name})
    return {
        what: {
            **{name: summary(values) for name, values in each.items()},
            "samples": {name: [round(value, 4) for value in values] for name, values in each.items()},
            "worst": sorted(worst[what], key=lambda row: -row["s"])[:10],
        }
        for what, each in samples.items()
    }


def _pause(fault: Row, truth: Truth, shown: Sequence[Delivery]) -> float | None:
    """The greatest lateness of what was said around the fault, for a viewer whose connection elsewhere lived through it."""
    t0, victim = fault["t0"], fault["relay"]
    late = [
        (delivery.t - truth.at[delivery.seq], truth.at[delivery.seq])
        for delivery in shown
        if delivery.seq in truth.at
        and t0 < delivery.t
        and t0 - 0.2 <= truth.at[delivery.seq] <= t0 + 1
        and delivery.relay != victim
        and delivery.since < t0 - 0.3
    ]
    if not any(said < t0 + 0.4 for _, said in late):
        return None  # the run itself paused: how long readers waited cannot be told
    return max(pause for pause, _ in late)


def _others(faults: Sequence[Row], fault: Row, run: str, relay: int, pause: float) -> bool:
    """Whether another fault may have had a part in it."""
    low, high = fault["t0"] - 1.0, fault["t0"] + pause
    for other in faults:
        if other is fault or other["kind"] == "relay.clock" or other["t0"] > high or other["t1"] + 3.5 < low:
            continue
        part = other["kind"].partition(".")[0]
        if part == "reader_link" and other.get("relay") != relay:
            continue
        if part == "upstream" and other.get("run") not in (None, run):
            continue
        return True
    return False


def summary(values: Sequence[float]) -> Row:
    ordered = sorted(values)
    if not ordered:
        return {"n": 0}

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)

    return {"n": len(ordered), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": round(ordered[-1], 4)}


# ── all of it ───────────────────────────────────────────────────────────────────────────────────────────────────────
def _watched(faults: Sequence[Row], readers: Readers) -> int:
    """Rounds with readers before, during and after."""
    times = sorted(delivery.t for delivery in readers.deliveries)
    opened = sorted(start for start, _, _ in readers.open)
    closed = sorted(end for _, end, _ in readers.open)

    def any_in(low: float, high: float) -> bool:
        return bisect_left(times, high) > bisect_left(times, low)

    return sum(
        any_in(fault["t0"] - 5, fault["t0"])
        and bisect_left(opened, fault["t0"]) > bisect_left(closed, fault["t0"])
        and any_in(fault["t1"], fault["t1"] + 30)
        for fault in faults
    )


def _lateness(truths: dict[str, Truth], deliveries: Sequence[Delivery]) -> list[float]:
    """From the upstream's word to the reader, for events said while the reader was connected; faults included."""
    late = []
    for delivery in deliveries:
        said = truths[delivery.run].at.get(delivery.seq) if delivery.run in truths else None
        if said is not None and said > delivery.since + 0.5:
            late.append(delivery.t - said)
    return late


Verdicts = dict[tuple[str, int, str], tuple[str, str]]


def read(evidence: Evidence, found: Findings) -> tuple[dict[str, Truth], Verdicts, Readers]:
    """What readers were shown against what is true: the part that needs journals and truth alone."""
    skew = evidence.meta.get("wall_minus_monotonic", 0.0)
    truths = {row["run"]: Truth(row["events"], skew) for row in evidence.truth}
    verdicts = {
        (row["run"], row["seq"], row["sha"]): _verdict(truths[row["run"]], row["seq"], row["text"])
        for row in evidence.texts
        if row["run"] in truths
    }
    readers = Readers(truths, verdicts, found)
    for row in evidence.journal:
        readers.take(row)
    _unfinished(evidence.runs, readers.readers, found)
    return truths, verdicts, readers


def judge(evidence: Evidence) -> Row:
    """The report."""
    found = Findings()
    masters = Masters(evidence.masters)
    faults = [fault for fault in evidence.faults if "failed" not in fault]
    truths, verdicts, readers = read(evidence, found)
    writes = [write for write in evidence.writes if write["op"] != "unreadable"]
    _durability(readers.first, writes, found)
    split = _fences(writes, evidence.faults, masters, found)
    old_masters = _old_masters(writes, masters, found)
    _twice(writes, evidence.faults, masters, found)
    _final_log(evidence, truths, verdicts, masters, found)
    following = _following(evidence, found)
    if len(writes) < len(evidence.writes):
        found.add("unreadable", count=len(evidence.writes) - len(writes), why="script calls the tap cannot read")
    late = _lateness(truths, readers.deliveries)
    return {
        "meta": evidence.meta,
        "rounds": len(faults),
        "rounds_not_done": [fault for fault in evidence.faults if "failed" in fault],
        "rounds_with_readers": _watched(faults, readers),
        "kinds": dict(Counter(fault["kind"] for fault in faults)),
        "runs": len(truths),
        "events": sum(len(truth.seqs) for truth in truths.values()),
        "readers": len(readers.readers),
        "connections": sum(reader.connections for reader in readers.readers.values()),
        "deliveries": len(readers.deliveries),
        "violations": dict(found.counts),
        "examples": [_explained(row, evidence.faults) for row in found.examples],
        "following": following,
        "old_fence_writes_around_failovers": dict(split),
        "old_masters": old_masters,
        "pauses": _pauses(evidence, truths, readers.deliveries),
        "lateness": summary(late),
        "writes": dict(Counter(f"{write['op']} {write['answer'].partition(' ')[0]}" for write in writes)),
        "statuses": {str(status): count for status, count in sorted(readers.statuses.items())},
        "connection_ends": dict(readers.ways),
        "goodbyes": dict(readers.goodbyes),
        "incidents": _incidents(evidence),
    }


def _explained(row: Row, faults: Sequence[Row]) -> Row:
    """An example, with the rounds that were near."""
    t = row.get("t")
    if t is None:
        return row
    near = [
        f"{fault['n']} {fault['kind']} (-{t - fault['t0']:.1f} s)"
        for fault in faults
        if fault["t0"] <= t <= fault["t1"] + 8
    ]
    return {**row, "near": near}


def _incidents(evidence: Evidence) -> Row:
    exits = [row for row in evidence.processes if row["what"] == "exit" and not row["expected"]]
    return {
        "relay_exited_by_itself": len(exits),
        "relay_would_not_end": sum(row["what"] == "would_not_end" for row in evidence.processes),
        "log_troubles": evidence.meta.get("troubles", {}),
        "stalls_of_the_proxy_s": evidence.meta.get("stalls", []),
    }


def rows(path: Path) -> Iterator[Row]:
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            yield json.loads(line)


def load(folder: Path) -> Evidence:
    meta = json.loads((folder / "meta.json").read_text())
    names = ("faults", "processes", "runs", "truth", "writes", "streams", "log", "masters")
    return Evidence(
        meta=meta,
        journal=rows(folder / "journal.jsonl"),
        texts=rows(folder / "texts.jsonl"),
        **{name: list(rows(folder / f"{name}.jsonl")) for name in names},
    )


def check(folder: Path) -> Row:
    """Judge a folder and leave `report.json` in it."""
    result = judge(load(folder))
    (folder / "report.json").write_text(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    outcome = check(Path(sys.argv[1]))
    print(json.dumps({k: v for k, v in outcome.items() if k not in ("pauses", "meta")}, indent=1))
    sys.exit(bool(outcome["violations"]))
