"""A page of a list between two cursors, as the OpenAI shape pages."""

from __future__ import annotations

from typing import Any

from relay.core.errors import NotFound

Items = list[dict[str, Any]]


def page(items: Items, after: str | None, before: str | None, limit: int, *, name: str) -> tuple[Items, bool]:
    """The items behind `after` and before `before` (ids, in field `name`), and whether there are more of them."""
    ids = [item[name] for item in items]
    for given in (after, before):
        if given and given not in ids:
            raise NotFound("this cursor is nothing of this list")
    rest = items[ids.index(after) + 1 if after else 0 : ids.index(before) if before else None]
    if before and not after:
        return rest[-limit:], len(rest) > limit
    return rest[:limit], len(rest) > limit
