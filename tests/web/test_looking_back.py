"""How far back a face looks for a run's last question: bounded in events and in bytes, whatever an upstream wrote."""

from __future__ import annotations

from typing import Any, cast

import pytest

from relay.core.events import Event, encode
from relay.core.ids import RunKey
from relay.web.faces import ground as ground_module
from relay.web.faces.ground import Ground

KEY = RunKey("main", "r")


class LongLog:
    def __init__(self, kinds: dict[int, str], *, count: int, size: int) -> None:
        self.kinds, self.count, self.size = kinds, count, size
        self.read = 0
        self.most = 0

    async def tail(self, key: RunKey, most: int, *, before: int | None = None) -> list[Event]:
        last = self.count if before is None else before - 1
        found = [self._event(seq) for seq in range(max(1, last - most + 1), last + 1)]
        self.read += len(found)
        self.most = max(self.most, sum(len(event.json) for event in found))
        return found

    def _event(self, seq: int) -> Event:
        kind = self.kinds.get(seq, "message.delta")
        return Event(seq, kind, encode({"seq": seq, "type": kind, "data": {"content": "x" * self.size}}))


async def last(log: LongLog) -> int | None:
    ground = object.__new__(Ground)
    object.__setattr__(ground, "log", cast(Any, log))
    said = await ground.last(KEY, lambda event: event.type == "run.waiting_for_input")
    return said.seq if said is not None else None


@pytest.mark.parametrize("seq", [20_000, 19_999, 19_990, 19_000, 12_000])
async def test_what_is_there_is_found(seq: int) -> None:
    assert await last(LongLog({seq: "run.waiting_for_input", 5: "run.waiting_for_input"}, count=20_000, size=50)) == seq


async def test_not_for_ever() -> None:
    log = LongLog({5: "run.waiting_for_input"}, count=20_000, size=50)
    assert await last(log) is None
    assert 8192 <= log.read < 8192 + 500


async def test_the_last_one_is_found_at_the_first_look() -> None:
    log = LongLog({20_000: "run.waiting_for_input"}, count=20_000, size=50)
    await last(log)
    assert log.read <= 8


async def test_megabytes_are_not_read_by_the_thousand() -> None:
    size = 2 * 1_048_576
    log = LongLog({1: "run.waiting_for_input"}, count=1000, size=size)
    assert await last(log) is None
    assert log.read * size <= ground_module._TAIL_BYTES + 4 * size
    assert log.most <= 8.1 * size


async def test_a_short_log_is_read_once() -> None:
    log = LongLog({}, count=20, size=50)
    assert await last(log) is None
    assert log.read == 20
