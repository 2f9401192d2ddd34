"""One configured upstream: its provider, its credentials, and the HTTP client that asks it.

The only place where credentials meet a request. Redirects are not followed (they would carry the token elsewhere),
bodies are bounded, and every aiohttp exception is translated here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol, TypeVar

import aiohttp
from aiohttp import hdrs
from yarl import URL

from relay import telemetry
from relay.core.errors import RelayError, Unauthenticated, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from relay.core.events import decode, encode
from relay.ingest.options import IngestOptions, UpstreamOptions
from relay.providers.contract import Ask, Provider

_ANSWER_BYTES: Final = 16 * 1_048_576
"""Largest JSON answer of a runs API we take: a list of 200 runs is far below it."""

T = TypeVar("T")


class _System(Protocol):
    """What every provider can say, whichever kind of system it is for."""

    def authorization(self, token: str) -> dict[str, str]: ...

    def error(self, status: int, headers: Mapping[str, str], answer: object) -> RelayError: ...


class Client:
    """One configured upstream as far as requests go."""

    def __init__(
        self, options: UpstreamOptions, system: _System, session: aiohttp.ClientSession, ingest: IngestOptions
    ) -> None:
        self.name = options.name
        self._system = system
        self._base = options.base_url.rstrip("/")
        self._session = session
        self._credentials = _credentials(options, system)
        self._other = _other_way(options, self._credentials)
        self._trying = asyncio.Lock()
        self._token = options.token.value if options.token else ""
        self._connect_s = ingest.connect_timeout_s
        self._answer_s = ingest.answer_s
        self._stall_s = ingest.stall_s
        self._ahead_s: float | None = None
        """The upstream's clock against our monotonic one."""

    def now_s(self) -> float:
        """The unix time as the upstream last told it (`Date`, a second coarse); by our own clock before it ever did."""
        return time.time() if self._ahead_s is None else time.monotonic() + self._ahead_s

    def _note_time(self, response: aiohttp.ClientResponse) -> None:
        with suppress(ValueError):
            said = parsedate_to_datetime(response.headers.get(hdrs.DATE, ""))
            self._ahead_s = said.timestamp() - time.monotonic()

    async def ask(self, ask: Ask) -> Any:
        """The JSON answer of a short request; any refusal, and anything that is no JSON, as a RelayError."""
        return (await self.answer(ask))[0]

    async def read(self, reader: Callable[[Any], T], ask: Ask) -> T:
        """The answer as its reader understands it; one that it does not is counted, and raised as an UpstreamError."""
        answer = await self.ask(ask)
        try:
            return reader(answer)
        except UpstreamError as error:
            telemetry.UPSTREAM_ODD.labels(self.name, error.code).inc()
            raise

    async def answer(self, ask: Ask) -> tuple[Any, Mapping[str, str]]:
        """The same, with the answer's headers."""
        try:
            async with asyncio.timeout(self._answer_s), await self._sent(ask) as response:
                self._note_time(response)
                answer = await json_of(response)
                if response.status >= 300:
                    raise self._refusal(response, answer)
                if answer is None:
                    raise UpstreamError("the upstream's answer is not JSON")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            telemetry.UPSTREAM_REQUESTS.labels(self.name, "unreachable").inc()
            raise _translated(error) from error
        except RelayError as error:
            telemetry.UPSTREAM_REQUESTS.labels(
                self.name, type(error).code
            ).inc()  # the code may be the upstream's own words
            raise
        telemetry.UPSTREAM_REQUESTS.labels(self.name, "ok").inc()
        return answer, response.headers

    @asynccontextmanager
    async def stream(
        self, ask: Ask, *, json_too: bool = False, stall_s: float | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An open event stream (status 200 and the right content type are made sure of).

        Silence for `stall_s` (None: as configured) ends it. With `json_too` (it is the answer to making something, and may
        take its time) an answer in one piece is taken as well, and any status of success: whoever asks must look.
        Raises RelayError for a refusal; what happens while the body is read is the reader's to translate.
        """
        try:
            async with asyncio.timeout(self._answer_s if json_too else self._connect_s):
                response = await self._sent(ask, stall_s)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _translated(error) from error
        self._note_time(response)
        try:
            if response.status != 200 and not (json_too and response.status in (201, 202)):
                raise self._refusal(response, await json_of(response))
            if response.content_type != "text/event-stream" and not json_too:
                raise UpstreamError("the upstream's answer is not an event stream", code="upstream.not_a_stream")
            yield response
        finally:
            response.close()  # never back into the pool: a half-read stream is of no use to anyone

    @asynccontextmanager
    async def passage(
        self, method: str, path: str, query: str, headers: list[tuple[str, str]], body: AsyncIterator[bytes] | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Somebody else's request, as it is: none of our credentials, no redirect followed, the body not decoded.

        What goes wrong is raised as a RelayError.
        """
        try:
            async with asyncio.timeout(self._connect_s * 6):
                response = await self._session.request(
                    method,
                    URL(f"{self._base}{path}{'?' + query if query else ''}", encoded=True),
                    headers=headers,
                    data=body,
                    allow_redirects=False,
                    skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                    auto_decompress=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s, sock_read=self._stall_s),
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _translated(error) from error
        try:
            yield response
        finally:
            response.close()

    async def ask_as(self, ask: Ask, credentials: dict[str, str]) -> Any:
        """The JSON answer of a request with somebody else's credentials; None for an answer without a body."""
        headers = [*ask.headers.items(), *credentials.items()]
        if ask.body is not None:
            headers.append(("Content-Type", "application/json"))
        query = URL.build(query=ask.query).raw_query_string
        async with self.passage(
            ask.method, ask.path, query, headers, _whole(ask.body) if ask.body else None
        ) as response:
            try:
                async with asyncio.timeout(self._answer_s):
                    answer = await json_of(response)
            except (aiohttp.ClientError, TimeoutError) as error:
                raise _translated(error) from error
            if response.status == 401:
                raise Unauthenticated("the upstream does not know these credentials", code="auth.invalid_token")
            if response.status >= 300:
                raise self._refusal(response, answer)
            return answer

    async def pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The body of a passage as it comes; a break in it is a ConnectionError."""
        try:
            async for piece in response.content.iter_any():
                yield piece
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ConnectionResetError("the upstream broke off") from error

    def _refusal(self, response: aiohttp.ClientResponse, answer: object) -> RelayError:
        """What the upstream's refusal means; whatever it says, it must not tell our callers our credentials."""
        error = self._system.error(response.status, response.headers, answer)
        # The whole answer is judged, not what was taken from it: a part of a token is too much as well.
        if self._token and encode(self._token)[1:-1] in encode(answer):
            error.message = "the upstream refused the request"
            error.code = type(error).code
            error.details = {"upstream_status": response.status} if error.details else None
        return error

    async def _sent(self, ask: Ask, stall_s: float | None = None) -> aiohttp.ClientResponse:
        """The response to a request, whatever it is. Refused credentials are tried once in the other way there may be."""
        used = self._credentials
        response = await self._request(ask, stall_s, used)
        if response.status < 400:
            self._other = None  # they are good as they are
        if response.status != 401:
            return response
        async with self._trying:
            other, self._other = self._other, None
            if other is not None:
                response.close()
                response = await self._request(ask, stall_s, other)
                if response.status != 401:
                    self._credentials = other
                    telemetry.logger(upstream=self.name).info("upstream.authorization", written="bearer")
                return response
        if used is self._credentials:
            return response
        response.close()  # another request has found out meanwhile how they are wanted
        return await self._request(ask, stall_s, self._credentials)

    async def _request(self, ask: Ask, stall_s: float | None, credentials: dict[str, str]) -> aiohttp.ClientResponse:
        headers = {**ask.headers, **credentials, "Accept-Encoding": "identity"}
        if ask.body is not None:
            headers["Content-Type"] = "application/json"
        return await self._session.request(
            ask.method,
            URL(self._base + ask.path, encoded=True),
            params=ask.query,
            headers=headers,
            data=ask.body,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s, sock_read=stall_s or self._stall_s),
        )


