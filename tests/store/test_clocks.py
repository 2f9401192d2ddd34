"""Redis' clock is set while leases, wants and logs live by it: nobody waits for hours, and nobody writes who may not."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from relay.core.errors import LeaseLost, LogMoved, Unwanted
from relay.core.events import Event
from relay.core.ids import RunKey
from relay.store.keys import Keys
from relay.store.log import Append, Claim, Lease, Log
from relay.store.options import RedisOptions, RetentionOptions
from relay.store.redis import Store
from tests.support.clocks import DAY, HOUR, MINUTE, YEAR, JumpingRedis
from tests.support.stolen import Stopwatch

KEY = RunKey("main", "r1")
LEASE_S, WANT_S = 0.8, 2.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JumpingRedis]:
    with JumpingRedis(tmp_path_factory.mktemp("clock")) as redis:
        yield redis


class Bench:
    """Two processes' views of one log on a server whose clock can be set."""

    def __init__(self, server: JumpingRedis) -> None:
        self.server = server
        server.jump(-server.clock.offset_s)
        self.prefix = f"t{secrets.token_hex(4)}"
        self.keys = Keys(self.prefix, 4)
        self.store = Store(server.url, RedisOptions(prefix=self.prefix))
        self.one, self.other = self.log(), self.log()

    def log(self, *, lease_s: float = LEASE_S, want_s: float = WANT_S) -> Log:
        return Log(self.store, self.keys, RetentionOptions(), lease_s=lease_s, want_s=want_s)

    async def owned(self, log: Log, key: RunKey = KEY) -> Lease:
        claim = await log.claim(key)
        assert isinstance(claim, Claim)
        assert claim.lease is not None
        return claim.lease

    async def owned_in_time(self, log: Log, within_s: float) -> Lease:
        """By one who tries as a pump does."""
        async with Stopwatch() as watch:
            while not isinstance(claim := await log.claim(KEY), Claim):
                assert watch.spent_s < within_s, f"still held, {claim:.1f} s to go"
                await asyncio.sleep(0.02)
        assert claim.lease is not None
        return claim.lease

    async def append(self, lease: Lease, prev: int, *seqs: int) -> Exception | None:
        events = [Event(seq, "message.delta", b'{"seq":%d}' % seq) for seq in seqs]
        return (await self.one.append([Append(lease, prev, events, {})]))[0]

    async def renew(self, log: Log, lease: Lease, last_seq: int = 0) -> Exception | None:
        return (await log.renew([(lease, last_seq)]))[lease.key]

    def left_s(self, key: str, run: RunKey = KEY) -> float:
        """Until what stands in a zset ends."""
        score = self.server.raw.zscore(key, self.keys.member(run))
        assert score is not None
        return float(score) / 1000 - self.server.now_s()


@pytest.fixture
async def bench(server: JumpingRedis) -> AsyncIterator[Bench]:
    made = Bench(server)
    await made.store.check()
    yield made
    await made.store.close()


@pytest.mark.parametrize("back_s", [0.3, 1.0, 5.0, MINUTE, HOUR, YEAR])
async def test_a_dead_owners_lease_ends_in_time_although_the_clock_went_back(bench: Bench, back_s: float) -> None:
    await bench.owned(bench.one)
    bench.server.jump(-back_s)
    await bench.owned_in_time(bench.other, within_s=4 * LEASE_S)


@pytest.mark.parametrize("back_s", [5.0, HOUR, YEAR])
async def test_a_scan_finds_the_orphan_of_before_a_jump_back(bench: Bench, back_s: float) -> None:
    await bench.owned(bench.one)
    bench.server.jump(-back_s)
    found = await bench.other.scan(10)
    assert found.orphans == []
    assert found.soonest_s is not None
    assert 0 < found.soonest_s <= LEASE_S
    await asyncio.sleep(found.soonest_s + 0.01)
    assert (await bench.other.scan(10)).orphans == [KEY]


async def test_an_owner_who_lives_keeps_its_run_when_the_clock_goes_back(bench: Bench) -> None:
    lease = await bench.owned(bench.one)
    bench.server.jump(-HOUR)
    assert isinstance(await bench.other.claim(KEY), float)  # which pulls the lease back
    for _ in range(5):
        await asyncio.sleep(LEASE_S / 3)
        assert await bench.renew(bench.one, lease) is None
        assert isinstance(await bench.other.claim(KEY), float)
        assert (await bench.other.scan(10)).orphans == []
    assert await bench.append(lease, 0, 1) is None


async def test_a_want_of_before_a_jump_back_does_not_stand_for_hours(bench: Bench) -> None:
    lease = await bench.owned(bench.one)
    await bench.one.want([KEY])
    bench.server.jump(-HOUR)
    await bench.other.scan(10)
    assert bench.left_s(bench.keys.wants(KEY)) <= WANT_S
    await asyncio.sleep(WANT_S)
    assert isinstance(await bench.renew(bench.one, lease), Unwanted)


async def test_a_lease_nobody_wants_is_pulled_back_too(bench: Bench) -> None:
    """Else its member would stay in the set until the day from which the clock came back."""
    await bench.owned(bench.one)
    bench.server.raw.delete(bench.keys.wants(KEY))
    bench.server.jump(-YEAR)
    await bench.other.scan(10)
    assert bench.left_s(bench.keys.leases(KEY)) <= LEASE_S


