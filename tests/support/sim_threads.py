"""A system that keeps runs in threads, made up: what happens in a run is a script, and every wire it has is a view of it.

Three shapes: `vercel` and `legacy` (SeekrFlow, with an attach that replays, or joins live) and `assistants` (a stream for
whoever made the run, looks for the others). Every connection cuts the text elsewhere and names its parts anew, may be
cut at any byte, and each request lets the run go on a little. All chance comes from one seeded `random.Random`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

Frame = tuple[str, Any]
"""The event name (Assistants only) and the JSON body, or the text `[DONE]`."""


@dataclass
class Step:
    """One thing that happens: text of a part, a tool call, its result, a question, an end."""

    kind: str
    text: str = ""
    part: int = 0
    id: str = ""


@dataclass
class Script:
    steps: list[Step]
    status: str

    @property
    def messages(self) -> list[str]:
        """The final text of each assistant message."""
        count = 1 + max((step.part for step in self.steps if step.kind == "text"), default=-1)
        return ["".join(s.text for s in self.steps if s.kind == "text" and s.part == i) for i in range(count)]


WORDS = ["Hel", "lo ", "wörld", "🦊", "\n", "a", " and so on ", "\u2028", "x" * 40, "\ud83d\ude00", ""]


def script(chance: Random, *, asks: bool) -> Script:
    """A run of some parts with tool calls between them."""
    steps: list[Step] = []
    parts = chance.choice([0, 1, 1, 2, 3])
    for part in range(parts):
        for n in range(chance.choice([0, 1, 1, 2])):
            name = f"call-{part}-{n}"
            steps.append(Step("call", id=name))
            if asks and chance.random() < 0.3:
                steps.append(Step("ask", id=name))
            steps.append(Step("result", id=name, text=f"out {n}"))
        words = [word for _ in range(chance.randint(1, 8)) if (word := chance.choice(WORDS))] or ["ok"]
        steps += [Step("text", text=word, part=part) for word in words]
    return Script(steps, chance.choice(["completed", "completed", "completed", "failed", "cancelled"]))


@dataclass
class SimRun:
    script: Script
    shape: str
    chance: Random
    attach_replays: bool = True
    partial_messages: bool = True
    no_messages: bool = False
    """There is no such call."""
    at: int = -1
    """-1: queued; else how many steps have happened."""
    answered: set[str] = field(default_factory=set)
    ended: bool = False
    run_id: str = "run-1"
    thread_id: str = "thread-1"
    made_at: float | None = None
    """Unix time of its creation, if that matters."""
    metadata: dict[str, Any] | None = None
    messages_lag: int = 1
    """How many looks at the messages of a finished run find them not written yet."""

    # --- time -------------------------------------------------------------------------------------------------------
    def go_on(self, most: int = 2) -> None:
        for _ in range(self.chance.randint(0, most)):
            if self.waiting is not None:
                if self.chance.random() < 0.5:
                    self.answered.add(self.waiting)
                return
            if self.at >= len(self.script.steps):
                self.ended = True
                return
            self.at += 1

    @property
    def done(self) -> list[Step]:
        return self.script.steps[: max(0, self.at)]

    @property
    def waiting(self) -> str | None:
        last = self.done[-1] if self.done else None
        return last.id if last is not None and last.kind == "ask" and last.id not in self.answered else None

    @property
    def status(self) -> str:
        if self.ended:
            spelled = {"cancelled": "canceled"} if self.shape != "assistants" and self.chance.random() < 0.5 else {}
            return spelled.get(self.script.status, self.script.status)
        if self.at < 0:
            return "queued"
        if self.shape != "assistants":
            return "running"
        return "requires_action" if self.waiting else "in_progress"

    # --- answers ----------------------------------------------------------------------------------------------------
    def run(self) -> dict[str, Any]:
        status = self.status
        numbers = self.shape == "assistants"
        at = self.made_at or (1718885800.5 if numbers else "2026-01-02T03:04:05")
        ended = {"completed": "completed_at", "failed": "failed_at"}.get(status, "cancelled_at") if self.ended else ""
        common = {"id": self.run_id, "thread_id": self.thread_id, "status": status, "created_at": at, "model": ""}
        run: dict[str, Any] = {**common, "started_at": at if self.at >= 0 else None, "completed_at": None}
        run |= {ended: at} if ended else {}
        run["metadata" if numbers else "meta_data"] = self.metadata
        if status == "failed":
            run["last_error"] = {"code": "server_error", "message": "broke"}
        if numbers and self.waiting:
            calls = [_call(self.waiting)]
            run["required_action"] = {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": calls}}
        if self.ended:
            run["usage"] = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        return run

    def messages(self) -> list[dict[str, Any]]:
        """Newest first, among others' messages."""
        if self.ended and self.messages_lag > 0:
            self.messages_lag -= 1
            return [{"id": "user", "role": "user", "content": "hi", "run_id": None, "created_at": 1}]
        made = []
        for i, full in enumerate(self.script.messages):
            so_far = "".join(step.text for step in self.done if step.kind == "text" and step.part == i)
            complete = self.ended or any(step.kind == "text" and step.part > i for step in self.done)
            if so_far and (complete or self.partial_messages):
                made.append(self._message(i, full if complete else so_far, complete=complete))
        other = {"id": "old", "role": "assistant", "content": "old", "run_id": "another", "created_at": 1}
        return [*reversed(made), {"id": "user", "role": "user", "content": "hi", "run_id": None}, other]

    def _message(self, i: int, text: str, *, complete: bool) -> dict[str, Any]:
        content: Any = text
        if self.shape == "assistants":
            content = [{"type": "text", "text": {"value": text, "annotations": []}}]
        status = "completed" if complete else "in_progress"
        common = {"id": f"msg-{i}", "role": "assistant", "run_id": self.run_id, "content": content}
        return {**common, "status": status, "created_at": 1718885801.0}

    def steps(self) -> list[dict[str, Any]]:
        """Oldest first."""
        found: list[dict[str, Any]] = []
        for step in self.done:
            if step.kind == "call":
                found.append(self._step(step.id, over=any(s.kind == "result" and s.id == step.id for s in self.done)))
            elif step.kind == "text" and not any(one.get("part") == step.part for one in found):
                details = {"type": "message_creation", "message_creation": {"message_id": f"msg-{step.part}"}}
                found.append(
                    {"id": f"step-{step.part}", "part": step.part, "status": "completed", "step_details": details}
                )
        return found

    def _step(self, call_id: str, *, over: bool) -> dict[str, Any]:
        call = _call(call_id)
        if over:
            call["function"]["output"] = next(
                s.text for s in self.script.steps if s.kind == "result" and s.id == call_id
            )
        details = {"type": "tool_calls", "tool_calls": [call]}
        return {"id": f"step-{call_id}", "status": "completed" if over else "in_progress", "step_details": details}

    # --- streams ----------------------------------------------------------------------------------------------------
    def frames(self, *, from_start: bool) -> Iterator[Frame | None]:
        """What a stream says, in its own pieces; None where it waits for the run. Ends with the run, or a question."""
        tag, opened = self.chance.randint(0, 10**6), set[int]()
        from_start = from_start or self.at < 0
        told = 0 if from_start else self.at
        if from_start:
            yield from self._opening()
        while True:
            while told < len(self.done):
                step = self.done[told]
                told += 1
                yield from self._tell(step, tag, opened)
                if step.kind == "ask" and self.shape == "assistants" and step.id not in self.answered:
                    return
            if self.ended:
                yield from self._closing()
                return
            self.go_on()
            yield None

    def _opening(self) -> Iterator[Frame]:
        if self.shape == "vercel":
            yield "", {"type": "start", "messageId": "m"}
        elif self.shape == "legacy":
            yield "", {"type": "user_prompt"}
            yield "", {"type": "node_header", "node_type": "ModelRequestNode", "description": ""}
        else:
            yield "thread.run.created", self.run()
            yield "thread.run.queued", self.run()

    def _closing(self) -> Iterator[Frame]:
        if self.shape == "assistants":
            yield f"thread.run.{self.script.status}", self.run()
            yield "done", "[DONE]"
            return
        if self.shape == "vercel":
            yield "", {"type": "finish"}
        yield "", "[DONE]"

    def _tell(self, step: Step, tag: int, opened: set[int]) -> Iterator[Frame]:
        if step.kind == "text":
            if step.part not in opened:
                opened.add(step.part)
                yield from self._part_opens(step.part, tag)
            for piece in self._pieces(step.text):
                yield self._text(piece, step.part, tag)
        elif step.kind in ("call", "result"):
            yield from self._tool(step)

    def _pieces(self, text: str) -> list[str]:
        cut = self.chance.randint(0, len(text))
        return [piece for piece in (text[:cut], text[cut:]) if piece]

    def _part_opens(self, part: int, tag: int) -> Iterator[Frame]:
        if self.shape == "vercel":
            yield "", {"type": "text-start", "id": f"t{tag}-{part}"}
        elif self.shape == "legacy":
            yield "", {"type": "part_start_event", "part_index": part, "part_content": "TextPart()"}
        else:
            yield "thread.message.created", {"id": f"msg-{part}", "object": "thread.message"}

    def _text(self, piece: str, part: int, tag: int) -> Frame:
        if self.shape == "vercel":
            return "", {"type": "text-delta", "id": f"t{tag}-{part}", "delta": piece}
        if self.shape == "legacy":
            return "", {"type": "text_delta", "text": piece}
        content = [{"index": 0, "type": "text", "text": {"value": piece}}]
        return "thread.message.delta", {"id": f"msg-{part}", "delta": {"content": content}}

    def _tool(self, step: Step) -> Iterator[Frame]:
        call = step.kind == "call"
        if self.shape == "vercel" and call:
            yield "", {"type": "tool-input-start", "toolCallId": step.id, "toolName": "look"}
            yield "", {"type": "tool-input-available", "toolCallId": step.id, "toolName": "look", "input": {"q": 1}}
        elif self.shape == "vercel":
            yield "", {"type": "tool-output-available", "toolCallId": step.id, "output": step.text}
        elif self.shape == "legacy" and call:
            yield (
                "",
                {"type": "streaming_tool_request", "tool_id": step.id, "tool_name": "look", "tool_args": '{"q":1}'},
            )
        elif self.shape == "legacy":
            yield "", {"type": "streaming_tool_response", "tool_id": step.id, "tool_output": step.text}
        elif not call:
            yield "thread.run.step.completed", self._step(step.id, over=True)

    def bytes(self, *, from_start: bool) -> Iterator[bytes]:
        """The same as a body, cut into arbitrary pieces; empty bytes where it has to wait."""
        for one in self.frames(from_start=from_start):
            if one is None:
                yield b""
                continue
            raw = _frame(*one)
            cut = self.chance.randint(0, len(raw))
            yield from (piece for piece in (raw[:cut], raw[cut:]) if piece)


def _call(call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "look", "arguments": '{"q": 1}'}}


def _frame(name: str, body: Any) -> bytes:
    data = body if isinstance(body, str) else json.dumps(body)
    return f"{f'event: {name}' + chr(10) if name else ''}data: {data}\n\n".encode("utf-8", "surrogatepass")


async def paced(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """For an HTTP server: a body with little pauses."""
    for piece in pieces:
        if piece:
            yield piece
        await asyncio.sleep(0.002)
