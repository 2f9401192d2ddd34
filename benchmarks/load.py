"""The load: a client that is publisher and viewers at once, so that both share one clock and one closed loop.

The C client (sseload.c) is not part of this repository. It is compiled from the folder RELAY_BENCH_LOAD names, by
default ../shared/load beside the repository; without it, or without gcc, viewers.py does the same in Python and costs
so much CPU itself that only small loads say something about the server.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FIRST = 1_000_000_000
"""The `s` of a run's first event; each next one is one more, and all have the same length."""
SMALLEST = 44
"""Bytes of `{"t":…,"s":…,"p":""}`: no smaller payload can be made."""


class Violation(Exception):
    """A viewer saw a gap, a repeat, or not everything: no number of such a run is worth anything."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the client tells in its one line of JSON; the names are those of sseload.c."""

    told: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.told[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def faults(self) -> list[str]:
        """Whatever keeps this from being "each viewer got every event exactly once and in order"."""
        told = self.told
        missing = told["expected"] - told["delivered"]
        counts = {
            "missing": missing,
            "gaps": told["gaps"],
            "repeats": told["dups"],
            "not understood": told["bad"],
            "connections failed": told["errs"],
            "connections closed": told["closed"],
        }
        return [f"{count} {name}" for name, count in counts.items() if count]

    @property
    def share(self) -> float:
        """Which part of what was to be delivered was delivered."""
        return float(self.told["delivered"] / self.told["expected"]) if self.told["expected"] else 1.0


class Load:
    """Whichever client there is. Use as a context: what was compiled is gone afterwards."""

    def __init__(self, *, force_python: bool = False) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="relay-bench-")
        self.folder = Path(os.environ.get("RELAY_BENCH_LOAD") or ROOT.parent / "shared" / "load")
        """Where the client and most peers come from; need not exist."""
        self.why_python = "asked for" if force_python else _missing(self.folder)
        self._sseload = None if self.why_python else self.compiled("sseload")

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()

    @property
    def name(self) -> str:
        return "sseload (C, epoll)" if self._sseload else "viewers.py (Python, asyncio)"

    @property
    def fast(self) -> bool:
        return self._sseload is not None

    def compiled(self, name: str) -> Path:
        """A C program of the folder, compiled. Raises what keeps it from being."""
        program = Path(self._directory.name) / name
        if not program.exists():
            source = self.folder / f"{name}.c"
            subprocess.run(["gcc", "-O3", "-march=native", "-w", "-o", program, source], check=True)
        return program

    async def run(self, *flags: str, limit: float = 60.0, **options: object) -> Seen:
        """Run the client: `options` are its own, with _ for -; a None is left out. Raises RuntimeError."""
        command: list[str | Path] = [self._sseload] if self._sseload else [sys.executable, "-m", "benchmarks.viewers"]
        for name, value in {**options, "limit": limit}.items():
            command += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
        process = await asyncio.create_subprocess_exec(
            *command, *flags, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), limit + 20)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise RuntimeError(f"the load client ended with {process.returncode}: {err.decode()[-500:]}")
        return Seen(json.loads(out))


def _missing(folder: Path) -> str:
    """Why there is no C client; empty if there is one."""
    if not (folder / "sseload.c").exists():
        return "sseload.c not found (RELAY_BENCH_LOAD names its folder)"
    return "" if shutil.which("gcc") else "no gcc"
