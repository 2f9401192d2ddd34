"""The log's laws, against a real server: who may write, what is refused before the first write, what expires."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import redis as sync_redis

from relay.core.errors import LeaseLost, LogMoved, StartupError, StoreUnavailable
from relay.core.events import Event
from relay.core.ids import RunKey
from relay.store.bells import Bells
from relay.store.embedded import EmbeddedServer
from relay.store.keys import Keys
from relay.store.log import Append, Claim, Lease, Log, LogState, Seen
from relay.store.options import RedisOptions, RetentionOptions
from relay.store.redis import Store

KEY = RunKey("main", "r1")


def events(*seqs: int) -> list[Event]:
    return [Event(seq, "message.delta", b'{"seq":%d}' % seq) for seq in seqs]


@dataclass
class Bench:
    """Two processes' views of one log, and a plain client to look behind them."""

    store: Store
    one: Log
    other: Log
    raw: sync_redis.Redis
    prefix: str

    async def owned(self, log: Log | None = None, key: RunKey = KEY) -> Lease:
        claim = await (log or self.one).claim(key)
        assert isinstance(claim, Claim)
        assert claim.lease is not None
        return claim.lease

    async def append(self, lease: Lease, prev: int, *seqs: int, **fields: str) -> Exception | None:
        return (await self.one.append([Append(lease, prev, events(*seqs), fields)]))[0]

    async def state(self, key: RunKey = KEY) -> LogState:
        state = (await self.one.states([key]))[0]
        assert state is not None
        return state

    async def seqs(self, key: RunKey = KEY) -> list[int]:
        return [event.seq for event in (await self.one.read([(key, 0, 1000)]))[0]]


async def _bench(url: str, *, retention: RetentionOptions | None = None, lease_s: float = 3.0) -> Bench:
    prefix = f"t{secrets.token_hex(4)}"
    store = Store(url, RedisOptions(prefix=prefix))
    await store.check()
    keys = Keys(prefix, 64)
    logs = [Log(store, keys, retention or RetentionOptions(), lease_s=lease_s, want_s=60.0) for _ in range(2)]
    return Bench(store, logs[0], logs[1], sync_redis.Redis.from_url(url), prefix)


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Bench]:
    made = await _bench(redis_url)
    yield made
    await made.store.close()
    made.raw.close()


async def test_events_are_there_in_order_with_their_seq_as_id(bench: Bench) -> None:
    lease = await bench.owned()
    assert await bench.append(lease, 0, 1, 2, 5) is None
    assert await bench.append(lease, 5, 6) is None
    assert await bench.seqs() == [1, 2, 5, 6]
    assert (await bench.one.states([KEY]))[0].last_seq == 6  # type: ignore[union-attr]


async def test_only_one_owner_at_a_time(bench: Bench) -> None:
    await bench.owned()
    answer = await bench.other.claim(KEY)
    assert isinstance(answer, float)
    assert 0 < answer <= 3.0


async def test_an_old_owner_is_stopped_at_its_first_write(redis_url: str) -> None:
    bench = await _bench(redis_url, lease_s=0.05)
    old = await bench.owned(bench.one)
    assert await bench.append(old, 0, 1) is None
    async with asyncio.timeout(60):
        while not isinstance(claim := await bench.other.claim(KEY), Claim):
            await asyncio.sleep(0.01)
    assert claim.lease is not None
    assert int(claim.lease.fence) > int(old.fence)
    assert claim.state.last_seq == 1
    assert isinstance(await bench.append(old, 1, 2), LeaseLost)
    assert isinstance((await bench.one.renew([(old, 1)]))[KEY], LeaseLost)
    with pytest.raises(LeaseLost):
        await bench.one.seal(old, prev=1, status="completed")
    assert await bench.seqs() == [1]
    await bench.store.close()
    bench.raw.close()


async def test_a_second_claim_by_the_same_owner_fences_its_own_earlier_writes(bench: Bench) -> None:
    first = await bench.owned()
    second = await bench.owned()
    assert isinstance(await bench.append(first, 0, 1), LeaseLost)
    assert await bench.append(second, 0, 1) is None


@pytest.mark.parametrize("prev", [0, 1, 3, 7])
async def test_an_append_that_does_not_continue_the_log_is_refused_whole(bench: Bench, prev: int) -> None:
    lease = await bench.owned()
    assert await bench.append(lease, 0, 1, 2) is None
    assert isinstance(await bench.append(lease, prev, 8, 9), LogMoved)
    assert await bench.seqs() == [1, 2]


