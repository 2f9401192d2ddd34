"""Plays scripts into runs, in time: one task per run, all owned here and over when `stop` returns.

A step is due a pause after the one before it was due, so that a busy machine does not slow a run. Cancelling a run ends its
script at once with `run.cancelled`; a step with an answer waits for the run's user.
"""

from __future__ import annotations

import asyncio

from relay.demo.ledger import Run
from relay.demo.script import Script, Step


class Player:
    """The tasks of all playing runs."""

    def __init__(self) -> None:
        self._playing: dict[str, asyncio.Task[None]] = {}

    def play(self, script: Script, run: Run, *, speed: float = 1.0) -> None:
        """Write the first step now and the others in their time. Raises `ValueError` while the run plays another script."""
        before = self._playing.get(run.run_id)
        if before is not None and not before.done():
            raise ValueError(f"run {run.run_id} is playing already")
        first, *rest = script.steps
        _write(run, first)
        self._playing[run.run_id] = asyncio.create_task(_perform(rest, run, speed), name=f"play {run.run_id}")

    async def played(self, run_id: str) -> None:
        """Wait until the run's script is over. Raises what broke it."""
        if (task := self._playing.get(run_id)) is not None:
            await asyncio.shield(task)

    async def stop(self) -> None:
        """End every script now. Raises what broke one."""
        tasks = list(self._playing.values())
        self._playing.clear()
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


async def _perform(steps: list[Step], run: Run, speed: float) -> None:
    clock = asyncio.get_running_loop().time
    due = clock()
    for step in steps:
        due += step.dt_ms / 1000 / speed
        if await run.until(lambda run: run.cancel_requested, max(0.0, due - clock())) and run.ended is None:
            run.append("run.cancelled", {"trace_id": run.trace_id})
            return
        seq = _write(run, step)
        if step.answer is not None:
            await _answered(run, seq, step.answer, step.patience_s / speed)
            due = clock()


def _write(run: Run, step: Step) -> int:
    data = dict(step.data)
    if step.type == "thread.title.updated":
        data.setdefault("thread_id", run.thread_id)
    return run.append(step.type, data, seq=step.seq)


async def _answered(run: Run, asked: int, answer: str, patience_s: float) -> None:
    """Until the user answered or cancelled, or the run answers for them."""
    if not await run.until(lambda run: run.input_seq > asked or run.cancel_requested, patience_s):
        run.append("run.input_provided", {"content": answer, "trace_id": run.trace_id})
