"""What discovery keeps in Redis: one process looks at a time, only it may note, and its successor finds all of it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import redis as sync_redis

from relay.core.errors import LeaseLost, StoreUnavailable
from relay.core.ids import RunKey
from relay.store.embedded import EmbeddedServer
from relay.store.findings import OVERLAP_US, Findings, Memory, Standing
from relay.store.keys import Keys
from relay.store.log import Claim, Log
from relay.store.options import RedisOptions, RetentionOptions
from relay.store.redis import Store

NOW_US = 1_790_000_000_000_000


@dataclass
class Bench:
    store: Store
    keys: Keys
    log: Log
    raw: sync_redis.Redis

    def findings(self, upstream: str = "main", lease_s: float = 3.0) -> Findings:
        return Findings(self.store, self.keys, upstream, lease_s=lease_s, live_s=100.0)


async def _bench(url: str) -> Bench:
    keys = Keys(f"t{secrets.token_hex(4)}", 64)
    store = Store(url, RedisOptions())
    await store.check()
    log = Log(store, keys, RetentionOptions(), lease_s=3.0, want_s=60.0)
    return Bench(store, keys, log, sync_redis.Redis.from_url(url))


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Bench]:
    made = await _bench(redis_url)
    yield made
    await made.store.close()
    made.raw.close()


async def test_one_process_looks_until_it_leaves(bench: Bench) -> None:
    findings = bench.findings()
    assert await findings.look("a")
    assert await findings.look("a")
    assert not await findings.look("b")
    await findings.leave("b")
    assert not await findings.look("b"), "only the holder can give the right back"
    await findings.leave("a")
    assert await findings.look("b")
    assert await bench.findings("other").look("a"), "another upstream is another matter"


async def test_the_right_to_look_ends_with_its_lease(bench: Bench) -> None:
    findings = bench.findings(lease_s=0.05)
    assert await findings.look("a")
    async with asyncio.timeout(60):
        while not await findings.look("b"):
            await asyncio.sleep(0.01)


async def test_only_the_process_that_looks_may_note(bench: Bench) -> None:
    findings = bench.findings()
    for token in ("nobody", "a"):
        with pytest.raises(LeaseLost):
            await findings.note(token, seen={"r": 1}, opened=["r"], mark_us=1)
        await findings.look("b")
    assert await findings.recall() == Memory(None, {}, [])


async def test_a_successor_finds_what_was_noted(bench: Bench) -> None:
    findings = bench.findings()
    await findings.look("a")
    await findings.note("a", seen={"r1": NOW_US, "r2": NOW_US + 1}, opened=["r1", "r2", "r3"])
    assert (await findings.recall()).mark_us is None
    await findings.note("a", closed=["r2"], mark_us=NOW_US + 1)
    await findings.leave("a")
    assert await bench.findings().recall() == Memory(NOW_US + 1, {"r1": NOW_US, "r2": NOW_US + 1}, ["r1", "r3"])


async def test_the_mark_rises_only_and_what_lies_well_below_it_is_forgotten(bench: Bench) -> None:
    findings = bench.findings()
    await findings.look("a")
    seen = {"old": NOW_US - OVERLAP_US - 1, "edge": NOW_US - OVERLAP_US, "new": NOW_US}
    await findings.note("a", seen=seen, mark_us=NOW_US)
    await findings.note("a", mark_us=NOW_US - 5)
    assert await findings.recall() == Memory(NOW_US, {"edge": NOW_US - OVERLAP_US, "new": NOW_US}, [])


async def test_an_upstream_without_any_run_has_a_mark_too(bench: Bench) -> None:
    findings = bench.findings()
    await findings.look("a")
    await findings.note("a", mark_us=0)
    assert (await findings.recall()).mark_us == 0


async def test_all_of_it_lives_in_one_slot_and_expires(bench: Bench) -> None:
    findings = bench.findings()
    await findings.look("a")
    await findings.note("a", seen={"r": NOW_US}, opened=["r"], mark_us=NOW_US)
    keys = sorted(key.decode() for key in bench.raw.scan_iter(f"{bench.keys.prefix}:*"))
    assert [key.split(":")[2] for key in keys] == ["looker", "open", "seen"]
    assert len({key[key.index("{") : key.index("}")] for key in keys}) == 1
    assert all(bench.raw.pttl(key) > 0 for key in keys)
    for key in keys[1:]:
        bench.raw.pexpire(key, 1000)
    await findings.look("a")
    assert all(bench.raw.pttl(key) > 50_000 for key in keys[1:]), "looking keeps them alive, whether it finds or not"


async def test_standing_tells_each_run_its_own(bench: Bench) -> None:
    key = [RunKey("main", f"r{i}") for i in range(4)]
    await bench.log.want([key[1]])
    for one in key[2:]:
        claim = await bench.log.claim(one)
        assert isinstance(claim, Claim)
        assert claim.lease is not None
        if one is key[3]:
            await bench.log.seal(claim.lease, prev=0, status="completed")
    standing = await bench.findings().standing([one.run_id for one in key])
    assert standing == [
        Standing(claimed=False, sealed=False, wanted=False),
        Standing(claimed=False, sealed=False, wanted=True),
        Standing(claimed=True, sealed=False, wanted=True),
        Standing(claimed=True, sealed=True, wanted=False),
    ]
    assert await bench.findings().standing([]) == []


async def test_a_redis_that_is_away_is_away(own_redis: EmbeddedServer) -> None:
    bench = await _bench(own_redis.url)
    findings = bench.findings()
    await findings.look("a")
    own_redis.stop()
    for call in (findings.look("a"), findings.recall(), findings.note("a", mark_us=1), findings.leave("a")):
        with pytest.raises(StoreUnavailable):
            await call
    with pytest.raises(StoreUnavailable):
        await findings.standing(["r"])
    await bench.store.close()
    bench.raw.close()
