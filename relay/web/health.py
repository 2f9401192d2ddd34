"""The admin listener: alive, ready, metrics; and, for an admin key, what this process is doing right now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from relay import telemetry
from relay.core.errors import RelayError
from relay.delivery.pulse import Pulse
from relay.fanout.hub import Hub
from relay.ingest.ingestor import Ingestor
from relay.store.redis import Store
from relay.web.door import json_response

_LAGGING = 20
"""How many of the viewers that are furthest behind are named."""


class Health:
    def __init__(
        self, store: Store, hub: Hub, ingestor: Ingestor, pulse: Pulse, config: Callable[[], dict[str, Any]]
    ) -> None:
        self._pulse = pulse
        self._store = store
        self._hub = hub
        self._ingestor = ingestor
        self._config = config
        self.unready: str | None = "starting"
        """Why this process is not to be sent anybody; None once everything runs, and again something when it is told to
        stop. Set by the composition root."""

    async def healthz(self, _: web.Request) -> web.Response:
        """Alive: the event loop turns. Says nothing of Redis, so that a Redis outage restarts nobody."""
        return json_response({"status": "ok"})

    async def readyz(self, _: web.Request) -> web.Response:
        """Ready: told to serve, and the log can be reached."""
        trouble = await self.trouble()
        if trouble is not None:
            return json_response({"status": "not ready", "reason": trouble}, status=503)
        return json_response({"status": "ready"})

    async def trouble(self) -> str | None:
        """Why it is not ready; None if it is."""
        if self.unready is not None:
            return self.unready
        try:
            async with asyncio.timeout(2):
                await self._store.ping()
        except (RelayError, TimeoutError):
            return "the event log cannot be reached"
        return None

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=telemetry.page(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def runs(self, _: web.Request) -> web.Response:
        """What is watched and pumped here."""
        return json_response(self.describe())

    def describe(self) -> dict[str, list[dict[str, Any]]]:
        return {
            "watched": self._hub.describe(),
            "pumped": self._ingestor.describe(),
            "lagging": [lag.shown for lag in self._pulse.lagging(_LAGGING)],
        }

    async def config(self, _: web.Request) -> web.Response:
        """The effective configuration, secrets masked."""
        return json_response(self._config())
