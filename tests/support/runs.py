"""Runs to fold: the recordings as native events, and made-up ones that say anything a run may say."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from relay.core.events import Event, encode
from relay.core.sse import Message
from relay.providers.arkloop.events import drafts
from tests.support.needs import recording


def recorded(name: str) -> list[Event]:
    """A recording as its native events."""
    return [_event(line["seq"], line["type"], line["data"]) for line in recording(name)]


def long_run(deltas: int, words: list[str]) -> list[Event]:
    """One answer of so many deltas, and its end."""
    events = [_event(1, "run.started", {"model": "m"})]
    events += [
        _event(i + 2, "message.delta", {"role": "assistant", "content_delta": words[i % len(words)]})
        for i in range(deltas)
    ]
    return [*events, _event(deltas + 2, "run.completed", {"usage": {"total_tokens": deltas}})]


def _event(seq: int, kind: str, data: Any, **envelope: Any) -> Event:
    body = {"event_id": f"e-{seq}", "run_id": "r", "seq": seq, "ts": f"2026-01-01T00:00:{seq % 60:02}Z", "type": kind}
    wire = Message(json.dumps({**body, "data": data, **envelope}).encode(), kind, str(seq))
    draft = drafts(wire, run_id="r", received_at="2026-01-01T00:00:00Z")[0]
    return Event(seq, draft.type, encode(draft.body))


PIECES = ["a", "und ", "", "\ud83d", "\ude00", "é", "漢字", '"\n', "x" * 40, "😀"]
ODD: list[Any] = [None, 1, 1.0, True, "1", "", [], {"a": 1}, 2**70, "long " * 30]


class _Making:
    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.texts = 0

    def text(self) -> Any:
        return self.chance.choice(PIECES) if self.chance.random() < 0.97 else self.chance.choice(ODD)

    def place(self) -> dict[str, Any]:
        pick, place = self.chance.random(), {"role": "assistant"}
        if pick < 0.3:
            place["channel"] = self.chance.choice(["thinking", "notes"])
        elif pick < 0.5:
            place["part"] = self.chance.choice(["0", "1", 1, True, 1.0])
        elif pick < 0.55:
            place["delegate_layer"] = "acp"
        elif pick < 0.6:
            place[self.chance.choice(["role", "part", "x", "index"])] = self.chance.choice(ODD)
        return place

    def call(self) -> dict[str, Any]:
        if self.chance.random() < 0.3:
            return {"tool_call_index": self.chance.choice([0, 1, "1", None])}
        return {"tool_call_id": self.chance.choice(["c1", "c2", "c3", ""])}

    def delta(self) -> tuple[str, Any]:
        kind = self.chance.choice(["message.delta"] * 6 + ["reasoning.delta", "nested.message.delta"])
        field = "content_delta" if kind == "message.delta" and self.chance.random() < 0.7 else "content"
        return kind, {**self.place(), field: self.text()}

    def arguments(self) -> tuple[str, Any]:
        return "tool.call.delta", {**self.call(), "arguments_delta": self.text()}

    def called(self) -> tuple[str, Any]:
        return "tool.call", {**self.call(), "tool_name": "t", "arguments": self.chance.choice(ODD)}

    def returned(self) -> tuple[str, Any]:
        kind = self.chance.choice(["tool.result", "tool.result", "tool.denied"])
        return kind, {**self.call(), "result": self.chance.choice(ODD)}

    def moved(self) -> tuple[str, Any]:
        kinds = ["run.started", "run.waiting_for_input", "run.input_requested", "run.input_provided", "run.resumed"]
        nested = {"delegate_layer": "acp"} if self.chance.random() < 0.2 else {}
        return self.chance.choice([*kinds, "run.cancel_requested"]), {"message": "?", **nested}

    def other(self) -> tuple[str, Any]:
        part = {"part": self.chance.choice(["0", "1"])}
        return self.chance.choice(
            [
                ("message.reset", {**part, "role": "assistant"}),
                ("thread.title.updated", {"title": self.text()}),
                ("todo.updated", {"todos": [1]}),
                ("llm.turn.completed", {"usage": {"input_tokens": 3}}),
                ("llm.request", {"input": "x" * 50}),
                ("terminal.stdout_delta", {"session_ref": "s", "chunk": self.text()}),
                ("made.up", self.chance.choice(ODD)),
                ("message.delta", self.chance.choice(ODD)),
            ]
        )

    def ends(self) -> tuple[str, Any]:
        kind = self.chance.choice(["run.completed", "run.failed", "run.cancelled", "run.interrupted"])
        answer = {"assistant_message": self.text()} if self.chance.random() < 0.5 else {}
        nested = {"delegate_layer": "acp"} if self.chance.random() < 0.3 else {}
        return kind, {"usage": {"total_tokens": 2**60}, **answer, **nested}


def made_up(seed: int, most: int = 24) -> list[Event]:
    """A run of up to `most` events that says anything, in any order: what is written twice comes in a row more often."""
    chance = Random(seed)
    making = _Making(chance)
    kinds: list[Callable[[], tuple[str, Any]]] = [
        making.delta, making.delta, making.arguments, making.called, making.returned, making.moved, making.other,
    ]  # fmt: skip
    events: list[Event] = []
    seq, make = 0, kinds[0]
    for _ in range(chance.randint(1, most)):
        seq += 1 if chance.random() < 0.95 else chance.randint(2, 9)
        if chance.random() < 0.4:
            make = chance.choice(kinds)
        kind, data = making.ends() if chance.random() < 0.04 else make()
        envelope = {"tool_name": "t"} if chance.random() < 0.1 else {}
        events.append(_event(seq, kind, data, **envelope))
    return events
