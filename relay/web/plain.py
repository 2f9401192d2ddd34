"""Requests as nearly all are: a GET whose head has nothing unusual in it. Such a head is read here, at a fifth of the cost.

What counts as plain is much less than HTTP allows; whatever does not fit is nobody's fault yet, and is left to aiohttp's
parser, which alone judges what is wrong and what was meant. So a plain request must be the very one aiohttp
would have made of these bytes (tests/web/test_plain.py holds that for heads of every shape).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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
_LITERAL: Final = re.compile(r"[A-Za-z0-9_.~*,:/=&-]*")
"""A query in which every character stands for itself, or between names and values."""
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
        self, target: str, version: HttpVersion, headers: CIMultiDictProxy[str], ids: dict[str, str],
        keep_alive: bool, parsed: Callable[[], web.Request | None],
    ) -> None:  # fmt: skip
        self.headers = headers
        self.keep_alive = keep_alive
        self.match_info = ids
        self.raw_path = target
        self.version = version
        self.query = _query_of(target) if "?" in target else _NOTHING
        self._parsed = parsed
        self._state = {}

    def __getitem__(self, key: Any) -> Any:
        return self._state[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._state[key] = value

    def update(self, values: Mapping[Any, Any]) -> None:  # type: ignore[override]
        """One call for what a door notes of every request."""
        self._state.update(values)

    def _make(self) -> None:
        """All that aiohttp's request has and this one has not yet."""
        made = self._parsed()
        assert made is not None, "what is plain aiohttp can read"
        for theirs, value in made.__dict__.items():
            self.__dict__.setdefault(theirs, value)


class _Theirs:
    """What aiohttp's request keeps in an attribute of this name: made when it is asked for first, with all the others.

    A `__getattr__` would do the same with less, and make every other attribute's look-up three times as long.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, request: PlainRequest | None, _: type[PlainRequest]) -> Any:
        """Only called while it is not there: once it is, the request's own comes first."""
        if request is None:
            return self
        request._make()
        if self._name not in request.__dict__:
            raise AttributeError(self._name)
        return request.__dict__[self._name]


for _name in web.Request.ATTRS.difference(PlainRequest.__slots__):
    if not hasattr(web.Request, _name):  # some begin as what their class says
        setattr(PlainRequest, _name, _Theirs(_name))


def read(text: str, line: re.Match[str], parsed: Callable[[], web.Request | None]) -> PlainRequest | None:
    """The request of a head whose first line was matched (its first group is the target); None if it is not plain.

    `parsed`: the same by aiohttp's parser.
    """
    target = line[1]
    begin = line.end()
    said = text[begin:-4].split("\r\n")
    if (
        len(text) > _LONGEST
        or len(said) > _MOST
        or "#" in target
        or not (text.isascii() and "".join(said).isprintable())
    ):
        return None
    seen, fields = 1, []
    for field in said:
        name, colon, value = field.partition(":")
        kind = _kind(name)
        if not (kind and colon) or seen & kind > 1:
            return None
        seen |= kind
        fields.append((name, value.strip(" ")))
    http_1_1 = text[begin - 3] == "1"
    headers = CIMultiDict(fields)
    keep_alive = _KEEPS.get(headers[hdrs.CONNECTION].lower()) if seen & _CONNECTION else http_1_1
    if keep_alive is None or not (seen & _HOST or not http_1_1):
        return None
    version = HttpVersion11 if http_1_1 else HttpVersion10
    return PlainRequest(target, version, CIMultiDictProxy(headers), line.groupdict(), keep_alive, parsed)


def _query_of(target: str) -> MultiDictProxy[str]:
    path, _, query = target.partition("?")
    if _LITERAL.fullmatch(query) is None:
        return URL.build(path=path, query_string=query, encoded=True).query
    pairs = [item.partition("=") for item in query.split("&") if item]
    return MultiDictProxy(MultiDict([(name, value) for name, _, value in pairs]))
