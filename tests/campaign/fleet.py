"""The relay processes: started, killed, frozen, drained, and started again when they end by themselves (as a pod is)."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from tests.support import clocks

HERE = Path(__file__).resolve()
SETTINGS: dict[str, object] = {
    "INGEST__LINGER_S": 1.0,
    "INGEST__STALL_S": 3.5,
    "INGEST__CONNECT_TIMEOUT_S": 2.0,
    "INGEST__IDLE_CHECK_S": 2.0,
    "INGEST__BACKOFF_BASE_S": 0.05,
    "INGEST__BACKOFF_CAP_S": 1.0,
    "INGEST__UNWANTED_S": 15.0,
    "DELIVERY__HEARTBEAT_S": 2.0,
    "DELIVERY__RETRY_MIN_MS": 1000,
    "DELIVERY__RETRY_MAX_MS": 1100,
    "DRAIN__WINDOW_S": 1.0,
    "DRAIN__CLOSE_S": 2.0,
    "REDIS__TIMEOUT_S": 2.0,
    "RETENTION__SEALED_S": 86400.0,
    "LOG__FORMAT": "json",
}
"""Upstream patience cut down; the lease (3 s), its renewal and the position check (1 s) are the product's defaults."""


class Relay:
    """One place of the fleet: the same ports each time its process is started."""

    def __init__(
        self,
        index: int,
        directory: Path,
        record: Callable[..., None],
        *,
        ports: tuple[int, int],
        redis_url: str,
        upstream_url: str,
        tree: Path,
        prefix: str,
        bug: str | None = None,
        settings: Mapping[str, object] | None = None,
        impatience: Mapping[str, object] = SETTINGS,
    ) -> None:
        self.index = index
        self.port, self.admin_port = ports
        self.log = directory / f"relay{index}.log"
        self.clock = clocks.Clock(directory / f"relay{index}.clock")
        self.process: asyncio.subprocess.Process | None = None
        self.frozen = False
        self._directory = directory
        self._record = record
        self._free = asyncio.Event()
        self._free.set()
        self._ended = asyncio.Event()
        self._closing = False
        self._command = [sys.executable, "-m", "relay", "serve"]
        if bug is not None:
            self._command = [sys.executable, str(HERE.parent / "bugs.py"), bug]
        upstream = {"name": "main", "provider": "arkloop", "base_url": upstream_url, "token": "upstream-secret"}
        own = {
            "SERVER__PORT": self.port,
            "SERVER__ADMIN_PORT": self.admin_port,
            "REDIS__URL": redis_url,
            "REDIS__PREFIX": prefix,
            "UPSTREAMS": json.dumps([upstream]),
            **impatience,
            **(settings or {}),
        }
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        self._environment = {
            **clean,
            **{f"RELAY_{name}": str(value) for name, value in own.items()},
            "PYTHONPATH": str(tree),
            **self.clock.environment,
        }

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None and self.running else 0

    async def keep(self) -> None:
        """Start it, and again whenever it has ended, until `close`."""
        while not self._closing:
            await self._free.wait()
            if self._closing:
                return
            with self.log.open("ab") as log:
                self.process = await asyncio.create_subprocess_exec(
                    *self._command, env=self._environment, cwd=self._directory, stdout=log, stderr=log
                )
            self._ended.clear()
            self._say("start", pid=self.process.pid)
            status = await self.process.wait()
            self._ended.set()
            clocks.forget(self.process.pid)
            expected = not self._free.is_set() or self._closing
            self._say("exit", pid=self.process.pid, status=status, expected=expected)
            if not expected:
                await asyncio.sleep(0.3)

    def _say(self, what: str, **more: Any) -> None:
        self._record({"t": time.monotonic(), "relay": self.index, "what": what, **more})

    async def ready(self, timeout_s: float = 30.0) -> None:
        async with asyncio.timeout(timeout_s), aiohttp.ClientSession() as session:
            while not await self._is_ready(session):
                await asyncio.sleep(0.05)

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        timeout = aiohttp.ClientTimeout(total=3)
        try:
            async with session.get(f"http://127.0.0.1:{self.admin_port}/readyz", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def take_down(self, number: signal.Signals, down_s: float, patience_s: float = 15.0) -> None:
        """End it by this signal and leave it down for a while."""
        if not self.running:
            return
        self._free.clear()
        try:
            self._signal(number)
            try:
                async with asyncio.timeout(patience_s):
                    await self._ended.wait()
            except TimeoutError:
                self._say("would_not_end")
                self._signal(signal.SIGKILL)
                await self._ended.wait()
            await asyncio.sleep(down_s)
        finally:
            self._free.set()

    async def freeze(self, seconds: float) -> None:
        process = self.process
        self.frozen = True
        self._signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.frozen = False
            if process is self.process:
                self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.running:
            self._say("signal", number=number.name, pid=self.process.pid)
            self.process.send_signal(number)

    async def close(self) -> None:
        self._closing = True
        self._free.set()
        if self.running:
            self._signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(8):
                    await self._ended.wait()
            except TimeoutError:
                self._say("would_not_end")
                self._signal(signal.SIGKILL)

    def troubles(self) -> dict[str, int]:
        """What its log says that should not be there."""
        text = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        found = re.findall(r"Traceback|pump\.crashed|Task exception was never retrieved", text)
        return {word: found.count(word) for word in set(found)}
