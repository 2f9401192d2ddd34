"""The benchmark's own judgement: what it calls whole, how it makes ratios, that its document is what the results say."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks import campaign, goals, report
from benchmarks.load import FIRST, Seen, Violation
from benchmarks.measure import _counted, noted
from benchmarks.upstream import Feed, Track
from benchmarks.viewer import Tally, Viewer
from benchmarks.workloads import WORKLOADS
from relay.demo.ledger import Run

ROOT = Path(__file__).parents[1]


# --- what counts as whole --------------------------------------------------------------------------------------------
def frame(number: int) -> bytes:
    return b'id: 1\ndata: {"data":{"t":5,"s":%d,"p":""},"seq":1}\n\n' % (FIRST + number)


def chunked(*frames: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in frames)


def message(number: int) -> bytes:
    text = b'{"data":{"t":5,"s":%d,"p":"%b"}}' % (FIRST + number, b"x" * 100)
    return bytes([0x81, 126]) + len(text).to_bytes(2, "big") + text


async def tallied(data: bytes, *, step: int = 1 << 20, ws: bool = False, replay: int = 0) -> Tally:
    tally = Tally(replay, per_event=True)
    viewer = Viewer(tally, "/", 1, ws=ws)
    for at in range(0, len(data), step):
        viewer.data_received(data[at : at + step])
    return tally


@pytest.mark.parametrize("step", [1, 7, 100_000])
async def test_a_viewer_counts_events_however_the_bytes_are_cut(step: int) -> None:
    sse = await tallied(chunked(b": ping\n", *(frame(n) for n in range(20))), step=step, replay=20)
    upgraded = b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + b"".join(message(n) for n in range(20))
    for tally in (sse, await tallied(upgraded, step=step, ws=True, replay=20)):
        assert (tally.delivered, tally.gaps, tally.dups, tally.done) == (20, 0, 0, 1)


async def test_a_viewer_sees_gaps_repeats_and_a_missing_start() -> None:
    assert (await tallied(chunked(frame(0), frame(2)))).gaps == 1
    assert (await tallied(chunked(frame(0), frame(0), frame(1)))).dups == 1
    assert (await tallied(chunked(frame(1)), replay=2)).gaps == 1
    assert (await tallied(chunked(frame(1)))).gaps == 0  # who joins a live run begins anywhere


def seen(**told: Any) -> Seen:
    names = "deliv_per_srv_cpu_s deliv_per_s srv_cpu_pct p50_ms p90_ms p99_ms p999_ms max_ms cli_cpu_pct late_pub"
    numbers = dict.fromkeys([*names.split(), "rss1_kb", "rss2_kb"], 1.0)
    counts = {"sent": 10, "expected": 100, "delivered": 100, "gaps": 0, "dups": 0, "bad": 0, "errs": 0, "closed": 0}
    return Seen({**numbers, **counts, **told})


class Named:
    label = ""

    def __init__(self, name: str) -> None:
        self.name = name

    def up(self, runs: int) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    "fault",
    [{"gaps": 1}, {"dups": 1}, {"bad": 1}, {"errs": 1}, {"closed": 1}, {"delivered": 99}, {"delivered": 101}],
)
def test_relay_is_whole_or_there_is_no_result_and_of_peers_it_is_said(fault: dict[str, int]) -> None:
    assert _counted(Named("relay"), seen())["faults"] == []
    with pytest.raises(Violation):
        _counted(Named("relay"), seen(**fault))
    assert _counted(Named("nchan"), seen(**fault))["faults"]


def test_a_publisher_that_ran_out_of_time_is_no_result() -> None:
    nothing = seen(sent=0, expected=0, delivered=0)
    assert _counted(Named("nchan"), nothing, 10)["faults"] == ["only 0 of 10 events published in time"]
    with pytest.raises(Violation):
        _counted(Named("relay"), nothing, 10)
    assert _counted(Named("relay"), seen(), 10)["faults"] == []


# --- the feed --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("step", [1, 5, 100_000])
def test_the_feed_becomes_events_of_its_runs_however_it_is_cut(step: int) -> None:
    tracks = [Track(Run(f"run-{number}", "t"), []) for number in range(2)]
    feed = Feed(tracks)
    sent = [(n % 2, b'{"t":7,"s":%d,"p":"x"}' % (FIRST + n // 2)) for n in range(10)]
    data = b"".join(struct.pack("<II", run, len(event)) + event for run, event in sent)
    for at in range(0, len(data), step):
        feed.data_received(data[at : at + step])
    for number, track in enumerate(tracks):
        truth = track.run.truth()
        assert [event["seq"] for event in truth] == [1, 2, 3, 4, 5]
        assert [event["data"]["s"] for event in truth] == [FIRST + n for n in range(5)]
        assert {event["run_id"] for event in truth} == {f"run-{number}"}


# --- ratios, goals, the document -------------------------------------------------------------------------------------
def turn(relay: float, other: float) -> list[dict[str, Any]]:
    return [
        {"contestant": "relay", "deliveries_per_cpu_s": relay, "p99_ms": 5.0, "p50_ms": 1.0, "faults": []},
        {"contestant": "c-each", "deliveries_per_cpu_s": other, "p99_ms": 9.0, "p50_ms": 1.0, "faults": []},
    ]


def test_a_ratio_is_the_median_of_the_rounds_not_the_ratio_of_medians() -> None:
    rounds = [turn(10, 10), turn(90, 100), turn(50, 20)]
    _, found = report.summary("W1", rounds)
    assert found["ratios"] == [1.0, 0.9, 2.5]
    assert found["relay_ratio"] == 1.0
    assert found["deliveries_per_cpu_s"] == 20


def test_a_round_without_a_peer_counts_for_the_others() -> None:
    rounds = [turn(10, 10), turn(90, 100)[:1], turn(50, 20)]
    ours, theirs = report.summary("W1", rounds)
    assert ours["deliveries_per_cpu_s"] == 50
    assert theirs["ratios"] == [1.0, 2.5]


async def test_what_fails_is_written_down_and_the_next_one_has_its_turn() -> None:
    failed: dict[str, str] = {}
    async with noted("W1", failed):
        raise Violation("relay: 1 gaps")
    async with noted("W2", failed):
        pass
    assert failed == {"W1": "Violation: relay: 1 gaps"}


def test_goals_say_met_missed_and_not_measured() -> None:
    said = {line[0]: line for line in goals.lines({"W1": {"rounds": [turn(80, 100)]}})}
    assert said["W1: deliveries per CPU-s ÷ c-each"][1:] == ["≥ 0.78", "0.80", "yes"]
    assert said["W1: deliveries per CPU-s ÷ nchan"][2:] == ["–", "not measured"]
    missed = {line[0]: line for line in goals.lines({"W1": {"rounds": [turn(70, 100)]}})}
    assert missed["W1: deliveries per CPU-s ÷ c-each"][3] == "**no**"
    assert all(goal.workload in WORKLOADS for goal in goals.GOALS)


def test_who_is_ahead_is_named() -> None:
    workload = {"W1": {"summary": report.summary("W1", [turn(50, 100)])}}
    assert report.ahead(workload) == ["- W1, deliveries per CPU-s: c-each (0.50)"]
    assert report.ahead({"W1": {"summary": report.summary("W1", [turn(150, 100)])}}) == []


def test_a_part_replaces_its_own_workloads_only() -> None:
    latest = {"workloads": {"W3": {"old": 3}, "W1": {"old": 1}, "gone": {}}, "curves": {"size": {"old": 1}}}
    merged = campaign.merged(latest, {"workloads": {"W1": {"new": 1}}, "curves": {}})
    assert merged == {"workloads": {"W1": {"new": 1}, "W3": {"old": 3}}, "curves": {"size": {"old": 1}}}
    assert list(merged["workloads"]) == ["W1", "W3"]


def test_the_document_is_what_the_results_say() -> None:
    results = orjson.loads((ROOT / "benchmarks/results/latest.json").read_bytes())
    text = (ROOT / "docs/benchmarks.md").read_text("utf-8")
    plots = sorted(path.name for path in (ROOT / "docs").glob("benchmarks-*.svg"))
    written = text.partition(report.BEGIN + "\n")[2].partition(report.END)[0]
    assert written == report.document(results, [plot for plot in report.PLOTS if plot in plots])


def test_every_workload_can_be_told() -> None:
    for workload in WORKLOADS.values():
        for short in (False, True):
            assert "{" not in workload.told(workload.shaped(short=short))
        assert workload.turns[0].who == "relay"
        assert {workload.metric, *workload.columns} <= set(report.COLUMNS)
