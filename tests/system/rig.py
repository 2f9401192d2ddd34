"""What the system tests stand on: a relay (here or as a process), a Redis to be hurt, and the guard of the commons.

The guard (`at_rest`, `no_key_without_ttl`, `no_task_left`) runs after every test of the suite, whatever the test is about.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from relay.store.binaries import choose
from tests.support.ports import free_port
from tests.support.relay import RelayProcess, RunningRelay, running
from tests.system.watching import Kind, Truth, Viewer

AT_REST = ("relay_viewers", "relay_topics", "relay_slow_readers", "relay_upstream_connections")


def seeds(default: int) -> list[int]:
    """Seeds for a parametrised test; `RELAY_TEST_SEEDS=n` asks for more."""
    return list(range(1, int(os.environ.get("RELAY_TEST_SEEDS", default)) + 1))


# ── relay ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@asynccontextmanager
async def relay_here(base_url: str, redis_url: str, **sections: dict[str, Any]) -> AsyncIterator[RunningRelay]:
    """A relay in this process; afterwards nothing of it is left, in memory or in Redis."""
    before = asyncio.all_tasks()
    prefix = sections.setdefault("redis", {}).setdefault("prefix", f"s{random.getrandbits(40):x}")
    async with running(base_url, redis_url, prefix=prefix, **sections) as relay:
        crashes = await crashed(relay.session, relay.admin_url)
        yield relay
        await at_rest(relay.session, relay.admin_url)
        assert await crashed(relay.session, relay.admin_url) == crashes, "a pump crashed"
        await asyncio.to_thread(no_key_without_ttl, redis_url, prefix)
    await no_task_left(before)
    await asyncio.to_thread(no_key_without_ttl, redis_url, prefix)


@asynccontextmanager
async def relay_process(
    base_url: str, directory: Path, *, redis_url: str | None = None, **sections: dict[str, Any]
) -> AsyncIterator[RelayProcess]:
    """A real relay process, with an embedded server unless `redis_url`; at rest when it is left."""
    async with RelayProcess(base_url, directory, redis_url=redis_url, **sections) as relay:
        yield relay
        async with aiohttp.ClientSession() as session:
            await at_rest(session, relay.admin_url)
        await asyncio.to_thread(no_key_without_ttl, redis_url or embedded_url(directory), "relay")
        assert await relay.stop() == 0, relay.log.read_text()[-2000:]
    assert "Traceback" not in relay.log.read_text(), relay.log.read_text()


def embedded_url(directory: Path) -> str:
    """Where the embedded server of a relay process listens."""
    return "unix://" + (directory / "data" / "server.pid").read_text().split(" ", 1)[1].strip()


# ── the commons ─────────────────────────────────────────────────────────────────────────────────────────────────────
async def metrics(session: aiohttp.ClientSession, admin_url: str) -> dict[str, float]:
    """Every sample of /metrics, and the sum over labels under the bare name."""
    async with session.get(f"{admin_url}/metrics") as response:
        text = await response.text()
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
            bare = name.partition("{")[0]
            if bare != name:
                found[bare] = found.get(bare, 0.0) + float(value)
    return found


async def at_rest(session: aiohttp.ClientSession, admin_url: str, timeout_s: float = 60.0) -> None:
    """Nobody watches any more, and relay knows it: no viewer, no topic, nobody slow; upstream streams given up in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        now = await metrics(session, admin_url)
        busy = {name: now.get(name, 0.0) for name in AT_REST if now.get(name, 0.0) != 0.0}
        if not busy:
            return
        assert time.monotonic() < deadline, f"left over after everybody went: {busy}"
        await asyncio.sleep(0.1)


async def crashed(session: aiohttp.ClientSession, admin_url: str) -> float:
    """Pumps that died of what nobody thought of (in this process so far: tests share its metrics)."""
    return (await metrics(session, admin_url)).get("relay_pump_crashes_total", 0.0)


def no_key_without_ttl(redis_url: str, prefix: str) -> None:
    """Every key of ours expires by itself."""
    with plain(redis_url) as client:
        for key in client.scan_iter(match=f"{prefix}:*", count=1000):
            assert client.pttl(key) != -1, f"{key!r} never expires"


