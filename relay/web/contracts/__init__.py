"""What this relay speaks, for machines: `/openapi.json` (calls) and `/asyncapi.json` (streams).

Written by hand in YAML beside this file, and held true by tests: every route is in it and answers as it says.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

import yaml
from aiohttp import web

from relay.core.events import encode
from relay.web.door import json_response


class Contracts:
    def __init__(self, *, at_root: bool) -> None:
        self._servers = [{"url": "/"}] if at_root else [{"url": "/native"}]
        self._bodies: dict[str, tuple[bytes, str]] = {}

    async def openapi(self, request: web.Request) -> web.Response:
        return self._answer(request, "openapi.yaml", {"servers": self._servers})

    async def asyncapi(self, request: web.Request) -> web.Response:
        return self._answer(request, "asyncapi.yaml", {})

    def _answer(self, request: web.Request, name: str, more: dict[str, Any]) -> web.Response:
        if name not in self._bodies:  # read when first asked for: most processes never are
            body = encode({**document(name), **more})
            self._bodies[name] = body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        body, tag = self._bodies[name]
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if any(one.value == tag.strip('"') for one in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return json_response(body, headers=headers)


def document(name: str) -> dict[str, Any]:
    """One of the documents, as it is written."""
    read = yaml.safe_load(files(__name__).joinpath(name).read_text("utf-8"))
    assert isinstance(read, dict)
    return read
