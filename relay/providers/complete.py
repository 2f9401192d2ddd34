"""What a provider still lacks of what it promises, in words for whoever writes one."""

from __future__ import annotations

import inspect
from typing import Any

from relay.core.ids import UPSTREAM_ALLOWED, is_upstream_name
from relay.providers.contract import Provider
from relay.providers.own import OwnSeqProvider


def missing(made: object) -> list[str]:
    """Nothing, if it has every attribute and every call of its protocol, with the parameters they are called with."""
    durable = getattr(made, "durable_seq", None)
    if not isinstance(durable, bool):
        return ["durable_seq: True if the system numbers its events durably (our seq is its seq), else False"]
    promised: Any = Provider if durable else OwnSeqProvider
    lacks = [f"{name}: {kind}" for name, kind in promised.__annotations__.items() if not hasattr(made, name)]
    for name, call in inspect.getmembers(promised, inspect.isfunction):
        if not name.startswith("_"):
            lacks += _lacks_of(name, call, getattr(made, name, None))
    named = getattr(made, "name", None)
    if isinstance(named, str) and not is_upstream_name(named):
        lacks.append(f"name: {UPSTREAM_ALLOWED}")
    return lacks


def _lacks_of(name: str, promised: Any, ours: Any) -> list[str]:
    wanted = list(inspect.signature(promised).parameters)[1:]
    if not callable(ours):
        return [f"{name}({', '.join(wanted)})"]
    has = list(inspect.signature(ours).parameters)
    return [] if has == wanted else [f"{name}({', '.join(wanted)}), not ({', '.join(has)})"]
