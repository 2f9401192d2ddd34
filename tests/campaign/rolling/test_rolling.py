"""The short form of the rolling restart: three replicas, ninety viewers, nobody misses anything, all are told the end once.

The long form is `python -m tests.campaign.rolling` (`make rolling`). The numbers (reconnects, pauses) are reported, not
judged: they belong to a quiet machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.campaign.checker import Evidence
from tests.campaign.rolling import judge, report
from tests.campaign.rolling.conduct import Options, rolling
from tests.campaign.rolling.judge import Record


@pytest.mark.system
@pytest.mark.filterwarnings("default::ResourceWarning")
async def test_a_rolling_restart_loses_nothing_and_everybody_is_told_the_end_once(tmp_path: Path) -> None:
    options = Options(viewers=90, runs=9, out=tmp_path, quiet_s=1.0)
    await rolling(options, show=lambda *_, **__: None)
    result = judge.check(tmp_path)
    report.write(tmp_path, result)
    assert result["violations"] == {}, json.dumps(result["examples"], indent=1)[:4000]
    assert result["told_the_end"] == 90
    assert result["reconnects"]["total"] >= 60, "nobody was on the replicas that went away"
    assert set(result["exits"]) == {"status 0"}
    assert result["troubles"] == {}


# ── the judge itself ────────────────────────────────────────────────────────────────────────────────────────────────
BALANCER = [{"t": 0.1, "p": 1, "to": 0, "ok": True}, {"t": 0.1, "p": 2, "to": 1, "ok": True}]
RESTART = {"replica": 0, "t0": 10.0, "t1": 11.0, "t2": 12.0, "owned": ["a"]}


def _event(seq: int, at: float) -> dict[str, Any]:
    kind = "run.completed" if seq == 4 else "message.delta"
    return {"seq": seq, "type": kind, "run_id": "a", "data": {}, "ts": f"1970-01-01T00:00:{at:06.3f}Z"}


def _text(event: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps({**event, "created_at": event["ts"]})
    return {"run": "a", "seq": event["seq"], "sha": str(event["seq"]), "text": text}


TRUTH = [_event(1, 5.0), _event(2, 9.9), _event(3, 10.1), _event(4, 15.0)]


def _seen(viewer: str, connection: int, t: float, *seqs: int) -> dict[str, Any]:
    return {"r": viewer, "c": connection, "t": t, "e": [[seq, str(seq)] for seq in seqs]}


def _opened(viewer: str, connection: int, t: float, port: int) -> list[dict[str, Any]]:
    opened = {"r": viewer, "c": connection, "run": "a", "t": t, "o": port, "w": "sse", "k": 0, "n": connection - 1}
    return [opened, {"r": viewer, "c": connection, "t": t + 0.01, "s": 200}]


def _told(viewer: str, connection: int, t: float) -> list[dict[str, Any]]:
    end = {"r": viewer, "c": connection, "t": t, "f": "relay.end", "i": 4, "d": {"last_seq": 4}}
    return [end, {"r": viewer, "c": connection, "t": t + 0.1, "x": "eof", "d": ""}]


def _judged(journal: Iterable[dict[str, Any]], balancer: list[dict[str, Any]]) -> dict[str, Any]:
    meta = {"ended": 15.0, "quiet": [4.0, 6.0], "troubles": {}, "cores_used": {}, "lag_s": 0.0}
    readers = {"moved": {"leaves": False}, "stayed": {"leaves": False}}
    runs = [{"run": "a", "t2": 20.0, "readers": readers, "counters": {"max_following": 1}}]
    evidence = Evidence(runs=runs, truth=[{"run": "a", "events": TRUTH}], texts=map(_text, TRUTH))
    record = Record(meta, [RESTART], balancer, evidence)
    rows = iter(sorted(journal, key=lambda row: float(row["t"])))
    evidence.journal = judge.noted(rows, judge.Places(balancer), record.attempts)
    return judge.judge(record)


def _good() -> list[dict[str, Any]]:
    """One whose replica goes away and who comes back after 2 s; one elsewhere, who gets event 3 in 0.5 s."""
    moved = [*_opened("moved", 1, 0.1, 1), _seen("moved", 1, 5.0, 1), _seen("moved", 1, 9.9, 2),
             {"r": "moved", "c": 1, "t": 10.0, "f": "relay.goodbye", "i": None, "d": {"code": "drain"}},
             {"r": "moved", "c": 1, "t": 10.05, "x": "broken", "d": ""},
             *_opened("moved", 2, 12.0, 1), _seen("moved", 2, 12.05, 3), _seen("moved", 2, 15.0, 4),
             *_told("moved", 2, 16.0)]  # fmt: skip
    stayed = [*_opened("stayed", 1, 0.1, 2), _seen("stayed", 1, 5.0, 1), _seen("stayed", 1, 9.9, 2),
              _seen("stayed", 1, 10.6, 3), _seen("stayed", 1, 15.0, 4), *_told("stayed", 1, 16.0)]  # fmt: skip
    return moved + stayed


def test_the_judge_tells_a_viewers_pause_and_a_hand_over_apart() -> None:
    balancer = [*BALANCER, {"t": 12.0, "p": 1, "to": 1, "ok": True}]  # the port is used again
    result = _judged(_good(), balancer)
    assert result["violations"] == {}
    assert result["pauses"]["samples"] == [2.0]
    assert result["handover"]["samples"] == [0.5]
    assert result["bystanders"] == {"n": 0}
    assert result["reconnects"]["total"] == result["reconnects"]["peak_in_a_second"] == 1
    assert result["reconnects"]["per_second"] == {"answered": [0, 0, 1]}
    assert result["restarts"][0]["told_goodbye"] == 1


def test_the_judge_counts_who_was_refused() -> None:
    again = [{**_opened("moved", 2, 11.0, 3)[0]}, {"r": "moved", "c": 2, "t": 11.1, "x": "unanswered", "d": ""}]
    later = [{**row, "c": 3} if row["r"] == "moved" and row["c"] == 2 else row for row in _good()]
    result = _judged([*later, *again], [*BALANCER, {"t": 11.0, "p": 3, "to": 0, "ok": False}])
    assert (result["reconnects"]["refused"], result["reconnects"]["total"]) == (1, 2)
    assert result["pauses"]["samples"] == [2.0], "a refusal is part of the pause, not one of its own"


@pytest.mark.parametrize(
    ("without", "kind"),
    [(("moved", 2, 12.05), "lost"), (("stayed", 1, 16.0), "stuck")],
)
def test_the_judge_sees_what_a_viewer_was_not_shown(without: tuple[str, int, float], kind: str) -> None:
    journal = [row for row in _good() if (row["r"], row["c"], row["t"]) != without]
    assert kind in _judged(journal, BALANCER)["violations"]
