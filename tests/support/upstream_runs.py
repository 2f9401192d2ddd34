"""The runs of the scripted upstream: what happens in them, when, and the truth of it.

What goes wrong on the wire is in `upstream.py`.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from relay.demo.ledger import Run
from relay.demo.recording import read_recording
from relay.demo.script import Script, Step
from relay.demo.upstream import DemoUpstream

Event = Step | tuple[str, Mapping[str, Any]] | Mapping[str, Any]
"""A script step, `(type, data)`, or `{"type", "data"?, "seq"?, "ts"?, "dt_ms"?, …envelope}`."""


def as_script(script: Script | Iterable[Event]) -> Script:
    """Any way of writing events down, as a script. Envelope fields are for `add_run` and `append`; a script has none."""
    return script if isinstance(script, Script) else Script("events", tuple(_step(event) for event in script))


def _step(event: Event) -> Step:
    if isinstance(event, Step):
        return event
    if isinstance(event, tuple | list):  # a list where it came as JSON
        return Step(*event)
    return Step(event["type"], event.get("data", {}), event.get("dt_ms", 0.0), event.get("seq"))


def _cut(script: Script, at: int) -> tuple[Script, Script]:
    return replace(script, steps=script.steps[:at]), replace(script, steps=script.steps[at:])


def _write(run: Run, event: Event) -> None:
    if isinstance(event, Mapping):
        envelope = {name: value for name, value in event.items() if name not in ("type", "data", "dt_ms")}
        run.append(event["type"], event.get("data"), **envelope)
    else:
        step = _step(event)
        run.append(step.type, step.data, seq=step.seq)


class ScriptedRuns(DemoUpstream):
    """Runs whose every event the test decides.

    A POSTed run gets `run.started` and waits for the test, unless `on_create` holds a script for it.
    """

    def __init__(self, *, token: str | None = None, heartbeat_s: float = 15.0, uuid_ids: bool = False) -> None:
        super().__init__(token=token, heartbeat_s=heartbeat_s, uuid_ids=uuid_ids)
        self.on_create: deque[Script] = deque()
        """Scripts for the next POSTed runs."""
        self.every_create: Script | None = None
        """The script of every POSTed run beyond these."""
        self.created: list[tuple[str, dict[str, str]]] = []
        """Every POSTed run with its body."""
        self._held: dict[str, Script] = {}

    # ── runs and truth ──────────────────────────────────────────────────────────────────────────────────────

    def add_run(
        self,
        events: Iterable[Event] = (),
        *,
        run_id: str | None = None,
        thread_id: str | None = None,
        status: str | None = None,
        created_at: datetime | None = None,
        **row: Any,
    ) -> str:
        """A run with these events at once (no pacing); `seq` and `ts` may be given per event. Gives its id."""
        run = Run(run_id or str(uuid.uuid4()), thread_id or str(uuid.uuid4()), status_override=status, **row)
        run.created_at = created_at or run.created_at
        self.ledger.add(run)
        for event in events:
            _write(run, event)
        return run.run_id

    def run(self, run_id: str) -> Run:
        """The row itself. Raises `KeyError`."""
        if (run := self.ledger.get(run_id)) is None:
            raise KeyError(run_id)
        return run

    def append(self, run_id: str, type: str, data: Mapping[str, Any] | bytes | None = None, **envelope: Any) -> int:
        """One more event now; gives its seq. `data` as bytes is JSON, sent as it is; `seq`, `ts`, `event_id` may be set."""
        return self.run(run_id).append(type, data, **envelope)

    def finish(self, run_id: str, type: str = "run.completed", data: Mapping[str, Any] | None = None) -> int:
        """The terminal event."""
        return self.append(run_id, type, data or {})

    def set_status(self, run_id: str, status: str | None) -> None:
        """What the row says whatever the events say; None: derived from them again."""
        self.run(run_id).status_override = status

    def prune(self, run_id: str, to_seq: int | None = None) -> None:
        """Events up to `to_seq` (None: all so far) are no longer served; the row and the truth stay."""
        run = self.run(run_id)
        run.pruned_to = run.last_seq if to_seq is None else to_seq

    def remove_run(self, run_id: str) -> None:
        """The run is gone: 404. Open streams of it stay, silent."""
        self.ledger.remove(run_id)

    def truth(self, run_id: str) -> list[dict[str, Any]]:
        """Every event of the run that ever was, as JSON: the record relay is compared with."""
        return self.run(run_id).truth()

    # ── pacing ──────────────────────────────────────────────────────────────────────────────────────────────

    def play(
        self,
        script: Script | Iterable[Event],
        *,
        speed: float | None = None,
        run_id: str | None = None,
        thread_id: str | None = None,
        rate: float | None = None,
        hold: int = 0,
    ) -> str:
        """Play in the background, into a run that exists or a new one: at `rate` events a second, or its pace × `speed`.

        The last `hold` steps wait for `go_on`: what a test does in the middle of the run is in its middle on any machine.
        """
        script = as_script(script) if rate is None else as_script(script).paced(rate)
        if hold:
            script, rest = _cut(script, len(script.steps) - hold)
        if run_id is None or self.ledger.get(run_id) is None:
            run_id = super().play(script, speed=speed, run_id=run_id, thread_id=thread_id)
        else:
            self._player.play(script, self.run(run_id), speed=speed or self.speed)
        if hold:
            self._held[run_id] = rest
        return run_id

    async def go_on(self, run_id: str, *, speed: float | None = None) -> None:
        """What `play` held begins to come, once all before it has."""
        await self.played(run_id)
        self._player.play(self._held.pop(run_id), self.run(run_id), speed=speed or self.speed)

    def play_recording(self, path: str, *, speed: float = 1.0, run_id: str | None = None) -> str:
        """Play a `*.jsonl` recording into a new run."""
        return self.play(read_recording(path), speed=speed, run_id=run_id)

    def create(self, thread_id: str, fields: Mapping[str, str]) -> str:
        """A POSTed run: the next script of `on_create`, else `run.started` and silence until the test goes on."""
        opening = {"persona_id": fields.get("persona_id", "scripted"), "model": fields.get("model", "scripted-1")}
        script = self.every_create or Script("created", (Step("run.started", opening),))
        if self.on_create:
            script = self.on_create.popleft()
        run_id = self.play(script, thread_id=thread_id)
        self.created.append((run_id, dict(fields)))
        return run_id
