"""A configuration file to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.settings.loading import FileOf


@pytest.fixture
def file_of(tmp_path: Path) -> FileOf:
    def write(text: str) -> Path:
        path = tmp_path / "relay.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write
