"""Requests as nearly all are: a GET whose head has nothing unusual in it. Such a head is read here, at a fifth of the cost.

What counts as plain is much less than HTTP allows; whatever does not fit is nobody's fault yet, and is left to aiohttp's
parser, which alone judges what is wrong and what was meant. So a plain request must be the very one aiohttp
would have made of these bytes (tests/web/test_plain.py holds that for heads of every shape).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from aiohttp import HttpVersion, HttpVersion10, HttpVersion11, hdrs, web
from multidict import CIMultiDict, CIMultiDictProxy, MultiDict, MultiDictProxy
from yarl import URL

_LONGEST: Final = 4096
"""Longer heads are left to aiohttp, so that the names remembered here stay few kilobytes."""
_MOST: Final = 100
"""Fields; aiohttp takes a few more."""
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")
_UNUSUAL: Final = re.compile(
    r"content-.*|transfer-.*|upgrade|expect|proxy-connection|sec-websocket-key1|etag|max-forwards|server", re.IGNORECASE
)
"""Fields that announce a body, another protocol or a talk before the answer, or that only aiohttp knows how to refuse."""
_HOST, _AGENT, _CONNECTION = 2, 4, 8
_ONCE: Final = {"host": _HOST, "user-agent": _AGENT, "connection": _CONNECTION}
"""Twice, they are unusual."""
_KEEPS: Final[dict[str, bool]] = {"keep-alive": True, "close": False}
_NOTHING: Final = MultiDictProxy[str](MultiDict())


@lru_cache(maxsize=256)
def _kind(name: str) -> int:
    """0 for what is no plain field's name, 1 for most, a bit for those that may come but once."""
    if _NAME.fullmatch(name) is None or _UNUSUAL.fullmatch(name) is not None:
        return 0
    return _ONCE.get(name.lower(), 1)


class PlainRequest(web.Request):
    """What a door and an endpoint want to know of a plain request; the rest of aiohttp's is made when it is asked for."""

    __slots__ = ("_parsed", "_state", "headers", "keep_alive", "match_info", "query", "raw_path", "version")
    ATTRS = web.Request.ATTRS | frozenset(__slots__)

    method = hdrs.METH_GET
    body_exists = False

    headers: CIMultiDictProxy[str]
    keep_alive: bool
    match_info: dict[str, str]  # type: ignore[assignment]
    query: MultiDictProxy[str]
    raw_path: str
    version: HttpVersion

    def __init__(
        self, target: str, version: HttpVersion, headers: CIMultiDictProxy[str], *,
        keep_alive: bool, ids: dict[str, str], parsed: Callable[[], web.Request | None],
    ) -> None:  # fmt: skip
        self.headers = headers
        self.keep_alive = keep_alive
        self.match_info = ids
        self.raw_path = target
        self.version = version
        path, mark, query = target.partition("?")
        self.query = URL.build(path=path, query_string=query, encoded=True).query if mark else _NOTHING
        self._parsed = parsed
        self._state = {}

    def __getitem__(self, key: Any) -> Any:
        return self._state[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._state[key] = value

    def __getattr__(self, name: str) -> Any:
        """Only called for what is not there yet."""
        if name.startswith("__") or "_message" in self.__dict__:
            raise AttributeError(name)
        made = self._parsed()
        assert made is not None, "what is plain aiohttp can read"
        for theirs, value in made.__dict__.items():
            self.__dict__.setdefault(theirs, value)
        return getattr(self, name)


def read(text: str, line: re.Match[str], parsed: Callable[[], web.Request | None]) -> PlainRequest | None:
    """The request of a head whose first line was matched (its first group is the target); None if it is not plain.

    `parsed`: the same by aiohttp's parser.
    """
    target = line[1]
    if len(text) > _LONGEST or "#" in target or not text.isascii():
        return None
    said = text[line.end() : -4].split("\r\n")
    if len(said) > _MOST:
        return None
    seen, fields = 1, []
    for field in said:
        name, colon, value = field.partition(":")
        kind = _kind(name)
        if not (kind and colon and value.isprintable()) or seen & kind > 1:
            return None
        seen |= kind
        fields.append((name, value.strip(" ")))
    http_1_1 = text[line.end() - 3] == "1"
    headers = CIMultiDict(fields)
    keep_alive = _KEEPS.get(headers[hdrs.CONNECTION].lower()) if seen & _CONNECTION else http_1_1
    if keep_alive is None or not (seen & _HOST or not http_1_1):
        return None
    version = HttpVersion11 if http_1_1 else HttpVersion10
    return PlainRequest(
        target, version, CIMultiDictProxy(headers), keep_alive=keep_alive, ids=line.groupdict(), parsed=parsed
    )
