"""The dashboard's own files, served as they are under a policy that allows nothing from elsewhere."""

from __future__ import annotations

from importlib.resources import files

from aiohttp import web

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
_FILES = {
    "index.html": "text/html",
    "app.js": "text/javascript",
    "app.css": "text/css",
}


class Dashboard:
    def __init__(self) -> None:
        folder = files(__name__)
        self._bodies = {name: folder.joinpath(name).read_bytes() for name in _FILES}

    async def index(self, _: web.Request) -> web.Response:
        return self._answer("index.html")

    async def script(self, _: web.Request) -> web.Response:
        return self._answer("app.js")

    async def style(self, _: web.Request) -> web.Response:
        return self._answer("app.css")

    def _answer(self, name: str) -> web.Response:
        return web.Response(
            body=self._bodies[name],
            content_type=_FILES[name],
            charset="utf-8",
            headers={"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"},
        )