async def test_processes_may_differ_in_their_lengths(bench: Bench) -> None:
    """During a rolling change: up to four times as long is another process' right, not a clock's error."""
    patient = bench.log(lease_s=3.9 * LEASE_S, want_s=3.9 * WANT_S)
    await bench.owned(patient)
    await patient.want([KEY])
    await bench.one.scan(10)
    assert isinstance(await bench.one.claim(KEY), float)
    assert bench.left_s(bench.keys.leases(KEY)) > 3 * LEASE_S
    assert bench.left_s(bench.keys.wants(KEY)) > 3 * WANT_S


@pytest.mark.parametrize("ahead_s", [5.0, HOUR, 0.9 * DAY])
async def test_a_jump_ahead_ends_every_lease_and_a_renewal_revives_it(bench: Bench, ahead_s: float) -> None:
    lease = await bench.owned(bench.one)
    bench.server.jump(ahead_s)
    assert bench.left_s(bench.keys.leases(KEY)) < 0
    await bench.one.want([KEY])
    assert await bench.renew(bench.one, lease) is None
    assert isinstance(await bench.other.claim(KEY), float)
    assert await bench.append(lease, 0, 1) is None


async def test_whoever_claims_after_a_jump_ahead_shuts_the_old_owner_out(bench: Bench) -> None:
    old = await bench.owned(bench.one)
    assert await bench.append(old, 0, 1) is None
    bench.server.jump(HOUR)
    new = await bench.owned(bench.other)
    assert isinstance(await bench.append(old, 1, 2), LeaseLost)
    assert isinstance(await bench.renew(bench.one, old, 1), LeaseLost)
    assert await bench.append(new, 1, 2) is None


@pytest.mark.parametrize("by_s", [YEAR, -1.0, -HOUR, -YEAR])
async def test_fences_rise_whatever_the_clock_does(bench: Bench, by_s: float) -> None:
    fences = []
    for log in (bench.one, bench.other, bench.one):
        lease = await bench.owned_in_time(log, within_s=4 * LEASE_S)
        fences.append(int(lease.fence))
        bench.server.jump(by_s)
    assert fences == sorted(set(fences))


@pytest.mark.parametrize("back_s", [1e-4, 1.0, HOUR])
async def test_no_owner_gets_the_same_fence_twice_although_clock_and_memory_were_lost(
    bench: Bench, back_s: float
) -> None:
    """A flush, or a replica that lagged: nothing is stored, and the clock says what it said before."""
    first = await bench.owned(bench.one)
    for _ in range(3):
        bench.server.raw.delete(bench.keys.run(KEY), bench.keys.leases(KEY))
        bench.server.jump(-back_s)
        second = await bench.owned(bench.one)
        assert int(second.fence) > int(first.fence)
        assert isinstance(await bench.append(first, 0, 1), LeaseLost)
        first = second


async def test_an_old_owner_is_shut_out_although_the_new_fence_is_lower(bench: Bench) -> None:
    """Fences are compared for equality: after a flush and a jump back nobody knows how high they were."""
    old = await bench.owned(bench.one)
    bench.server.raw.delete(bench.keys.run(KEY), bench.keys.leases(KEY))
    bench.server.jump(-HOUR)
    new = await bench.owned(bench.other)
    assert int(new.fence) < int(old.fence)
    assert isinstance(await bench.append(old, 0, 1), LeaseLost)
    assert isinstance(await bench.renew(bench.one, old), LeaseLost)
    with pytest.raises(LeaseLost):
        await bench.one.seal(old, prev=0, status="completed")
    await bench.one.release([old])
    assert await bench.append(new, 0, 1) is None


async def test_a_jump_beyond_retention_is_a_loss_like_a_flush(bench: Bench) -> None:
    lease = await bench.owned(bench.one)
    assert await bench.append(lease, 0, 1, 2, 3) is None
    bench.server.jump(2 * DAY)
    assert isinstance(await bench.append(lease, 3, 4), LogMoved)
    assert isinstance(await bench.renew(bench.one, lease, 3), LogMoved)
    claim = await bench.one.claim(KEY)
    assert isinstance(claim, Claim)
    assert claim.lease is not None
    assert (claim.state.last_seq, claim.state.sealed) == (0, False)
    assert await bench.append(claim.lease, 0, 1, 2, 3, 4) is None


async def test_every_key_has_an_end_also_after_jumps(bench: Bench) -> None:
    lease = await bench.owned(bench.one)
    for by_s in (-HOUR, YEAR, -YEAR):
        bench.server.jump(by_s)
        await bench.other.scan(10)
        await bench.renew(bench.one, lease)
        found = list(bench.server.raw.scan_iter(f"{bench.prefix}:*"))
        assert [key for key in found if bench.server.raw.pttl(key) == -1] == []


async def test_a_scan_tells_what_time_it_is(bench: Bench) -> None:
    bench.server.jump(-HOUR)
    clocks = (await bench.one.scan(10)).clocks
    assert len(clocks) == 4
    assert all(abs(now - (time.time() - HOUR)) < 5 for now in clocks.values())
