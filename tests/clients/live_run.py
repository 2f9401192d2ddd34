"""A run of a system that keeps runs in threads (`sim_threads.py`) in which only what the test says happens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

from tests.clients.stage import CODE, ENDS, MODEL, WORDS, Act, pieces
from tests.support.sim_threads import Frame, Script, SimRun, Step

OUTPUT = "7"
"""What every tool call gives."""


class LiveRun(SimRun):
    """Nothing is left to chance but where its bytes are cut."""

    def __init__(self, shape: str, run_id: str, thread_id: str, body: Mapping[str, Any], number: int) -> None:
        script, chance = Script([], "completed"), Random(number)
        super().__init__(script, shape, chance, at=0, run_id=run_id, thread_id=thread_id, messages_lag=0)
        self.told: list[str] = []
        """What it was answered while it waited."""
        self.cancelling = False
        self._agent = str(body.get("assistant_id") or body.get("agent_id") or "")
        self._model = str(body.get("model") or MODEL)
        self._number = number
        self._ids = (f"call-{n}" for n in itertools.count(1))

    def go_on(self, most: int = 2) -> None:
        """Looking at it moves nothing: `move` does."""

    def move(self, step: Step) -> None:
        if step.kind in ENDS:
            self.script.status, self.ended = step.kind, True
        else:
            self.script.steps.append(step)
            self.at = len(self.script.steps)

    def answer(self, output: str) -> None:
        assert self.waiting is not None
        call_id = self.waiting
        self.told.append(output)
        self.answered.add(call_id)
        self.move(Step("result", output, id=call_id))

    def steps_of(self, act: Act) -> list[Step]:
        """What an act is in this run: text behind text is of the same part."""
        if act.kind == "say":
            return [Step("text", piece, self._part()) for piece in pieces(act.text)]
        if act.kind in ("call", "ask"):
            call_id = next(self._ids)
            then = Step("ask", id=call_id) if act.kind == "ask" else Step("result", OUTPUT, id=call_id)
            return [Step("call", id=call_id), then]
        return [Step(act.kind, act.text)]

    def _part(self) -> int:
        texts = [step.part for step in self.script.steps if step.kind == "text"]
        if not texts:
            return 0
        return texts[-1] if self.script.steps[-1].kind == "text" else texts[-1] + 1

    @property
    def status(self) -> str:
        if self.shape == "assistants" and self.cancelling and not self.ended:
            return "cancelling"
        return super().status

    def run(self) -> dict[str, Any]:
        assistants = self.shape == "assistants"
        made = super().run() | {"model": self._model, "assistant_id" if assistants else "agent_id": self._agent}
        made |= {"created_at": made["created_at"] + self._number} if assistants else {}
        made.pop("last_error", None)  # SeekrFlow has none: its stream alone says why
        if made["status"] == "failed" and assistants:
            made["last_error"] = {"code": CODE, "message": WORDS}
        if self.ended:
            made["usage"] = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        return made

    def messages(self) -> list[dict[str, Any]]:
        """Assistants are asked for those of the run, SeekrFlow for the thread's."""
        found = super().messages()
        return [item for item in found if self.shape != "assistants" or item["run_id"] == self.run_id]

    def _tell(self, step: Step, tag: int, opened: set[int]) -> Iterator[Frame]:
        yield from super()._tell(step, tag, opened)
        if step.kind == "think" and self.shape == "vercel":
            yield "", {"type": "reasoning-start", "id": "r"}
            yield "", {"type": "reasoning-delta", "id": "r", "delta": step.text}
            yield "", {"type": "reasoning-end", "id": "r"}
        if step.kind == "ask" and self.waiting == step.id:
            yield "thread.run.requires_action", self.run()
            yield "done", "[DONE]"

    def _closing(self) -> Iterator[Frame]:
        if self.shape == "vercel" and self.script.status == "failed":
            yield "", {"type": "error", "errorText": WORDS}
        yield from super()._closing()
