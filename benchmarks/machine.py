"""Cores, processes and the machine. Linux only: CPU time is read from /proc, to the nanosecond."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SERVER_CORE, REST_CORE = 0, 1
"""Whoever is measured has a core for itself; upstream, Redis, viewers and this process share the other one."""

PACKAGES = ("aiohttp", "redis", "hiredis", "orjson", "msgspec", "uvloop", "aiohttp-sse", "fastapi", "sse-starlette")
FILES = 16_384
"""Open files that 10,000 viewers, or 5,000 runs with a viewer each, need in one process."""


def require() -> None:
    """Stop, in one line, where nothing could be measured."""
    if not Path("/proc/self/schedstat").exists():
        sys.exit("benchmarks: Linux with /proc/*/schedstat is needed to measure CPU time per process")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        sys.exit(f"benchmarks: at most {hard} open files are allowed here, {FILES} are needed (ulimit -n)")
    most = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def pinned() -> bool:
    """Whether there are two cores to keep the measured process apart from its load."""
    return {SERVER_CORE, REST_CORE} <= os.sched_getaffinity(0)


@contextmanager
def core(number: int, allowed: bool) -> Iterator[None]:
    """Children started in this block run on that core only, with all their threads."""
    before = os.sched_getaffinity(0)
    if allowed:
        os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# --- processes -------------------------------------------------------------------------------------------------------
def family(pid: int) -> list[int]:
    """A process and all below it: an nginx does its work in a child."""
    pids = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            pids += family(int(child))
    return pids


def cpu_s(pids: Iterable[int]) -> float:
    """CPU time of processes so far, all their threads, user and system."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                total += int((task / "schedstat").read_bytes().split()[0])
            except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                continue
    return total / 1e9


def rss_kb(pids: Iterable[int]) -> int:
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


async def settled(pids: list[int], within_s: float = 30.0) -> None:
    """Wait until processes have nothing more to do than their background work. Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    await asyncio.sleep(0.2)
    while True:
        before = cpu_s(pids)
        await asyncio.sleep(0.4)
        if cpu_s(pids) - before < 0.08:
            return
        if time.monotonic() > deadline:
            raise TimeoutError("the server does not come to rest with nothing to do")


async def end(process: asyncio.subprocess.Process, *, politely: bool = False) -> None:
    """`politely` is for who has children of his own to end."""
    if process.returncode is None:
        process.terminate() if politely else process.kill()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


# --- ports and waiting -----------------------------------------------------------------------------------------------
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def listening(port: int, within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return


async def until(fact: Any, within_s: float, what: str, every_s: float = 0.02) -> float:
    """Wait until `fact()` (awaited if need be) is true; the monotonic time at which it was."""
    deadline = time.monotonic() + within_s
    while True:
        said = fact()
        if asyncio.iscoroutine(said):
            said = await said
        if said:
            return time.monotonic()
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        await asyncio.sleep(every_s)


# --- what a reader must know -----------------------------------------------------------------------------------------
def facts(redis: str, client: str, *, pin: bool) -> dict[str, Any]:
    """What a reader must know to judge the numbers; nothing that names the machine or its paths."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "pinned": pin,
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "redis": redis.partition(" (")[0],
        "load_client": client,
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _commit() -> str:
    """The commit that is measured, with "+" if files that count differ from it."""
    changed = _git("status", "--porcelain", "--", "relay", "tests/support", "benchmarks/*.py")
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def _git(*words: str) -> str:
    here = Path(__file__).resolve().parents[1]
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=here).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _cpu_model() -> str:
    names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.M)
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
