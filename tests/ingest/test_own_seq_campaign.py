"""Seeded lives of runs of systems without seq and resume, under cuts, crashes and losses (C1 of their reference).

A few hundred in `make test`; `RELAY_TEST_OWN_SEQ=10000` (or `make own-seq`) for a long campaign, `RELAY_TEST_SEED` for
other seeds. A failure names its seed.
"""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.support.sim_world import live

RUNS = int(os.environ.get("RELAY_TEST_OWN_SEQ", "360"))
FIRST = int(os.environ.get("RELAY_TEST_SEED", "0"))
SHAPES = ("vercel", "legacy", "assistants")


@pytest.mark.timeout(0 if RUNS > 1000 else 240)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("share", "trouble", "losses"), [(0.1, 0.0, 0), (0.6, 0.05, 0), (0.3, 0.03, 2)], ids=["calm", "cuts", "losses"]
)
def test_every_run_is_told_once_whole_and_in_order(shape: str, share: float, trouble: float, losses: int) -> None:
    for seed in range(FIRST, FIRST + max(1, int(RUNS * share / len(SHAPES)))):
        try:
            asyncio.run(live(seed, shape, trouble=trouble, losses=losses))
        except BaseException as error:
            error.add_note(f"seed {seed}, shape {shape}, trouble {trouble}, losses {losses}")
            raise
