"""Pages that never change, for caches: what of a run is over and read is told again from a browser or a CDN.

Only pages of sealed runs. A full one stays as it is for ever; the last one may get a late event after all, so a cache
asks again soon (`If-None-Match`, 304). Shared caches keep them only where nobody is asked who he is.
"""

from __future__ import annotations

import hashlib
from typing import Final

from aiohttp import hdrs, web

from relay.delivery.page import PageBody
from relay.web.door import json_response

_VARY: Final = "Accept, Authorization, Last-Event-ID, Origin, X-Relay-Upstream"
"""What of a request's head chooses the page, or who may see it."""
_LASTS: Final = {"for_ever": "max-age=31536000, immutable", "a_while": "max-age=60"}


def cacheable(request: web.Request, page: PageBody, *, public: bool) -> web.Response:
    """The page, or 304 for who has it. `public`: no credentials are asked for."""
    lasts = _LASTS.get(page.lasts)
    if lasts is None:
        return json_response(page.json)
    tag = hashlib.sha256(page.json).hexdigest()[:32]
    headers: dict[str, str] = {
        hdrs.ETAG: f'"{tag}"',
        hdrs.CACHE_CONTROL: f"{'public' if public else 'private'}, {lasts}",
        hdrs.VARY: _VARY,
    }
    if any(one.value in (tag, "*") for one in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return json_response(page.json, headers=headers)
