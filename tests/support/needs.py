"""What a test needs and a machine may lack: absent on a user's machine it skips loudly, in CI it fails."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]


def missing(what: str, how: str) -> NoReturn:
    """Say what is absent and how to get it."""
    words = f"{what} is absent: {how}"
    if os.environ.get("CI"):
        pytest.fail(words)
    pytest.skip(words, allow_module_level=True)


def recordings() -> Path:
    """The folder of recorded runs; they are others' data and not part of this repository."""
    places = [os.environ.get("RELAY_RECORDINGS"), ROOT.parent / "shared" / "recordings", ROOT / "recordings"]
    for place in places:
        if place and Path(place).is_dir():
            return Path(place)
    missing("the folder of recordings", "set RELAY_RECORDINGS to a folder of *.jsonl runs")


def recording(name: str) -> list[dict[str, Any]]:
    path = recordings() / f"{name}.jsonl"
    if not path.exists():
        missing(f"recording {name}", f"expected {path.name} in the folder of recordings")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def chromium() -> str:
    for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"):
        if Path(path).exists():
            return path
    missing("Chromium", "install it (Debian: apt-get install chromium) to run the browser tests")


def sdk(name: str) -> ModuleType:
    """A vendor's own client."""
    return package(name, "clients")


def package(name: str, extra: str) -> ModuleType:
    """What an extra of relay installs."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(f"the package {name}", f"pip install 'run-relay[{extra}]'")


def installed(name: str) -> str:
    """Which version of a vendor's client is here; "(absent)" if none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(absent)"
