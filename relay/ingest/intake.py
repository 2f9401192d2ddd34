"""The stream that came as the answer to creating a run: the only one there will ever be, so it is read whatever happens.

Blocking it could cancel the run, and it cannot be asked for again. So while Redis is away it is read on, into memory up
to a bound; beyond that it is given up, and the run is looked at instead (`own_pump.py`). Even if nobody wants what it
brings it is read, and let fall.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

import aiohttp

from relay import telemetry
from relay.core.errors import RelayError, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from relay.core.sse import Decoder, Message
from relay.ingest.own_upstream import OwnUpstream
from relay.ingest.upstream import json_of
from relay.providers.contract import Ask

_HELD: Final = 8 * 1_048_576
_SILENT_S: Final = 600.0
"""How long it may say nothing, as its SDKs allow: it sends no pings, and once given up it is gone. Looks go on."""
_FIRST: Final = 10
"""Within so many messages a stream must have told which run it is."""


_OVERHEAD: Final = 256
"""About what a held message costs beside its data."""


class Intake:
    def __init__(self, upstream: OwnUpstream, ask: Ask, *, event_bytes: int) -> None:
        self._upstream = upstream
        self._ask = ask
        self._decoder = Decoder(max_bytes=event_bytes)
        self._held: deque[Message] = deque()
        self._size = 0
        self._looked = 0
        self._over = False
        self._some = asyncio.Event()
        self._created: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        """Runs `read`; whoever starts it puts it here."""
        self.begun = asyncio.Event()
        """Set once it is known whether there is a stream, and also at its end."""
        self.streams = False
        self.lost = False
        """More came than could be kept: what is missing must be looked up."""
        self._dropped = False

    async def created(self) -> dict[str, Any]:
        """What the upstream says of the run it made. Raises its refusal."""
        return await asyncio.shield(self._created)

    async def read(self) -> None:
        """Until the stream ends, however that is."""
        try:
            async with self._upstream.stream(self._ask, json_too=True, stall_s=_SILENT_S) as response:
                if response.content_type == "text/event-stream":
                    self.streams = True
                    self.begun.set()
                    await self._read(response)
                else:
                    self._tell(self._upstream.provider.created(await json_of(response)))
        except RelayError as error:
            self._fail(error)
        except TimeoutError:
            self._fail(UpstreamTimeout("the upstream did not answer in time"))
        except (aiohttp.ClientError, OSError):
            self._fail(UpstreamUnavailable("the upstream broke the connection while it made the run"))
        finally:
            self._fail(UpstreamError("the upstream's stream did not say which run it is"))
            self._over = True
            self._some.set()
            self.begun.set()

    async def batches(self, patience_s: Callable[[], float | None]) -> AsyncGenerator[list[Message]]:
        """What came, in order; an empty list each time patience ran out; ends with the stream."""
        while True:
            if not self._held and not self._over:
                try:
                    async with asyncio.timeout(patience_s()):
                        await self._some.wait()
                except TimeoutError:
                    yield []
                    continue
            batch = list(self._held)
            self._held.clear()
            self._size = 0
            if not self._over:
                self._some.clear()
            if batch:
                yield batch
            elif self._over:
                return

    @property
    def ahead(self) -> bool:
        """It has brought something that was not taken yet."""
        return bool(self._held)

    def drop(self) -> None:
        """Nobody here takes what it brings. To end it could end the run: it is read on, and nothing is kept."""
        self._dropped = True
        self._held.clear()
        self._size = 0

    def close(self) -> None:
        """The run is over, so nobody needs the rest."""
        if self.task is not None:
            self.task.cancel()

    # --- small ------------------------------------------------------------------------------------------------------
    async def _read(self, response: aiohttp.ClientResponse) -> None:
        streams = telemetry.UPSTREAM_CONNECTIONS.labels(self._upstream.name, "follow")
        streams.inc()
        try:
            async for chunk in response.content.iter_any():
                for message in self._decoder.feed(chunk):
                    self._take(message)
        finally:
            streams.dec()

    def _take(self, message: Message) -> None:
        self._look(message)
        if self.lost or self._dropped:
            return  # behind a hole nothing fits on
        self._held.append(message)
        self._size += len(message.data) + _OVERHEAD
        self._some.set()
        if self._size > _HELD:
            self.lost = True
            self._held.clear()
            self._size = 0
            telemetry.logger(upstream=self._upstream.name).warning("intake.given_up", bytes=_HELD)

    def _look(self, message: Message) -> None:
        if self._created.done():
            return
        self._looked += 1
        made = self._upstream.provider.created_in(message)
        if made is not None:
            self._tell(made)
        elif self._looked >= _FIRST:
            self._fail(UpstreamError("the upstream's stream does not say which run it is"))  # it may be found otherwise

    def _tell(self, made: dict[str, Any]) -> None:
        if not self._created.done():
            telemetry.UPSTREAM_REQUESTS.labels(self._upstream.name, "ok").inc()
            self._created.set_result(made)

    def _fail(self, error: RelayError) -> None:
        if not self._created.done():
            telemetry.UPSTREAM_REQUESTS.labels(self._upstream.name, type(error).code).inc()
            self._created.set_exception(error)
            self._created.exception()  # noted: nobody may be waiting any more
