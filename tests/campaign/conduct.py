"""One campaign from start to end: builds the parts, follows the schedule, lets everything come to rest, keeps the record.

The folder afterwards: `meta.json`, `faults.jsonl`, `processes.jsonl`, `runs.jsonl`, `truth.jsonl`, `writes.jsonl` and
`streams.jsonl` (what the proxy overheard), `masters.jsonl` (who was master when), `journal.jsonl` and `texts.jsonl`
(readers), `log.jsonl` (Redis at the end).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import orjson
import redis

from tests.campaign.fleet import Relay
from tests.campaign.inject import Injector, keys_of
from tests.campaign.plan import CLOCKS, schedule
from tests.campaign.proxy import Link, Tap
from tests.campaign.servers import TOPOLOGIES, Redises, Sockets
from tests.campaign.stage import Audience, Stage
from tests.campaign.taps import RedisTap, ScriptNames, UpstreamTap
from tests.campaign.witness import Witness
from tests.support.clocks import library
from tests.support.ports import free_port
from tests.support.upstream_client import ROOT, UpstreamClient

PREFIX = "relay"


@dataclass(slots=True)
class Options:
    seed: int = 1
    rounds: int = 30
    topology: str = "single"
    runs: int = 8
    relays: int = 3
    seconds: float | None = None
    out: Path = field(default_factory=lambda: Path("campaign"))
    tree: Path = ROOT
    bug: str | None = None
    brief: bool = False
    """Shorter runs, for the short form."""
    settings: dict[str, Any] = field(default_factory=dict)
    quiet: bool = False
    audience: str = "all"
    """`many`: only readers of all runs on one connection."""
    kinds: list[str] = field(default_factory=list)
    """Only these kinds of rounds; none: all."""
    patience_s: float = 75.0
    """How long after a run's end its readers may take to be told so."""


class Records:
    """Files of JSON lines."""

    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self._directory = directory
        self._stack = stack

    def open(self, name: str) -> Callable[[dict[str, Any]], None]:
        file: TextIO = self._stack.enter_context((self._directory / f"{name}.jsonl").open("w", buffering=1 << 16))

        def record(entry: dict[str, Any]) -> None:
            file.write(orjson.dumps(entry, option=orjson.OPT_NON_STR_KEYS).decode() + "\n")

        return record


async def campaign(options: Options) -> Path:
    """Runs it; gives the folder with its record."""
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    _clear(out)
    async with AsyncExitStack() as stack:
        show = (lambda *_: None) if options.quiet else lambda *words: print(*words, flush=True)
        records = Records(out, stack)
        up = await stack.enter_async_context(UpstreamClient.spawn("--heartbeat", "1", "--token", "upstream-secret"))
        rig = await _rig(options, out, records, stack, up)
        without = () if library() else CLOCKS
        if without:
            print("NO CLOCK WILL JUMP: libfaketime is absent (pip install libfaketime, or apt-get)", flush=True)
        plan = schedule(
            options.seed, options.rounds, topology=options.topology, relays=options.relays, slots=options.runs,
            seconds=options.seconds, only=options.kinds, without=without,
        )  # fmt: skip
        meta = {
            **{k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()},
            "wall_minus_monotonic": time.time() - time.monotonic(),
            "planned": len(plan),
            "lease_s": 3.0,
            "clocks_jump": not without,
            "ports": {"relays": [relay.port for relay in rig.relays]},
        }
        (out / "meta.json").write_text(json.dumps(meta, indent=1))
        began = time.monotonic()
        staging = asyncio.create_task(rig.stage.run())
        stack.callback(staging.cancel)
        await _follow(plan, rig, began, staging, show)
        show(f"{time.monotonic() - began:6.1f} s  all {len(plan)} rounds injected; coming to rest")
        await _rest(rig, staging, show)
        ended = time.monotonic()
        await _dump(rig.redises, rig.stage.kept, records.open("log"))
        troubles = {relay.index: relay.troubles() for relay in rig.relays}
        meta |= {"began": began, "ended": ended, "troubles": troubles, "runs_played": rig.stage.started}
        meta |= {"stalls": rig.witness.stalls}
        (out / "meta.json").write_text(json.dumps(meta, indent=1))
    return out


def _clear(out: Path) -> None:
    """Nothing of an earlier campaign may be left: the same seed gives the same run ids."""
    shutil.rmtree(out / "redis", ignore_errors=True)
    for path in [*out.glob("*.jsonl"), *out.glob("*.log"), *out.glob("report.*")]:
        path.unlink()


