"""Heads that come in pieces, from many, from who is gone already, or never whole: each costs its sender more than us."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import HttpVersion11

from relay.delivery.turns import Turns
from relay.web.options import LimitOptions
from relay.web.slim import Slim


class _Door:
    known: dict[Any, Any] = {}  # noqa: RUF012


class _Transport:
    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None: ...


async def test_a_head_in_many_pieces_has_one_place_in_the_line() -> None:
    slim = Slim(cast(Any, _Door()), LimitOptions(), cast(Any, asyncio.create_task), cast(Any, None))
    slim.arrivals.spend(1_000)  # nothing is left of this turn
    one = slim.connection()
    one.connection_made(cast(Any, _Transport()))
    one.data_received(b"GET /")
    for _ in range(500):
        one.data_received(b"a")
    assert len(slim.arrivals._line) == 1
    slim.arrivals._line.popleft()()
    one.data_received(b"a")
    assert len(slim.arrivals._line) == 1, "and again when that was looked at"
    await slim.shutdown(0)


async def test_what_breaks_at_the_door_breaks_that_one_and_not_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Broken(_Door):
        def at_once(self, *request: Any) -> None:
            asked.append(request)
            raise ZeroDivisionError

    plain = (SimpleNamespace(version=HttpVersion11, keep_alive=True), None)
    monkeypatch.setattr(Slim, "request", lambda *_: plain)
    slim = Slim(cast(Any, Broken()), LimitOptions(), cast(Any, asyncio.create_task), cast(Any, None))
    slim.arrivals.spend(1_000)  # nothing is left of this turn
    for _ in range(3):
        one = slim.connection()
        one.connection_made(cast(Any, _Transport()))
        one.data_received(b"GET / HTTP/1.1\r\n\r\n")
    assert not asked
    await asyncio.sleep(0)
    assert len(asked) == 3
    slim.connections.clear()
    await slim.shutdown(0)


async def test_those_who_are_gone_take_nobodys_turn() -> None:
    turns = Turns(1, 1)
    went: list[int] = []
    turns.spend(1)
    for _ in range(50):
        turns.take(lambda: False)
    turns.take(lambda: went.append(1))
    await asyncio.sleep(0)
    assert went == [1]