async def test_a_repeat_of_an_append_whose_answer_was_lost_is_told_so(bench: Bench) -> None:
    lease = await bench.owned()
    assert await bench.append(lease, 0, 1, 2) is None
    assert isinstance(await bench.append(lease, 0, 1, 2), LogMoved)
    assert await bench.seqs() == [1, 2]


@pytest.mark.parametrize("seqs", [(3, 2), (2, 2), (1, 1), (5, 4, 6)])
async def test_seqs_that_do_not_rise_write_nothing(bench: Bench, seqs: tuple[int, ...]) -> None:
    lease = await bench.owned()
    assert await bench.append(lease, 0, 1) is None
    refused = await bench.append(lease, 1, *seqs)
    assert refused is not None
    assert await bench.seqs() == [1]


async def test_seqs_beyond_what_a_double_can_hold_keep_their_order(bench: Bench) -> None:
    big = 2**53
    lease = await bench.owned()
    assert await bench.append(lease, 0, big, big + 1, big + 2) is None
    assert isinstance(await bench.append(lease, big + 1, big + 3), LogMoved)
    assert await bench.append(lease, big + 2, big + 3) is None
    assert await bench.seqs() == [big, big + 1, big + 2, big + 3]


async def test_after_a_flush_the_owner_learns_that_all_is_gone(own_redis: EmbeddedServer) -> None:
    bench = await _bench(own_redis.url)
    lease = await bench.owned()
    assert await bench.append(lease, 0, 1, 2, 3, primed="1", floor="0") is None
    bench.raw.flushall()
    assert isinstance((await bench.one.renew([(lease, 3)]))[KEY], LogMoved)
    assert isinstance(await bench.append(lease, 3, 4), LogMoved)
    claim = await bench.one.claim(KEY)
    assert isinstance(claim, Claim)
    assert claim.state.last_seq == 0
    assert claim.lease is not None
    assert int(claim.lease.fence) > int(lease.fence)
    assert await bench.append(claim.lease, 0, 1, 2, 3, 4) is None
    await bench.store.close()
    bench.raw.close()


async def test_a_log_lost_without_its_hash_forgets_what_was_said_of_it(bench: Bench) -> None:
    lease = await bench.owned()
    assert await bench.append(lease, 0, 5, primed="1", floor="4", contiguous="0", status="completed") is None
    await bench.one.seal(lease, prev=5, status="completed")
    bench.raw.delete(bench.one.keys.log(KEY))
    claim = await bench.one.claim(KEY)
    assert isinstance(claim, Claim)
    assert claim.lease is not None
    state = claim.state
    assert (state.last_seq, state.sealed, state.primed, state.floor, state.contiguous) == (0, False, False, 0, True)


@pytest.mark.parametrize("lost", [(6,), (4, 5, 6), (2, 6), (1, 2, 3, 4, 5, 6)], ids=str)
async def test_a_log_whose_end_was_deleted_is_claimed_and_written_again(bench: Bench, lost: tuple[int, ...]) -> None:
    lease = await bench.owned()
    assert await bench.append(lease, 0, 1, 2, 3, 4, 5, 6) is None
    bench.raw.xdel(bench.one.keys.log(KEY), *(f"{seq}-0" for seq in lost))
    left = [seq for seq in range(1, 7) if seq not in lost]
    at = max(left, default=0)
    claim = await bench.one.claim(KEY)
    assert isinstance(claim, Claim)
    assert claim.lease is not None
    assert claim.state.last_seq == at
    assert await bench.seqs() == left
    assert await bench.append(claim.lease, at, *range(at + 1, 9)) is None
    assert await bench.seqs() == left + list(range(at + 1, 9))
    assert bench.raw.pttl(bench.one.keys.log(KEY)) > 0


async def test_a_sealed_run_is_not_claimed_again_unless_reopened(bench: Bench) -> None:
    lease = await bench.owned()
    assert await bench.append(lease, 0, 1) is None
    await bench.one.seal(lease, prev=1, status="failed")
    assert isinstance(await bench.append(lease, 1, 2), LogMoved | LeaseLost)
    claim = await bench.other.claim(KEY)
    assert isinstance(claim, Claim)
    assert claim.lease is None
    assert (claim.state.sealed, claim.state.status, claim.state.last_seq) == (True, "failed", 1)
    again = await bench.other.claim(KEY, reopen=True)
    assert isinstance(again, Claim)
    assert again.lease is not None