async def no_task_left(before: set[asyncio.Task[Any]], timeout_s: float = 60.0) -> None:
    """No task of relay outlives it (tasks of the upstream and of the test are known from before, or over soon)."""
    deadline = time.monotonic() + timeout_s
    while True:
        left = [task for task in asyncio.all_tasks() - before if _is_relays(task)]
        if not left:
            return
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.02)


def _is_relays(task: asyncio.Task[Any]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    return not task.done() and code is not None and "/relay/" in code.co_filename and "/demo/" not in code.co_filename


# ── Redis ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@contextmanager
def plain(url: str) -> Iterator[redis.Redis]:
    """A client of the test's own."""
    with redis.Redis.from_url(url, socket_timeout=30, retry=Retry(NoBackoff(), 0)) as client:
        yield client


async def command(url: str, *words: object) -> Any:
    """One command, without holding the event loop up."""

    def send() -> Any:
        with plain(url) as client:
            return client.execute_command(*words)  # type: ignore[no-untyped-call]

    return await asyncio.to_thread(send)


async def flush(url: str) -> None:
    await command(url, "FLUSHALL")


class RedisProcess:
    """A Redis of the test's own on one port, to be frozen, killed and started again on its append-only file."""

    def __init__(self, directory: Path, *, fsync: str = "everysec") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._directory = directory
        self._fsync = fsync
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program, _ = choose()
        words = [str(program), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        words += ["--appendonly", "yes", "--appendfsync", self._fsync, "--save", "", "--loglevel", "warning"]
        with (self._directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                with plain(self.url) as client:
                    client.ping()
                return
            except redis.RedisError:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def start_empty(self) -> None:
        """As if the disk had been lost too."""
        shutil.rmtree(self._directory / "appendonlydir")
        self.start()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(60)

    def __enter__(self) -> RedisProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(60)


# ── a crowd ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class Crowd:
    """Many viewers of one run at once."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url
        self.viewers: list[Viewer] = []
        self._seen: dict[bytes, bytes] = {}
        self._tasks: list[asyncio.Task[Viewer]] = []

    def join(
        self, kind: Kind = "sse", *, after_seq: int = 0, chance: random.Random | None = None, within_s: float = 0.0
    ) -> Viewer:
        """One more viewer, now, or at a random moment `within_s`."""
        viewer = Viewer(self.url, kind, after_seq=after_seq, chance=chance, seen=self._seen)
        self.viewers.append(viewer)
        self._tasks.append(asyncio.create_task(self._watch(viewer, chance.random() * within_s if chance else 0.0)))
        return viewer

    def join_all(self, kinds: Sequence[Kind] = ("sse", "websocket", "websockets", "ndjson")) -> list[Viewer]:
        """One viewer of each kind."""
        return [self.join(kind) for kind in kinds]

    async def _watch(self, viewer: Viewer, delay_s: float) -> Viewer:
        await asyncio.sleep(delay_s)
        return await viewer.watch(self.session)

    async def all_saw(self, fact: Callable[[Viewer], object], timeout_s: float = 60.0) -> None:
        """Wait until the fact is true of every viewer."""
        await asyncio.gather(*(viewer.until(fact, timeout_s) for viewer in self.viewers))

    async def ended(self, timeout_s: float = 90.0) -> list[Viewer]:
        """Wait until everybody has seen the end."""
        _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
        waiting = [v for task, v in zip(self._tasks, self.viewers, strict=True) if task in late]
        assert not waiting, f"{len(waiting)} viewers never saw the end: {[v.describe() for v in waiting[:8]]}"
        return [task.result() for task in self._tasks]

    async def leave(self) -> None:
        """Everybody goes, now."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check(self, truth: list[dict[str, Any]], **how: int) -> None:
        """Everybody saw exactly this."""
        oracle = Truth(truth)
        for viewer in self.viewers:
            oracle.check(viewer, **how)


@asynccontextmanager
async def crowd(url: str) -> AsyncIterator[Crowd]:
    """Viewers with connections of their own; gone at the end, whatever happened."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        people = Crowd(session, url)
        try:
            yield people
        finally:
            await people.leave()