class _Rig:
    def __init__(
        self,
        relays: list[Relay],
        redises: Redises,
        links: list[Link],
        stage: Stage,
        injector: Injector,
        witness: Witness,
    ) -> None:
        self.relays = relays
        self.redises = redises
        self.links = links
        self.stage = stage
        self.injector = injector
        self.witness = witness


async def _rig(options: Options, out: Path, records: Records, stack: AsyncExitStack, up: UpstreamClient) -> _Rig:
    following: dict[str, list[dict[str, Any]]] = {}
    names, writes, streams = ScriptNames(options.tree), records.open("writes"), records.open("streams")
    processes = records.open("processes")
    relays: list[Relay] = []
    sockets = Sockets(lambda: {relay.pid: relay.index for relay in relays if relay.pid})

    def tap(owner: object, node: str) -> Tap | None:
        return RedisTap(owner, node, names, writes)  # owner None: not a relay, or one that is gone already

    redises = TOPOLOGIES[options.topology](out, options.relays, tap, sockets.who)
    stack.push_async_callback(redises.close)
    await redises.start()
    host, port = up.url.removeprefix("http://").split(":")
    upstream_links, reader_links = [], []
    for index in range(options.relays):
        upstream_links.append(
            await Link(
                f"relay{index}-upstream",
                (host, int(port)),
                owner=index,
                tap=lambda owner: UpstreamTap(owner, streams, following),
            ).open()
        )
        relay = Relay(
            index,
            out,
            processes,
            ports=(free_port(), free_port()),
            redis_url=redises.url(index),
            upstream_url=f"http://127.0.0.1:{upstream_links[-1].port}",
            tree=options.tree,
            prefix=PREFIX,
            bug=options.bug,
            settings=options.settings,
        )
        relays.append(relay)
        reader_links.append(await Link(f"readers-relay{index}", ("127.0.0.1", relay.port)).open())
    witness = Witness(redises, records.open("masters"))
    stack.push_async_callback(witness.close)
    stack.callback(asyncio.create_task(witness.run()).cancel)
    for relay in relays:
        stack.callback(asyncio.create_task(relay.keep()).cancel)
    stack.push_async_callback(_close, relays, [*upstream_links, *reader_links])
    for relay in relays:
        await relay.ready()
    audience = await stack.enter_async_context(
        Audience(out, [f"http://127.0.0.1:{link.port}" for link in reader_links])
    )
    stage = Stage(
        options.seed, options.runs, up, audience, records.open("runs"), records.open("truth"),
        relays=options.relays, brief=options.brief, patience_s=options.patience_s, audience_of=options.audience,
    )  # fmt: skip
    injector = Injector(relays, redises, upstream_links, reader_links, stage, following, PREFIX, records.open("faults"))
    return _Rig(relays, redises, [*upstream_links, *reader_links, *redises.links], stage, injector, witness)


async def _close(relays: list[Relay], links: list[Link]) -> None:
    await asyncio.gather(*(relay.close() for relay in relays))
    for link in links:
        link.close()


async def _follow(plan: list[Any], rig: _Rig, began: float, staging: asyncio.Task[None], show: Any) -> None:
    async with asyncio.TaskGroup() as tasks:
        for round in plan:
            await asyncio.sleep(max(0.0, began + round.at - time.monotonic()))
            if staging.done():
                staging.result()
            show(f"{time.monotonic() - began:6.1f} s  round {round.number}: {round.kind}")
            tasks.create_task(rig.injector.inject(round))


async def _rest(rig: _Rig, staging: asyncio.Task[None], show: Any) -> None:
    """Nothing is hurt any more: what is left must come to its end by itself."""
    for link in rig.links:
        link.fail()
    await rig.redises.whole()
    for relay in rig.relays:
        await relay.ready()
    rig.stage.closing.set()
    await staging


async def _dump(redises: Redises, runs: list[str], record: Any) -> None:
    """What the log holds of every run, and its state."""
    masters = await redises.masters()
    for run in runs:
        keys = keys_of(PREFIX, run)
        for node in masters:
            with suppress(redis.ResponseError):
                entries = await node.client.execute_command("XRANGE", keys["log"], "-", "+")
                state = await node.client.execute_command("HGETALL", keys["run"])
                record({"run": run, "entries": [_entry(entry) for entry in entries], "state": _state(state)})
                break


def _entry(entry: Any) -> list[Any]:
    fields = entry[1]
    text = fields[b"event"] if isinstance(fields, dict) else fields[fields.index(b"event") + 1]
    return [entry[0].decode(), hashlib.sha1(text, usedforsecurity=False).hexdigest()[:16]]


def _state(state: Any) -> dict[str, str]:
    items = state.items() if isinstance(state, dict) else zip(state[::2], state[1::2], strict=True)
    return {k.decode(): v.decode("utf-8", "replace") for k, v in items}