async def test_released_leases_are_free_at_once(bench: Bench) -> None:
    await bench.one.release([await bench.owned(bench.one)])
    assert isinstance(await bench.other.claim(KEY), Claim)


async def test_many_runs_in_one_round_trip_each_stand_for_themselves(bench: Bench) -> None:
    keys = [RunKey("main", f"r{i}") for i in range(50)]
    leases = [await bench.owned(key=key) for key in keys]
    appends = [Append(lease, 0 if i % 2 else 9, events(1, 2), {}) for i, lease in enumerate(leases)]
    answers = await bench.one.append(appends)
    assert [isinstance(answer, LogMoved) for answer in answers] == [i % 2 == 0 for i in range(50)]
    assert [await bench.seqs(key) for key in keys] == [[1, 2] if i % 2 else [] for i in range(50)]


async def test_renew_tells_each_run_its_own_answer(bench: Bench) -> None:
    keys = [RunKey("main", f"r{i}") for i in range(20)]
    leases = [await bench.owned(key=key) for key in keys]
    bench.raw.delete(bench.one.keys.run(keys[3]))
    bench.raw.hset(bench.one.keys.run(keys[4]), "fence", "1")
    answers = await bench.one.renew([(lease, 0) for lease in leases])
    assert isinstance(answers[keys[3]], LogMoved)
    assert isinstance(answers[keys[4]], LeaseLost)
    assert [key for key, answer in answers.items() if answer is not None] == [keys[3], keys[4]]


async def test_scripts_come_back_after_the_server_forgot_them(own_redis: EmbeddedServer) -> None:
    bench = await _bench(own_redis.url)
    bench.raw.script_flush()
    lease = await bench.owned()
    bench.raw.script_flush()
    assert await bench.append(lease, 0, 1) is None
    await bench.store.close()
    bench.raw.close()


async def test_a_log_beyond_its_cap_says_where_it_begins(redis_url: str) -> None:
    bench = await _bench(redis_url, retention=RetentionOptions(live_events=200))
    lease = await bench.owned()
    for start in range(0, 1000, 100):
        assert await bench.append(lease, start, *range(start + 1, start + 101)) is None
    kept = await bench.seqs()
    state = (await bench.one.states([KEY]))[0]
    assert state is not None
    assert kept == list(range(state.floor + 1, 1001))
    assert 200 <= len(kept) < 400
    await bench.store.close()
    bench.raw.close()


async def test_a_log_that_grows_one_by_one_stays_near_its_cap(redis_url: str) -> None:
    bench = await _bench(redis_url, retention=RetentionOptions(live_events=200))
    lease = await bench.owned()
    for seq in range(1, 801):
        assert await bench.append(lease, seq - 1, seq) is None
        assert bench.raw.xlen(bench.one.keys.log(KEY)) <= 200 + 100 + 64  # Redis trims whole nodes of a hundred
    assert await bench.seqs() == list(range((await bench.state()).floor + 1, 801))
    await bench.store.close()
    bench.raw.close()


async def test_all_that_rides_with_an_append_is_noted(bench: Bench) -> None:
    """More than Lua can take as the arguments of one call."""
    lease = await bench.owned()
    fields = {f"ingest_cursor:{i}": str(i) for i in range(9_000)}
    assert await bench.append(lease, 0, 1, **fields) is None
    noted = bench.raw.hgetall(bench.one.keys.run(KEY))
    assert {name.encode(): value.encode() for name, value in fields.items()}.items() <= noted.items()
    assert noted[b"last_seq"] == b"1"


async def test_a_log_has_its_time_from_its_first_event_and_anew_with_every_renewal(bench: Bench) -> None:
    lease = await bench.owned()
    log, run = bench.one.keys.log(KEY), bench.one.keys.run(KEY)
    await bench.append(lease, 0, 1)
    assert 86_000_000 < bench.raw.pttl(log) <= 86_400_000
    for key in (log, run):
        bench.raw.pexpire(key, 50_000)
    assert await bench.append(lease, 1, 2) is None
    assert (await bench.one.renew([(lease, 2)]))[KEY] is None
    assert all(86_000_000 < bench.raw.pttl(key) <= 86_400_000 for key in (log, run))