class Upstream(Client):
    """A system that numbers its events durably."""

    def __init__(
        self, options: UpstreamOptions, provider: Provider, session: aiohttp.ClientSession, ingest: IngestOptions
    ) -> None:
        super().__init__(options, provider, session, ingest)
        self.provider = provider


def _credentials(options: UpstreamOptions, system: _System) -> dict[str, str]:
    headers = {"x-team-id": options.team_id} if options.team_id else {}
    if options.token is None:
        return headers
    token = options.token.value
    if options.authorization == "auto":
        return headers | system.authorization(token)
    return headers | {"Authorization": token if options.authorization == "raw" else f"Bearer {token}"}


def _other_way(options: UpstreamOptions, credentials: dict[str, str]) -> dict[str, str] | None:
    """The token after `Bearer `, where a system's own SDK sends it as it is: whether that is read too is not documented."""
    if options.token is None or options.authorization != "auto":
        return None
    token = options.token.value
    return {**credentials, "Authorization": f"Bearer {token}"} if credentials.get("Authorization") == token else None


async def json_of(response: aiohttp.ClientResponse) -> Any:
    """The parsed body; None if it is no JSON or too large. Never raises for what a body holds."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _ANSWER_BYTES:
            return None
    try:
        return decode(bytes(body))
    except ValueError:
        return None


def _translated(error: BaseException) -> RelayError:
    if isinstance(error, TimeoutError):
        return UpstreamTimeout("the upstream did not answer in time")
    return UpstreamUnavailable("the upstream cannot be reached", retry_after_s=2.0)


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    yield body
