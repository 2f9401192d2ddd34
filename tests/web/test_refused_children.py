"""A sub-run that may not be read is refused once, however often its parent names it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from relay.core.errors import Forbidden
from relay.core.ids import RunKey
from relay.core.vector import Tally, Vector
from relay.web import roster
from relay.web.admit import NOBODY
from relay.web.gathering import Desk, Gathering, Wish
from relay.web.roster import Children


class _Desk:
    most = 10

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def find(self, wish: Wish, principal: object) -> RunKey:
        self.asked.append(wish.run_id)
        raise Forbidden("not yours")

    def names(self, wish: Wish) -> list[RunKey]:
        return [RunKey("main", wish.run_id)]


class _Multiplex:
    def __init__(self) -> None:
        self.tally = Tally(Vector())
        self.said = 0

    def __len__(self) -> int:
        return 0

    def __contains__(self, run_id: str) -> bool:
        return False

    def refuse(self, *_: Any, **__: Any) -> None:
        self.said += 1


class _Looks:
    looked = 0

    async def children(self, key: RunKey) -> list[str]:
        self.looked += 1
        return ["child"]


async def test_a_refused_sub_run_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "LOOK_S", 0.001)
    desk, multiplex, looks = _Desk(), _Multiplex(), _Looks()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        gathering = Gathering(cast(Desk, desk), cast(Any, multiplex), NOBODY, tasks, Vector())
        gathering.found.add(RunKey("main", "parent"))
        monkeypatch.setattr(Gathering, "reads", lambda *_: looks.looked < 20)  # the parent goes on for a while
        await Children(cast(Any, looks), gathering, Wish("")).follow()
    assert looks.looked >= 20
    assert (desk.asked, multiplex.said) == (["child"], 1)
