"""Which face a path belongs to, and how that face says no: also where no route, or the door itself, refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from relay.core.errors import RelayError
from relay.providers.openai import face as openai
from relay.providers.seekrflow import face as seekrflow
from relay.web import door

FACES: Final = ("arkloop", "seekrflow", "openai")

_Refusal = Callable[[RelayError], tuple[int, dict[str, Any], dict[str, str]]]
_REFUSAL: Final[dict[str, _Refusal]] = {"seekrflow": seekrflow.refusal, "openai": openai.refusal}
"""Arkloop's envelope is the native one."""


class Mounts:
    def __init__(self, root: str) -> None:
        self.root = root
        """The face at `/`; the native one is at `/native` in any case."""

    def prefixes(self, face: str) -> list[str]:
        """Where a face is mounted."""
        return [f"/{face}", ""] if face == self.root else [f"/{face}"]

    def face_of(self, path: str) -> str:
        first = path.split("/", 2)[1] if path.startswith("/") else ""
        if first in FACES:
            return first
        # The dashboard is ours, whoever has the root.
        return "native" if first in ("native", "ui") else self.root

    def refusal(self, error: RelayError, request: web.Request) -> web.Response:
        words = _REFUSAL.get(self.face_of(request.path))
        if words is None:
            return door.refusal(error, request)
        status, body, headers = words(error)
        return door.worded(error, status, body, headers)
