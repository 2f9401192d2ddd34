"""`/_control/<method>`: the scripted upstream's own methods as JSON calls, for tests and benchmarks of several processes.

The body is the keyword arguments, the answer `{"result": …}`, or 400 `{"error": …}`. Loopback only and without any
authentication: it is a test instrument.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.support.upstream_faults import Fault

if TYPE_CHECKING:
    from tests.support.upstream import ScriptedUpstream

PREFIX = "/_control/"
_LEAVE_S = 0.05  # an outage begins when its own answer has left

Arguments = dict[str, Any]


def _fault(up: ScriptedUpstream, fault: Arguments, run_id: str | None = None, times: int | None = 1) -> None:
    up.fault(Fault(**fault), run_id, times=times)


async def _synth(up: ScriptedUpstream, wait: bool = False, **arguments: Any) -> None:
    task = up.synth(**arguments)
    if wait:
        await asyncio.shield(task)


def _outage(up: ScriptedUpstream, seconds: float, cut: bool = True) -> None:
    up.outage(seconds, cut=cut, begin_s=_LEAVE_S)


def _tokens(up: ScriptedUpstream, tokens: dict[str, list[str] | None]) -> None:
    up.tokens = {token: None if owned is None else set(owned) for token, owned in tokens.items()}


_OWN: dict[str, Callable[..., Any]] = {
    "fault": _fault,
    "synth": _synth,
    "outage": _outage,
    "set_tokens": _tokens,
    "requests": lambda up: up.requests,
    "fired": lambda up: up.fired,
    "created": lambda up: up.created,
}
_SAME = frozenset(
    [
        "add_run",
        "append",
        "finish",
        "set_status",
        "prune",
        "remove_run",
        "truth",
        "play",
        "play_recording",
        "played",
        "chaos",
        "heal",
        "pending",
        "cut_now",
        "following",
        "max_following",
        "drains",
        "counters",
    ]
)


async def answer(up: ScriptedUpstream, request: web.Request) -> web.Response:
    """One control call."""
    name = request.path.removeprefix(PREFIX)
    try:
        arguments = await request.json() if request.can_read_body else {}
        result = await _call(up, name, arguments)
    except (TypeError, ValueError, KeyError) as error:
        return web.json_response({"error": f"{name}: {error!r}"}, status=400)
    return web.json_response({"result": result}, dumps=_dumps)


async def _call(up: ScriptedUpstream, name: str, arguments: Arguments) -> Any:
    if name in _OWN:
        result = _OWN[name](up, **arguments)
    elif name in _SAME:
        result = getattr(up, name)(**arguments)
    else:
        raise KeyError(name)
    return await result if asyncio.iscoroutine(result) else result


def _dumps(value: Any) -> str:
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"no JSON for {value!r}")
