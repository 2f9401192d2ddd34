"""A relay to test: in this process (fast, its insides can be looked at), or as a real process (to be really killed)."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from relay.app import App
from relay.core.options import Secret
from relay.ingest.options import UpstreamOptions
from relay.settings import Settings
from tests.support.ports import free_port

FAST: dict[str, dict[str, Any]] = {
    "server": {"port": 0, "admin_port": 0},
    "drain": {"window_s": 0.3, "close_s": 2.0},
    "ingest": {
        "linger_s": 0.3,
        "stall_s": 2.0,
        "connect_timeout_s": 2.0,
        "idle_check_s": 1.0,
        "backoff_base_s": 0.02,
        "backoff_cap_s": 0.3,
        "unwanted_s": 5.0,
    },
    "delivery": {"retry_min_ms": 1000, "retry_max_ms": 1100},
    "fanout": {"check_s": 0.3},
}
"""Patience cut down to what a test can wait for; everything else is the product's default."""


def settings_for(
    base_url: str, *, token: str | None = "upstream-secret", discover: bool = False, **sections: dict[str, Any]
) -> Settings:
    upstream = UpstreamOptions("main", "arkloop", base_url, Secret(token) if token else None, discover)
    settings = Settings(upstreams=(upstream,))
    for name in {*FAST, *sections}:
        values = {**FAST.get(name, {}), **sections.get(name, {})}
        settings = replace(settings, **{name: replace(getattr(settings, name), **values)})
    return settings


class RunningRelay:
    """A relay in this process, and a client for it."""

    def __init__(self, app: App, session: aiohttp.ClientSession) -> None:
        self.app = app
        self.session = session
        self.url = app.address
        self.admin_url = app.admin_address

    def events(self, run_id: str, query: str = "") -> str:
        return f"{self.url}/v1/runs/{run_id}/events{'?' + query if query else ''}"


@asynccontextmanager
async def running(
    base_url: str, redis_url: str, *, prefix: str | None = None, discover: bool = False, **sections: dict[str, Any]
) -> AsyncIterator[RunningRelay]:
    """A relay reading `base_url`, with a Redis prefix of its own; drained at the end."""
    prefix = prefix or f"t{secrets.token_hex(4)}"
    sections = {**sections, "redis": {"prefix": prefix, **sections.get("redis", {})}}
    settings = settings_for(base_url, discover=discover, **sections)
    app = App(settings, redis_url, "a-test-secret-of-at-least-32-characters", lambda: True)
    stop, started = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(app.run(stop, lambda _: started.set()))
        try:
            async with asyncio.timeout(60):
                await started.wait()
            async with aiohttp.ClientSession() as session:
                yield RunningRelay(app, session)
        finally:
            stop.set()


class RelayProcess:
    """`relay serve` as a real process; the same ports and data each time it is started."""

    def __init__(
        self,
        base_url: str,
        directory: Path,
        *,
        redis_url: str | None = None,
        environment: Mapping[str, str] | None = None,
        discover: bool = False,
        token: str = "upstream-secret",
        upstream: Mapping[str, Any] | None = None,
        **sections: dict[str, Any],
    ) -> None:
        """`upstream`: what its row says instead of an Arkloop's."""
        directory.mkdir(parents=True, exist_ok=True)
        self.port, self.admin_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin_url = f"http://127.0.0.1:{self.admin_port}"
        self.log = directory / "relay.log"
        upstream = upstream or {"name": "main", "provider": "arkloop", "base_url": base_url, "token": token}
        self._environment = {
            **os.environ,
            **(environment or {}),
            "RELAY_SERVER__PORT": str(self.port),
            "RELAY_SERVER__ADMIN_PORT": str(self.admin_port),
            "RELAY_EMBEDDED__DATA_DIR": str(directory / "data"),
            "RELAY_UPSTREAMS": msgspec.json.encode([{**upstream, "discover": discover}]).decode(),
        }
        if redis_url is not None:
            self._environment["RELAY_REDIS__URL"] = redis_url
        for name in {"ingest", "fanout", "drain", *sections}:
            fast = FAST.get(name, {}) if name != "server" else {}  # the ports are ours
            for field, value in {**fast, **sections.get(name, {})}.items():
                self._environment[f"RELAY_{name}__{field}".upper()] = str(value)
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, timeout_s: float = 60.0) -> None:
        """Returns when it is ready."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "relay", "serve", env=self._environment, stdout=log, stderr=log
            )
        async with asyncio.timeout(timeout_s), aiohttp.ClientSession() as session:
            while not await self._ready(session):
                if self.process.returncode is not None:
                    raise RuntimeError(f"relay exited with {self.process.returncode}:\n{self.log.read_text()[-2000:]}")
                await asyncio.sleep(0.05)

    async def _ready(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self.admin_url}/readyz") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def signal(self, number: signal.Signals) -> int:
        """Send a signal that ends it; its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        async with asyncio.timeout(60):
            return await self.process.wait()

    async def kill(self) -> None:
        await self.signal(signal.SIGKILL)

    async def stop(self) -> int:
        return await self.signal(signal.SIGTERM)

    async def __aenter__(self) -> RelayProcess:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process is not None and self.process.returncode is None:
            await self.kill()
