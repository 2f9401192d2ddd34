"""The viewers: N connections to one server, each of which must get E stamped events, in order, without gap or repeat.

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.support.upstream_synth import BASE

ROOT = Path(__file__).resolve().parents[1]
FIRST = BASE
"""The `s` of a run's first event; each next one is one more, and all have the same length."""


class Violation(Exception):
    """A viewer saw a gap, a repeat, or not everything: no number of such a run is worth anything."""


@dataclass(frozen=True, slots=True)
class Outcome:
    conns: int
    expected: int
    delivered: int
    gaps: int
    dups: int
    errors: int
    """Connections refused or closed before they had everything."""
    secs: float
    """From the first connect to the last delivery."""
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    client_cpu_pct: float
    mbytes_per_s: float

    def check(self, who: str) -> None:
        """Raises Violation."""
        if self.gaps or self.dups or self.errors or self.delivered != self.expected:
            raise Violation(
                f"{who}: {self.delivered} of {self.expected} events delivered, {self.gaps} gaps, {self.dups} repeats, "
                f"{self.errors} connections failed"
            )

    def json(self) -> dict[str, Any]:
        return asdict(self)


class Load:
    """Whichever client there is. Use as a context: what was compiled is gone afterwards."""

    def __init__(self, *, force_python: bool = False) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="relay-bench-")
        sources = Path(os.environ.get("RELAY_BENCH_LOAD") or ROOT.parent / "shared" / "load")
        self.why_python = "asked for" if force_python else _missing(sources)
        self._sseload = self.cfan = None
        if not self.why_python:
            self._sseload = self._compiled(sources / "sseload.c")
            self.cfan = self._compiled(sources / "cfan.c") if (sources / "cfan.c").exists() else None

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

    def _compiled(self, source: Path) -> Path:
        program = Path(self._directory.name) / source.stem
        subprocess.run(["gcc", "-O3", "-march=native", "-w", "-o", program, source], check=True)
        return program

    async def view(
        self, port: int, path: str, *, conns: int, runs: int, events: int, limit_s: float, catch_up: bool = False
    ) -> Outcome:
        """Connect, receive, report. `path` has one %d for the run; latency is per event, or of catching up."""
        command: list[str | Path] = [self._sseload] if self._sseload else [sys.executable, "-m", "benchmarks.viewers"]
        options = {"port": port, "path": path, "conns": conns, "runs": runs, "replay": events, "limit": limit_s}
        command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command += ["--inflight", str(min(conns, 256))] + ([] if catch_up else ["--lat"])
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), limit_s + 15)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise RuntimeError(f"the load client failed: {err.decode()[-500:]}")
        return _outcome(json.loads(out), conns, conns * events)


def _outcome(told: dict[str, Any], conns: int, expected: int) -> Outcome:
    return Outcome(
        conns=conns,
        expected=expected,
        delivered=told["delivered"],
        gaps=told["gaps"],
        dups=told["dups"],
        errors=told["errs"] + told["closed"],
        secs=told["secs"],
        **{name: told[name] for name in ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")},
        client_cpu_pct=told["cli_cpu_pct"],
        mbytes_per_s=told["MBps"],
    )


def _missing(sources: Path) -> str:
    """Why there is no C client; empty if there is one."""
    if not (sources / "sseload.c").exists():
        return "sseload.c not found (RELAY_BENCH_LOAD names its folder)"
    return "" if shutil.which("gcc") else "no gcc"