async def test_nothing_is_kept_for_ever(bench: Bench) -> None:
    lease = await bench.owned()
    await bench.append(lease, 0, 1)
    for sealed in (False, True):
        if sealed:
            await bench.one.seal(lease, prev=1, status="completed")
        found = list(bench.raw.scan_iter(f"{bench.prefix}:*"))
        assert found
        assert [key for key in found if bench.raw.pttl(key) <= 0] == []


async def test_memory_exhausted_writes_nothing_and_says_not_now(own_redis: EmbeddedServer) -> None:
    bench = await _bench(own_redis.url)
    lease = await bench.owned()
    assert await bench.append(lease, 0, 1) is None
    bench.raw.config_set("maxmemory", 1)
    assert isinstance(await bench.append(lease, 1, 2, 3), StoreUnavailable)
    bench.raw.config_set("maxmemory", 0)
    assert await bench.seqs() == [1]
    assert await bench.append(lease, 1, 2, 3) is None
    await bench.store.close()
    bench.raw.close()


async def test_a_server_that_is_gone_is_away_not_wrong(own_redis: EmbeddedServer) -> None:
    bench = await _bench(own_redis.url)
    lease = await bench.owned()
    own_redis.stop()
    with pytest.raises(StoreUnavailable):
        await bench.append(lease, 0, 1)
    await bench.store.close()
    bench.raw.close()


async def test_a_server_that_evicts_is_refused(own_redis: EmbeddedServer) -> None:
    raw = sync_redis.Redis.from_url(own_redis.url)
    raw.config_set("maxmemory-policy", "allkeys-lru")
    store = Store(own_redis.url, RedisOptions())
    with pytest.raises(StartupError, match="noeviction"):
        await store.check()
    await store.close()
    raw.close()


async def test_bells_ring_for_events_and_for_the_seal(bench: Bench) -> None:
    node = bench.store.node_of(bench.one.keys.bell(KEY))
    assert node is not None
    heard: asyncio.Queue[list[bytes]] = asyncio.Queue()
    bells = Bells(node, lambda pushes: [heard.put_nowait(push) for push in pushes])
    await bells.connect()
    channel = bench.one.keys.bell(KEY)
    bells.send("SSUBSCRIBE", channel)
    async with asyncio.timeout(60):
        assert (await heard.get())[0] == b"ssubscribe"
        lease = await bench.owned()
        await bench.append(lease, 0, 1, 2)
        assert await heard.get() == [b"smessage", channel.encode(), b"2"]
        await bench.one.seal(lease, prev=2, status="completed")
        assert await heard.get() == [b"smessage", channel.encode(), b"sealed"]
    bells.close()


async def test_a_user_without_channels_is_refused_at_the_start(own_redis: EmbeddedServer) -> None:
    """Redis 7 gives a new user none, and an append would fail behind its XADD."""
    with sync_redis.Redis.from_url(own_redis.url) as client:
        client.acl_setuser("relay", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@all"], reset=True)
    url = own_redis.url.replace("unix://", "unix://relay:pw@")
    store = Store(url, RedisOptions())
    try:
        with pytest.raises(StartupError, match="channels"):
            await store.check()
    finally:
        await store.close()


async def test_a_key_of_another_kind_is_no_other_runs_trouble(bench: Bench) -> None:
    """Somebody else wrote where one run's (or one partition's) keys are: the others are told, read and given back."""
    odd, fine = KEY, next(key for key in keys_elsewhere(bench) if key != KEY)
    leases = [await bench.owned(key=key) for key in (odd, fine)]
    named = bench.one.keys
    for key in (named.wants(odd), named.run(odd), named.leases(odd)):
        bench.raw.delete(key)
        bench.raw.set(key, "somebody else's")
    await bench.one.want([odd, fine])
    assert bench.raw.zcard(named.wants(fine)) == 1
    await bench.one.note_seen({odd: (Seen(9, ""), "t1"), fine: (Seen(9, ""), "t2")})
    assert bench.raw.hget(named.run(fine), "thread_id") == b"t2"
    assert await bench.one.fold_seqs([odd, fine]) == [0, 0]
    assert await bench.one.behind(odd, 0, 10) is None
    assert await bench.one.behind(fine, 0, 10) is not None
    await bench.one.release(leases)
    assert bench.raw.hget(named.run(fine), "owner") is None


def keys_elsewhere(bench: Bench) -> list[RunKey]:
    """Runs of other partitions than the one of `KEY`."""
    named = bench.one.keys
    return [
        key for i in range(50) if named.partition(key := RunKey("main", f"other{i}")) != named.partition(KEY)
    ]  # fmt: skip
