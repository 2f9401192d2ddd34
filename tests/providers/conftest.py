"""Packages that bring a provider, as an installer leaves them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.settings import kinds
from tests.support.needs import ROOT


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes packages that bring providers: their metadata, as an installer writes it."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples" / "tally"), str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    for remembered in (kinds._loaded, kinds._brought):
        remembered.cache_clear()

    def install(package: str, **points: str) -> None:
        folder = tmp_path / f"{package}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (folder / "entry_points.txt").write_text(f"[relay.providers]\n{lines}")
        kinds._brought.cache_clear()

    yield install
    for remembered in (kinds._loaded, kinds._brought):
        remembered.cache_clear()
    sys.modules.pop("tally", None)
