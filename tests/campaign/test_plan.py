"""The seed decides the schedule, and nothing else does."""

from __future__ import annotations

from itertools import pairwise

from relay.store.redis import SCRIPTS, Script
from tests.campaign.plan import CLOCKS, HEAVY, LIGHT, MEASURED, schedule
from tests.campaign.taps import ScriptNames
from tests.support.upstream_client import ROOT


def test_the_same_seed_gives_the_same_schedule() -> None:
    assert schedule(7, 200) == schedule(7, 200)
    assert schedule(7, 200) != schedule(8, 200)


def test_a_longer_campaign_begins_as_a_shorter_one() -> None:
    assert schedule(7, 200)[:50] == schedule(7, 50)


def test_every_kind_comes_up() -> None:
    assert {round.kind for round in schedule(1, 2000)} == set(HEAVY) | set(LIGHT)


def test_measured_takeovers_get_quiet() -> None:
    planned = [round for round in schedule(1, 2000) if round.kind in HEAVY]
    quiet = [b.at - a.at > 2 for a, b in pairwise(planned) if b.kind in MEASURED]
    assert sum(quiet) > len(quiet) * 0.6


def test_where_no_clock_can_jump_none_is_planned() -> None:
    assert not {round.kind for round in schedule(1, 2000, without=CLOCKS)} & set(CLOCKS)


def test_the_tap_knows_every_script_by_its_text() -> None:
    names = ScriptNames(ROOT)
    assert {name: names.loading(Script(name).text.encode()) for name in SCRIPTS} == {name: name for name in SCRIPTS}
