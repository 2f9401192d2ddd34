"""The clients in `examples/`: they read many runs whole, through a relay that is killed with -9 and started again."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.needs import ROOT, missing
from tests.support.relay import RelayProcess
from tests.support.upstream import ScriptedUpstream
from tests.system.rig import relay_process
from tests.system.watching import native

pytestmark = pytest.mark.system

NODE = """
import { readRuns } from %s;
const say = (op) => (data) => console.log(JSON.stringify({ op, ...data }));
const on = { event: (event) => say("event")({ run_id: event.run_id, event }) };
for (const op of ["end", "reset", "error", "goodbye"]) on[op] = say(op);
await readRuns(process.argv[2], { runs: process.argv.slice(3) }, on, { silenceMs: 8000 }).done;
"""


def script(count: int) -> list[tuple[str, dict[str, Any]]]:
    deltas = [("message.delta", {"content_delta": f"{i} wörds 🙂\u2028"}) for i in range(count)]
    return [("run.started", {}), *deltas, ("run.completed", {})]


def program(client: str, directory: Path) -> list[str]:
    if client == "python":
        return [sys.executable, str(ROOT / "examples" / "runs.py")]
    if (node := shutil.which("node")) is None:
        missing("node", "Node.js 18 or later")
    path = directory / "read.mjs"
    path.write_text(NODE % json.dumps((ROOT / "examples" / "runs.mjs").as_uri()))
    return [str(node), str(path)]


@pytest.mark.parametrize("client", ["python", "javascript"])
async def test_it_reads_every_run_whole_through_a_relay_that_is_killed(
    upstream: ScriptedUpstream, tmp_path: Path, client: str
) -> None:
    async with relay_process(upstream.url, tmp_path) as relay:
        runs = [upstream.play(script(150), rate=50, hold=50) for _ in range(5)]
        reader = await asyncio.create_subprocess_exec(
            *program(client, tmp_path), relay.url, *runs, stdout=asyncio.subprocess.PIPE, limit=1 << 22
        )
        assert reader.stdout is not None
        heard: list[dict[str, Any]] = []
        async with asyncio.timeout(120):
            for kills in range(2):
                while sum(one["op"] == "event" for one in heard) < 100 * (kills + 1):
                    heard.append(json.loads(await reader.stdout.readline()))
                await restart(relay)
            for run_id in runs:
                await upstream.go_on(run_id)
            heard += [json.loads(line) async for line in reader.stdout]
            assert await reader.wait() == 0
        for run_id in runs:
            its = [one for one in heard if one.get("run_id") == run_id]
            assert [one["event"] for one in its if one["op"] == "event"] == [native(e) for e in upstream.truth(run_id)]
            assert [one["op"] for one in its if one["op"] not in ("event", "error")] == ["end"]
            assert its[-1]["op"] == "end"


async def restart(relay: RelayProcess) -> None:
    await relay.kill()
    await relay.start()


async def test_python_a_run_that_is_not_there_is_an_error_and_does_not_keep_it_waiting(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with relay_process(upstream.url, tmp_path) as relay:
        run_id = upstream.add_run(script(2))
        reader = await asyncio.create_subprocess_exec(
            *program("python", tmp_path), relay.url, run_id, "nobody-knows-it", stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            out, _ = await reader.communicate()
        heard = [json.loads(line) for line in out.splitlines()]
        assert sorted(one["op"] for one in heard) == ["end", "error", "event", "event", "event", "event"]
