"""Everything of a vendor's API that is no run: passed to an upstream of that shape, with the viewer's own credentials.

Bytes both ways, nothing kept, nothing followed. Our own token is never sent, and neither is a key of ours: where callers
come in with a relay key, the upstream's credentials are theirs to send as `X-Upstream-Authorization`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import unquote

from aiohttp import hdrs, web

from relay.core.errors import NotFound, RelayError, TooLarge, Unsupported
from relay.ingest.own_upstream import OwnUpstream
from relay.ingest.upstream import Upstream
from relay.web.door import OURS, headers_of
from relay.web.faces.ground import Ground

CREDENTIALS: Final = "X-Upstream-Authorization"
BODY_BYTES: Final = 32 * 1_048_576
"""Largest request body passed on; what comes back is not bounded, for none of it is kept."""

_AMBIGUOUS: Final = ("//", "\\", "%2f", "%5c", "%2e", "%00", "%25", "%3b", "/../", "/./", "/..;", "/.;")
_OUR_QUERY: Final = ("access_token", "upstream")
_HOP: Final = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_DECODED: Final = ("gzip", "deflate", "br", "zstd")
"""What the server has undone by the time we see a body."""
_NOT_SENT: Final = _HOP | {
    "expect",
    "host",
    "content-length",
    "authorization",
    "cookie",
    "origin",
    "referer",
    "forwarded",
}
_NOT_GIVEN: Final = _HOP | {
    "content-length", "set-cookie", "server", "x-trace-id", "alt-svc", "content-security-policy", "clear-site-data",
    "service-worker-allowed", "strict-transport-security", "report-to", "nel", "x-accel-redirect", "x-sendfile",
    "x-content-type-options",
}  # fmt: skip


class Proxy:
    def __init__(self, ground: Ground, *, keys_are_ours: bool) -> None:
        self._ground = ground
        self._keys_are_ours = keys_are_ours
        """The Authorization that let a caller in is a key of this relay."""

    def of(self, face: str, mount: str) -> _Passage:
        """What one mount passes on."""
        return _Passage(self._ground, face, mount, keys_are_ours=self._keys_are_ours)


class _Passage:
    def __init__(self, ground: Ground, face: str, mount: str, *, keys_are_ours: bool) -> None:
        self._ground = ground
        self._face = face
        self._mount = mount
        self._keys_are_ours = keys_are_ours

    async def carry(self, request: web.Request) -> web.StreamResponse:
        upstream = self._ground.upstream(request, self._face)
        if upstream.provider.name != self._face:
            raise Unsupported(f"the upstream behind this face is no {self._face}: only its runs can be served")
        path = request.raw_path.partition("?")[0]
        if not path.startswith(f"{self._mount}/"):  # it was routed decoded, and would be sent as it is
            raise NotFound("there is nothing at this path", code="http.not_found")
        path = path.removeprefix(self._mount)
        _check_path(path)
        if self._face == "openai" and path.startswith("/v1/"):
            path = path.removeprefix("/v1")  # some of its clients have it in their base URL, and so has the upstream's
        body = _Body(request)
        try:
            if not body.too_large:
                with self._ground.pulse.place():  # it may stay open for as long as a stream does
                    return await self._carried(request, upstream, path, body)
        except RelayError:
            if not body.too_large:
                raise
        raise TooLarge(f"a body passed on may have {BODY_BYTES} bytes")

    async def _carried(
        self, request: web.Request, upstream: Upstream | OwnUpstream, path: str, body: _Body
    ) -> web.StreamResponse:
        query, sent = _theirs(request.rel_url.raw_query_string), self._sent(request)
        pieces = body.pieces() if request.body_exists else None
        async with upstream.passage(request.method, path, query, sent, pieces) as answer:
            response = web.StreamResponse(status=answer.status, headers=headers_of(request))
            for name, value in answer.headers.items():
                if name.lower() not in _NOT_GIVEN and not name.lower().startswith("access-control-"):
                    response.headers.add(name, value)
            response.headers["Content-Security-Policy"] = (
                "sandbox; default-src 'none'"  # a page of theirs is none of ours
            )
            if hdrs.CONTENT_LENGTH in answer.headers:
                response.content_length = int(answer.headers[hdrs.CONTENT_LENGTH])
            await response.prepare(request)
            try:
                async for piece in upstream.pieces(answer):
                    await response.write(piece)
            except BaseException:
                if request.transport is not None:
                    request.transport.abort()  # cut short: it must not look complete
                raise
            await response.write_eof()
            return response

    def _sent(self, request: web.Request) -> list[tuple[str, str]]:
        lines = request.headers.getall(hdrs.CONNECTION, ())
        named = {item.strip().lower() for line in lines for item in line.split(",")}
        sent = [
            (name, value)
            for name, value in request.headers.items()
            if (low := name.lower()) not in _NOT_SENT
            and low not in named
            and not (low == "content-encoding" and value.lower() in _DECODED)
            and not low.startswith(("x-relay-", "x-forwarded-", "x-upstream-"))
        ]
        own = credentials_of(request, keys_are_ours=self._keys_are_ours)
        return [*sent, (hdrs.AUTHORIZATION, own)] if own is not None else sent


def credentials_of(request: web.Request, *, keys_are_ours: bool) -> str | None:
    """The viewer's own credentials for an upstream. A key that let them in here is none of them."""
    given = request.headers.get(CREDENTIALS if keys_are_ours else hdrs.AUTHORIZATION)
    return None if given is not None and request[OURS](given) else given


def _theirs(query: str) -> str:
    """A query without what is meant for us, the rest as it came."""
    return "&".join(item for item in query.split("&") if unquote(item.partition("=")[0]) not in _OUR_QUERY)


def _check_path(path: str) -> None:
    """Only what says plainly what it means: a path that means another one once decoded could leave the API."""
    low = path.lower()
    if not path.startswith("/") or any(bad in low for bad in _AMBIGUOUS):
        raise NotFound("there is nothing at this path", code="http.not_found")
    if low.endswith(("/..", "/.")):
        raise NotFound("there is nothing at this path", code="http.not_found")


class _Body:
    """A request's body as it comes, up to its bound."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.too_large = (request.content_length or 0) > BODY_BYTES

    async def pieces(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self._request.content.iter_any():
            size += len(piece)
            if size > BODY_BYTES:
                self.too_large = True
                raise ConnectionResetError  # breaks the request to the upstream off
            yield piece
