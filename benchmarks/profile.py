"""Where relay's time goes: py-spy beside a measurement, as a table of functions. Needs py-spy (the extra `bench`)."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

TOP = 25


@dataclass(slots=True)
class Profile:
    """Samples a process while it is measured. Without a `file` it does nothing."""

    file: Path | None = None
    """Collapsed stacks, as flame graph tools read them."""
    native: bool = False
    """C frames too (uvloop, hiredis, orjson, libc): slower, and the numbers beside it worth even less."""

    @asynccontextmanager
    async def of(self, pid: int, *, after_s: float) -> AsyncIterator[None]:
        """`after_s`: so late, that connecting is not in it."""
        if self.file is None:
            yield
            return
        sampling = asyncio.create_task(self._sampling(pid, after_s))
        try:
            yield
        finally:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
            print(f"\n{_table(self.file)}")

    async def _sampling(self, pid: int, after_s: float) -> None:
        await asyncio.sleep(after_s)
        command = [_program(), "record", "--pid", str(pid), "--rate", "400", "--duration", "600", "--format", "raw"]
        command += ["--output", str(self.file), *(["--native"] if self.native else [])]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            await process.wait()
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)  # it writes what it has
                await process.wait()


def _program() -> str:
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if not found:
        sys.exit("benchmarks: --profile needs py-spy (pip install 'run-relay[bench]')")
    return found


def _table(file: Path) -> str:
    """Functions by their own time and by all time beneath them, in percent of the samples."""
    own: Counter[str] = Counter()
    beneath: Counter[str] = Counter()
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        stack, _, count = line.rpartition(" ")
        frames = [_function(frame) for frame in stack.split(";")]
        own[frames[-1]] += int(count)
        beneath.update(dict.fromkeys(frames, int(count)))
    total = sum(own.values())
    if not total:
        return "no samples"
    parts = [f"{total} samples in {file.name}"]
    for title, counted in (("its own time", own), ("with all beneath", beneath)):
        parts += ["", title, *(f"  {100 * n / total:5.1f} %  {name}" for name, n in counted.most_common(TOP))]
    return "\n".join(parts)


def _function(frame: str) -> str:
    """`name (path/file.py:12)` without the line, so that the lines of a function count as one."""
    name, _, where = frame.partition(" (")
    place = where.rpartition(":")[0] or where.rstrip(")")
    return f"{name} ({'/'.join(place.split('/')[-2:])})" if place else name
