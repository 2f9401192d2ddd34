"""The short form of the campaign: a minute of faults on three relays and one Redis, and nobody was shown anything wrong.

`RELAY_TEST_SEEDS=n` runs n seeds. The long form is `python -m tests.campaign` (tests/campaign/__main__.py).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.campaign import checker, report
from tests.campaign.bugs import BUGS
from tests.campaign.conduct import Options, campaign

SEEDS = range(1, int(os.environ.get("RELAY_TEST_SEEDS", "1")) + 1)


async def _outcome(tmp_path: Path, options: Options) -> dict[str, object]:
    folder = await campaign(options)
    result = checker.check(folder)
    report.write(folder, [result])
    return result


@pytest.mark.system
@pytest.mark.filterwarnings("default::ResourceWarning")
@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_is_lost_repeated_reordered_or_invented(seed: int, tmp_path: Path) -> None:
    options = Options(seed=seed, rounds=30, runs=6, brief=True, out=tmp_path, quiet=True)
    result = await _outcome(tmp_path, options)
    assert result["rounds"] == 30, result["rounds_not_done"]
    assert result["violations"] == {}, (
        f"replay: python -m tests.campaign --seed {seed} --rounds 30 --runs 6 --brief\n"
        f"{json.dumps(result['examples'], indent=1)[:4000]}"
    )


EXPECTED = {
    "skip-fence": ({"two_owners", "stale_renewal"}, "relay.stop_owner,store_link.dark,store_link.replies_lost"),
    "ack-before-append": (
        {"visible_before_durable", "never_durable"},
        "store_link.dark,store_link.latency,redis.stop,redis.pause,redis.oom,upstream.cut",
    ),
    "resume-one-early": ({"repeated"}, "reader_link.cut,relay.kill_owner"),
    "resume-one-late": ({"lost"}, "reader_link.cut,relay.kill_owner"),
    "many-one-late": ({"lost"}, "reader_link.cut,relay.kill_owner"),
    "forget-bells": ({"stuck"}, "reader_link.cut"),
    "skip-dedupe": ({"invented", "altered"}, "upstream.resend,upstream.resend_all,upstream.cut"),
}


@pytest.mark.system
@pytest.mark.filterwarnings("default::ResourceWarning")
@pytest.mark.bugs
@pytest.mark.parametrize("bug", sorted(EXPECTED))
async def test_a_seeded_bug_is_caught(bug: str, tmp_path: Path) -> None:
    kinds, rounds = EXPECTED[bug]
    options = Options(
        seed=1, rounds=200, seconds=25, runs=6, brief=True, out=tmp_path, quiet=True, bug=bug, kinds=rounds.split(","),
        patience_s=15,
    )  # fmt: skip
    result = await _outcome(tmp_path, options)
    violations = result["violations"]
    assert isinstance(violations, dict)
    assert kinds & set(violations), f"{bug} was not caught: {violations}"


def test_every_bug_is_expected_to_be_caught() -> None:
    assert set(EXPECTED) == set(BUGS)
