"""The checker catches each kind of violation in a hand-made record, and finds nothing in a clean one."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.campaign.checker import Evidence, judge

RUN = "r1"
BEGAN = 1000.0
"""Monotonic seconds of the first event; wall time is the same here."""
Row = dict[str, Any]


def _ts(t: float) -> str:
    return datetime.fromtimestamp(t, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _said(seq: int, kind: str = "message.delta") -> Row:
    data = {"content_delta": f"word {seq}"} if kind == "message.delta" else {}
    return {"seq": seq, "type": kind, "data": data, "run_id": RUN, "event_id": f"e{seq}", "ts": _ts(BEGAN + seq)}


def _shown(event: Row, **changes: Any) -> str:
    data = dict(event["data"])
    if "content_delta" in data:
        data["content"] = data["content_delta"]
    return json.dumps({**event, "data": data, "created_at": event["ts"], **changes})


def clean() -> Evidence:
    """Five events, one owner, two readers: one stays, one comes back on another relay."""
    events = [_said(1, "run.started"), *(_said(seq) for seq in (2, 3, 4)), _said(5, "run.completed")]
    texts = [{"run": RUN, "seq": e["seq"], "sha": f"sha{e['seq']}", "text": _shown(e)} for e in events]
    writes: list[Row] = [{"op": "claim", "run": RUN, "relay": 0, "owner": "o", "fence": 7, "t0": 1000.1, "t1": 1000.2,
                          "answer": "OK"}]  # fmt: skip
    for seq in range(1, 6):
        t = BEGAN + seq + 0.01
        writes.append({"op": "append", "run": RUN, "relay": 0, "owner": "o", "fence": 7, "prev": seq - 1,
                       "seqs": [[seq, seq]], "t0": t, "t1": t + 0.01, "answer": "OK"})  # fmt: skip
    journal: list[Row] = [{"r": "a", "c": 1, "t": 1000.0, "run": RUN, "o": 1, "w": "sse", "k": 0},
                          {"r": "b", "c": 1, "t": 1000.0, "run": RUN, "o": 0, "w": "ws", "k": 0}]  # fmt: skip
    journal += [{"r": "a", "c": 1, "t": BEGAN + seq + 0.05, "e": [[seq, f"sha{seq}"]]} for seq in range(1, 6)]
    journal += _end("a", 1)
    journal += [
        {"r": "b", "c": 1, "t": 1003.1, "e": [[1, "sha1"], [2, "sha2"], [3, "sha3"]]},
        {"r": "b", "c": 1, "t": 1003.5, "x": "broken", "d": ""},
        {"r": "b", "c": 2, "t": 1004.0, "run": RUN, "o": 2, "w": "sse", "k": 3},
        {"r": "b", "c": 2, "t": 1005.1, "e": [[4, "sha4"], [5, "sha5"]]},
        *_end("b", 2),
    ]
    return Evidence(
        meta={"topology": "single", "wall_minus_monotonic": 0.0},
        faults=[{"n": 1, "kind": "relay.kill", "relay": 2, "owned": [], "t0": 1002.0, "t1": 1002.5}],
        runs=[{"run": RUN, "t2": 1010.0, "counters": {"max_following": 1},
               "readers": {"a": {"leaves": False}, "b": {"leaves": False}}}],
        truth=[{"run": RUN, "events": events}],
        writes=writes,
        streams=[{"run": RUN, "relay": 0, "follow": True, "after": 0, "status": 200, "t0": 1000.3, "t1": 1006.0}],
        journal=journal,
        texts=texts,
        log=[{"run": RUN, "entries": [[f"{seq}-0", f"sha{seq}"] for seq in range(1, 6)], "state": {"sealed": "1"}}],
    )  # fmt: skip


def _end(reader: str, connection: int, last_seq: int = 5) -> list[Row]:
    return [
        {"r": reader, "c": connection, "t": 1006.5, "f": "relay.end", "i": last_seq, "d": {"last_seq": last_seq}},
        {"r": reader, "c": connection, "t": 1006.6, "x": "eof", "d": ""},
        {"r": reader, "t": 1006.6, "c": connection, "q": "end"},
    ]


def found(evidence: Evidence) -> dict[str, int]:
    violations: dict[str, int] = judge(evidence)["violations"]
    return violations


def _batch(evidence: Evidence, reader: str, seq: int) -> list[Any]:
    """The batch that shows this event to this reader."""
    return next(
        row["e"] for row in evidence.journal if row["r"] == reader and any(e[0] == seq for e in row.get("e", ()))
    )


def test_a_clean_record_has_no_violation() -> None:
    report = judge(clean())
    assert report["violations"] == {}
    assert report["rounds"] == report["rounds_with_readers"] == 1
    assert report["deliveries"] == 10


def test_lost_in_the_middle() -> None:
    evidence = clean()
    del _batch(evidence, "b", 2)[1]
    assert found(evidence) == {"lost": 1}


def test_lost_across_a_reconnect() -> None:
    evidence = clean()
    del _batch(evidence, "b", 4)[0]
    assert found(evidence) == {"lost": 1}


def test_lost_at_the_end() -> None:
    evidence = clean()
    del _batch(evidence, "b", 5)[1]
    assert found(evidence) == {"lost": 1}


def test_repeated_across_a_reconnect() -> None:
    evidence = clean()
    _batch(evidence, "b", 4).insert(0, [3, "sha3"])
    assert found(evidence) == {"repeated": 1}


def test_reordered() -> None:
    evidence = clean()
    _batch(evidence, "b", 2)[1:] = [[3, "sha3"], [2, "sha2"]]
    assert found(evidence) == {"lost": 1, "reordered": 1}


def test_invented() -> None:
    evidence = clean()
    _batch(evidence, "a", 5).append([6, "sha6"])
    evidence.texts = [*evidence.texts, {"run": RUN, "seq": 6, "sha": "sha6", "text": _shown(_said(6))}]
    evidence.writes.append({**evidence.writes[-1], "seqs": [[6, 6]], "prev": 5})
    assert found(evidence) == {"invented": 1}


@pytest.mark.parametrize(
    "changes",
    [{"data": {"content_delta": "other"}}, {"seq": 4}, {"type": "tool.call"}, {"event_id": "x"}, {"extra": 1},
     {"data": {"content_delta": "word 3", "content": "word"}}, {"created_at": "2020-01-01T00:00:00Z"}],
)  # fmt: skip
def test_altered(changes: Row) -> None:
    evidence = clean()
    _batch(evidence, "a", 3)[0][1] = "other"
    evidence.texts = [*evidence.texts, {"run": RUN, "seq": 3, "sha": "other", "text": _shown(_said(3), **changes)}]
    assert found(evidence) == {"altered": 1}


def test_a_type_is_mapped_only_as_promised() -> None:
    evidence = clean()
    asked = {**_said(3, "run.input_requested")}
    evidence.truth[0]["events"][2] = asked
    mapped = _shown(asked, type="run.waiting_for_input", upstream_type="run.input_requested")
    evidence.texts = [t if t["seq"] != 3 else {**t, "text": mapped} for t in evidence.texts]
    assert found(evidence) == {}
    evidence.texts = [t if t["seq"] != 3 else {**t, "text": _shown(asked)} for t in evidence.texts]
    assert found(evidence)["altered"] == 2


def test_visible_before_durable() -> None:
    evidence = clean()
    evidence.writes[3]["t0"] = evidence.writes[3]["t1"] = BEGAN + 3 + 0.06
    assert found(evidence) == {"visible_before_durable": 1}


def test_never_durable() -> None:
    evidence = clean()
    evidence.writes[3]["answer"] = "LOST"
    assert found(evidence) == {"never_durable": 1}


def test_an_append_whose_answer_was_lost_may_have_been_made() -> None:
    evidence = clean()
    evidence.writes[3] |= {"answer": "NONE", "t1": None}
    assert found(evidence) == {}


def test_a_proper_end_without_a_word() -> None:
    evidence = clean()
    next(row for row in evidence.journal if row.get("x") == "broken")["x"] = "eof"
    assert found(evidence) == {"ended_early": 1}


def test_told_the_end_while_the_upstream_went_on() -> None:
    evidence = clean()
    rows = [row for row in evidence.journal if row["r"] != "a" or row["t"] < 1003.5]
    early = [{**row, "t": 1003.6} for row in _end("a", 1, last_seq=3)]
    evidence.journal = [*rows, *early]
    assert found(evidence) == {"ended_early": 1}


def test_a_204_that_comes_too_early() -> None:
    evidence = clean()
    rows = [row for row in evidence.journal if row["r"] != "b" or row["c"] == 1]
    evidence.journal = [*rows, {"r": "b", "c": 2, "t": 1003.6, "run": RUN, "o": 2, "w": "sse", "k": 3},
                        {"r": "b", "c": 2, "t": 1003.7, "x": "204", "d": ""}]  # fmt: skip
    assert found(evidence) == {"ended_early": 1}


def test_told_the_end_twice() -> None:
    evidence = clean()
    evidence.journal = [*evidence.journal, *_end("a", 1)]
    assert found(evidence) == {"ended_twice": 1}


def test_an_event_after_the_end() -> None:
    evidence = clean()
    evidence.journal = [*evidence.journal, {"r": "a", "c": 1, "t": 1007.0, "e": [[5, "sha5"]]}]
    assert found(evidence) == {"after_end": 1, "repeated": 1}


def test_never_told_the_end() -> None:
    evidence = clean()
    evidence.journal = [row for row in evidence.journal if not (row["r"] == "a" and row["t"] > 1006)]
    assert found(evidence) == {"stuck": 1}


def test_who_leaves_for_good_need_not_be_told() -> None:
    evidence = clean()
    evidence.journal = [row for row in evidence.journal if not (row["r"] == "a" and row["t"] > 1003)]
    evidence.runs[0]["readers"]["a"]["leaves"] = True
    assert found(evidence) == {}


def test_an_announced_loss() -> None:
    evidence = clean()
    reset = {"r": "a", "c": 1, "t": 1000.5, "f": "relay.reset", "i": 0, "d": {"from_seq": 1, "to_seq": 1}}
    evidence.journal = [*list(evidence.journal)[:2], reset, *list(evidence.journal)[2:]]
    assert found(evidence) == {"announced_loss": 1}


def test_a_run_that_exists_is_refused() -> None:
    evidence = clean()
    evidence.journal = [*evidence.journal, {"r": "a", "c": 1, "t": 1000.5, "s": 404}]
    assert found(evidence) == {"refused": 1}


def _second_claim(evidence: Evidence, t: float) -> None:
    evidence.writes.append({**evidence.writes[0], "relay": 1, "owner": "p", "fence": 9, "t0": t, "t1": t + 0.01})


def test_two_owners() -> None:
    evidence = clean()
    _second_claim(evidence, 1003.5)
    assert found(evidence) == {"two_owners": 2}  # 4 and 5 were still written under the old fence


def test_one_owner_that_is_given_the_same_fence_twice_is_one_owner() -> None:
    evidence = clean()
    evidence.writes.append({**evidence.writes[0], "t0": 1003.5, "t1": 1003.51})
    evidence.faults.append({"n": 2, "kind": "redis.lose_state", "run": RUN, "t0": 1003.3, "t1": 1003.4})
    assert found(evidence) == {}


def test_an_append_that_was_under_way_at_the_claim_is_none() -> None:
    evidence = clean()
    _second_claim(evidence, 1005.005)
    assert found(evidence) == {}


def test_two_owners_also_where_the_later_claim_has_the_lower_fence() -> None:
    """A flush, and a clock set back: which claim was the later one, time tells."""
    evidence = clean()
    t = 1003.5
    evidence.writes.append({**evidence.writes[0], "relay": 1, "owner": "p", "fence": 3, "t0": t, "t1": t + 0.01})
    evidence.faults.append({"n": 2, "kind": "redis.flushall", "t0": 1003.3, "t1": 1003.4})
    assert found(evidence) == {"two_owners": 2}


def test_a_higher_fence_of_before_a_loss_is_nobodys_fault() -> None:
    evidence = clean()
    evidence.writes.append({**evidence.writes[0], "relay": 1, "owner": "p", "fence": 9, "t0": 999.0, "t1": 999.1})
    assert found(evidence) == {"fence_fell": 1}
    evidence.faults.append({"n": 2, "kind": "redis.lose_state", "run": RUN, "t0": 999.5, "t1": 999.6})
    assert found(evidence) == {}


def test_fences_tell_which_of_two_claims_at_once_came_later() -> None:
    for fence, violations in ((9, {"two_owners": 5}), (6, {})):
        evidence = clean()
        evidence.writes.append({**evidence.writes[0], "owner": "p", "fence": fence, "t0": 1000.15, "t1": 1000.25})
        assert found(evidence) == violations


def test_a_relays_own_clock_excuses_nothing() -> None:
    for kind, violations in (("redis.clock", {}), ("relay.clock", {"two_followers": 1})):
        evidence = clean()
        evidence.streams.append({**evidence.streams[0], "relay": 1, "t0": 1004.0})
        evidence.faults.append({"n": 2, "kind": kind, "relay": 0, "t0": 1003.8, "t1": 1003.9})
        assert found(evidence) == violations, kind


def test_a_stale_renewal() -> None:
    evidence = clean()
    _second_claim(evidence, 1006.1)
    evidence.writes.append({"op": "renew", "run": RUN, "relay": 0, "owner": "o", "fence": 7, "t0": 1006.3,
                            "t1": 1006.4, "answer": "OK"})  # fmt: skip
    assert found(evidence) == {"stale_renewal": 1}


def _replicated(evidence: Evidence) -> None:
    """All writes went to node0, master from the beginning; node1 is its replica."""
    evidence.meta["topology"] = "sentinel"
    for write in evidence.writes:
        write |= {"node": "node0", "sent": write["t0"]}
    evidence.masters += [{"t": 990.0, "node": "node0", "role": "master"}, {"t": 990.0, "node": "node1", "role": "slave"},
                         {"t": 990.0, "group": "main", "master": "node0"}]  # fmt: skip


def _failed_over(evidence: Evidence, t: float, demoted_at: float) -> None:
    """node1 was named, and node0 found out later."""
    evidence.masters += [{"t": t - 0.1, "node": "node1", "role": "master"}, {"t": t, "group": "main", "master": "node1"},
                         {"t": demoted_at, "node": "node0", "role": "slave"}]  # fmt: skip
    evidence.faults.append({"n": 2, "kind": "redis.failover", "t0": t - 1, "t1": t})


def test_two_owners_of_one_server_are_judged_also_near_a_failover() -> None:
    evidence = clean()
    _replicated(evidence)
    _second_claim(evidence, 1003.5)
    _failed_over(evidence, 1006.0, 1007.0)
    assert found(evidence) == {"two_owners": 2}


def test_a_claim_that_another_server_had_proves_nothing_and_is_counted() -> None:
    evidence = clean()
    _replicated(evidence)
    _second_claim(evidence, 1003.5)
    evidence.writes[-1] |= {"node": "node1"}
    _failed_over(evidence, 1003.4, 1005.5)
    report = judge(evidence)
    assert report["violations"] == {}
    assert report["old_fence_writes_around_failovers"] == {"two_masters": 2, "claim_lost": 0}
    assert report["old_masters"] == {"failovers": 1, "writes_to_an_old_master": 2, "latest_s": 1.61}


def test_a_claim_that_its_server_forgot_as_a_replica_proves_nothing() -> None:
    evidence = clean()
    _replicated(evidence)
    _second_claim(evidence, 1003.1)
    evidence.masters += [
        {"t": 1003.5, "node": "node0", "role": "slave"},
        {"t": 1003.7, "node": "node0", "role": "master"},
    ]
    report = judge(evidence)
    assert report["violations"] == {}
    assert report["old_fence_writes_around_failovers"] == {"two_masters": 0, "claim_lost": 2}


def test_an_old_master_that_is_written_to_for_too_long() -> None:
    evidence = clean()
    _replicated(evidence)
    _failed_over(evidence, 1002.5, 1009.0)
    assert found(evidence) == {"old_master": 1}  # 3 and 4 came soon after, 5 did not


def test_what_a_link_held_back_was_sent_in_time() -> None:
    evidence = clean()
    _replicated(evidence)
    _failed_over(evidence, 1002.5, 1009.0)
    evidence.writes[5]["sent"] = 1004.2
    assert found(evidence) == {}


def test_a_server_that_is_about_to_be_named_again_is_no_old_master() -> None:
    evidence = clean()
    _replicated(evidence)
    evidence.masters += [
        {"t": 995.0, "group": "main", "master": "node1"},
        {"t": 1001.5, "group": "main", "master": "node0"},
    ]
    assert found(evidence) == {}
    evidence.masters[-1]["t"] = 1004.5
    assert found(evidence) == {"old_master": 3}  # the claim, 1 and 2 came too early for that


def test_what_was_written_to_a_server_that_was_demoted_may_be_lost_and_written_again() -> None:
    evidence = clean()
    _replicated(evidence)
    _failed_over(evidence, 1005.2, 1005.5)
    evidence.writes.append({**evidence.writes[-1], "node": "node1", "t0": 1005.6, "sent": 1005.6, "t1": 1005.7})
    assert found(evidence) == {}
    evidence.writes.append({**evidence.writes[-1], "t0": 1005.8, "sent": 1005.8, "t1": 1005.9})
    assert found(evidence) == {"written_twice": 1}


def test_a_tail_that_a_later_failover_lost() -> None:
    evidence = clean()
    _replicated(evidence)
    del evidence.log[0]["entries"][-1]
    assert found(evidence) == {"log_hole": 1}
    _failed_over(evidence, 1007.0, 1008.0)
    assert found(evidence) == {}


def test_two_followers() -> None:
    evidence = clean()
    evidence.streams.append({**evidence.streams[0], "relay": 1, "t0": 1004.0})
    evidence.faults.clear()
    assert found(evidence) == {"two_followers": 1}


def test_two_followers_while_the_first_is_frozen_are_explained() -> None:
    evidence = clean()
    evidence.streams.append({**evidence.streams[0], "relay": 1, "t0": 1004.0})
    evidence.faults.append({"n": 2, "kind": "relay.stop_owner", "relay": 0, "t0": 1000.9, "t1": 1004.5})
    report = judge(evidence)
    assert report["violations"] == {}
    assert report["following"]["most_at_once"] == 2


def test_written_twice() -> None:
    evidence = clean()
    evidence.writes.append({**evidence.writes[2], "t0": 1005.0, "t1": 1005.1})
    assert found(evidence) == {"written_twice": 1}
    evidence.faults.append({"n": 2, "kind": "redis.flushall", "t0": 1004.0, "t1": 1004.1})
    assert found(evidence) == {}


def test_a_hole_in_the_final_log() -> None:
    evidence = clean()
    del evidence.log[0]["entries"][2]
    assert found(evidence) == {"log_hole": 1}


def test_a_log_that_vanished() -> None:
    evidence = clean()
    evidence.log[0]["entries"] = []
    assert found(evidence) == {"log_lost": 1}
    evidence.faults.append({"n": 2, "kind": "redis.flushall", "t0": 1007.0, "t1": 1007.1})
    assert found(evidence) == {}


def test_something_in_the_log_that_never_was() -> None:
    evidence = clean()
    evidence.log[0]["entries"].append(["9-0", "sha9"])
    assert found(evidence) == {"log_invented": 1}


def test_a_marked_end_is_right_only_where_the_upstream_has_none() -> None:
    evidence = clean()
    end = {"seq": 6, "type": "run.failed", "data": {}, "run_id": RUN, "synthesized": True, "created_at": "x"}
    evidence.texts = [*evidence.texts, {"run": RUN, "seq": 6, "sha": "sha6", "text": json.dumps(end)}]
    evidence.writes.append({**evidence.writes[-1], "seqs": [[6, 6]], "prev": 5})
    _batch(evidence, "a", 5).append([6, "sha6"])
    silent = copy.deepcopy(evidence)
    assert found(evidence) == {"invented": 1}
    silent.truth[0]["events"][4] = _said(5)
    silent.texts = [t if t["seq"] != 5 else {**t, "text": _shown(_said(5))} for t in silent.texts]
    assert found(silent) == {}


def test_the_pause_of_viewers_elsewhere_is_measured() -> None:
    evidence = clean()
    evidence.faults = [{"n": 1, "kind": "relay.kill_owner", "relay": 0, "owned": [RUN], "t0": 1002.9, "t1": 1003.0}]
    for row in evidence.journal:
        if row["r"] == "a" and row.get("e") == [[3, "sha3"]]:
            row["t"] = 1003.9
    kill = judge(evidence)["pauses"]["kill"]["clean"]
    assert kill["n"] == 1
    assert kill["max"] == pytest.approx(0.9, abs=0.01)
