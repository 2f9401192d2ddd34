"""Other versions of the vendors' SDKs, each in a process of its own: two of them cannot live in one environment.

The same tests, with another version before the one that is installed (`make other-sdks` puts them beside it). The cells
they fill are filled here.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import Cells
from tests.support.needs import ROOT, missing

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]
PLACE = Path(os.environ.get("RELAY_OTHER_SDKS") or Path(sys.prefix) / "other-sdks")
OTHERS = {
    "openai-newest": ("test_openai_sdk.py", "openai"),
    "seekrai-legacy": ("test_seekrai.py", ""),
}
"""By folder: the tests of the SDK, and the face whose clients watch."""


@pytest.mark.parametrize("upstream", ["arkloop", "seekrflow", "openai"])
@pytest.mark.parametrize("folder", OTHERS)
async def test_another_version(folder: str, upstream: str, cells: Cells, tmp_path: Path) -> None:
    if not (PLACE / folder).is_dir():
        missing(f"the SDK in {folder}", "make other-sdks")
    file, faces = OTHERS[folder]
    files = [f"tests/clients/{name}" for name in (file, *(["test_watching.py"] if faces else []))]
    results = tmp_path / "cells.json"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(PLACE / folder), str(ROOT)]),
        "RELAY_TEST_CELLS": str(results),
        "RELAY_TEST_FACES": faces,
        "RELAY_TEST_UPSTREAM": upstream,  # one each: so they share the work between test processes
    }
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]  # who we are is no business of theirs
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist",
        f"--basetemp={tmp_path / 'base'}", "-m", "not browser", *files,
        cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    for *cell, outcome in json.loads(results.read_text()) if results.exists() else ():
        cells.fill(tuple(cell), outcome)
    assert process.returncode == 0, output.decode(errors="replace")[-6000:]
