"""How a process starts: what it does not import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

START = "from relay import process; process.start()\n"


def said(script: str, **environ: str) -> str:
    """What a script prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env={**os.environ, **environ}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- imports ---------------------------------------------------------------------------------------------------------
ELSEWHERE = ("relay.demo", "relay.watch", "relay.workers", "rich", "pygments")
"""Of other commands, and what only they need."""
HEAVY = ("jwt", "cryptography", "unittest", "multiprocessing", "pydantic", "jsonschema", "sqlite3", "tkinter", "pydoc")
"""Used seldom, or not at all."""
SERVING = (
    "aiohttp",
    "redis",
    "hiredis",
    "prometheus_client",
    "relay.app",
    "relay.web.door",
    "relay.telemetry",
    "uvloop",
)


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        (START + "import relay.cli, relay.settings, relay.app", (*ELSEWHERE, *HEAVY)),
        ("import relay.app", (*ELSEWHERE, *HEAVY)),
        ("import relay.cli", (*ELSEWHERE, *HEAVY, *SERVING, "yaml", "relay.settings")),
        ("import relay.cli, relay.settings", (*ELSEWHERE, *HEAVY, *SERVING, "importlib.metadata")),
        ("import relay.workers.__main__", ("relay.workers.worker", "relay.demo", "rich", *HEAVY, *SERVING)),
    ],
)
def test_nothing_is_imported_that_is_not_used(imported: str, absent: tuple[str, ...]) -> None:
    found = said(f"{imported}\nimport sys; print(*sys.modules)").split()
    assert "relay" in found
    assert [name for name in absent if name in found] == []


def test_installed_packages_are_not_looked_through_for_a_provider_of_our_own(tmp_path: Path) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text("upstreams: [{name: main, provider: arkloop, base_url: 'http://127.0.0.1:1'}]")
    script = (
        "from relay.settings import load; import os, pathlib, sys\n"
        f"load(pathlib.Path({str(file)!r}), {{}}); print('importlib.metadata' in sys.modules)"
    )
    assert said(script) == "False"


def test_rich_is_hidden_from_the_log_only() -> None:
    script = (
        "import relay.logs, sys; assert 'rich' not in sys.modules; import relay.watch; print('rich' in sys.modules)"
    )
    assert said(script) == "True"
    assert said("import rich.console, relay.logs, sys; print(sys.modules['rich'] is rich)") == "True"


# --- the collector ---------------------------------------------------------------------------------------------------
def test_the_collector_never_walks_much_at_once_however_much_there_is() -> None:
    """Viewers wait while it does. With five thousand runs its walks of a million objects took most of a second."""
    script = (
        "import gc\nfrom relay import process\n"
        "walks = []\n"
        "def told(phase, info):\n"
        "    upto = range(info['generation'] + 1)\n"
        "    if phase == 'start': walks.append(sum(len(gc.get_objects(generation=g)) for g in upto))\n"
        "built = [[] for _ in range(200_000)]\n"
        "process.settle()\n"
        "gc.callbacks.append(told)\n"
        "runs = [[] for _ in range(500_000)]\n"
        "print(len(walks), max(walks))"
    )
    walks, most = map(int, said(script).split())
    assert walks > 20
    assert most < 40_000
