"""Seeded lives of runs of systems without seq and resume, under cuts, crashes and losses (C1 of their reference).

A few hundred in `make test`; `RELAY_TEST_OWN_SEQ=10000` (or `make own-seq`) for a long campaign, `RELAY_TEST_SEED` for
other seeds. A failure names its seed.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, cast

import pytest

from relay.core.sse import Message
from relay.ingest import intake as intake_module
from relay.ingest.intake import Intake
from tests.support.sim_world import World, live

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


async def test_what_is_held_of_a_stream_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes what it brings (Redis is away): beyond the bound it is given up, and looks bring all of it."""
    monkeypatch.setattr(intake_module, "_HELD", 1000)
    world = World(3, "assistants", trouble=0.0)
    intake = Intake(world.upstream, world.upstream.provider.create_run("thread-1", {}), event_bytes=2**20)
    for _ in range(100):
        intake._take(Message(b"x" * 400, "thread.run.in_progress", ""))
    assert intake.lost
    assert not cast(Any, intake)._held
    intake.close()


async def test_a_stream_given_up_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(20):
        monkeypatch.setattr(intake_module, "_HELD", 600)
        await live(seed, "assistants", trouble=0.1)
