"""A trimmed head fetched again: one filler, no write by who was frozen, no hole of our making, nothing kept for ever."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest
import redis as sync_redis

from relay.core.errors import LeaseLost, LogMoved
from relay.core.events import Event
from relay.core.ids import RunKey
from relay.store.keys import Keys
from relay.store.log import Append, Claim, Lease, Log
from relay.store.old import Fill
from relay.store.options import RedisOptions, RetentionOptions
from relay.store.redis import _COUNTING as COUNTING
from relay.store.redis import Script, Store

KEY = RunKey("main", "r1")
BIG = 2**53


def events(*seqs: int) -> list[Event]:
    return [Event(seq, "message.delta", b'{"seq":%d}' % seq) for seq in seqs]


@dataclass
class Bench:
    store: Store
    one: Log
    other: Log
    raw: sync_redis.Redis
    prefix: str
    lease: Lease | None = None

    async def trimmed(self, floor: int = 100, last: int = 150, **fields: str) -> None:
        """A log that holds (floor, last], as if the rest had been trimmed."""
        if self.lease is None:
            claim = await self.one.claim(KEY)
            assert isinstance(claim, Claim)
            self.lease = claim.lease
        assert self.lease is not None
        said = {"floor": str(floor), **fields}
        append = Append(self.lease, 0, events(*range(floor + 1, last + 1)), said)
        assert await self.one.append([append]) == [None]

    async def trim_to(self, floor: int) -> None:
        """As the append script does it."""
        self.raw.xtrim(self.one.keys.log(KEY), minid=f"{floor + 1}-0", approximate=False)
        self.raw.hset(self.one.keys.run(KEY), "floor", str(floor))

    async def taken(self, cursor: int = 0, log: Log | None = None) -> Fill:
        fill = await (log or self.one).old.take(KEY, cursor)
        assert isinstance(fill, Fill), fill
        return fill

    async def where(self, cursor: int, most: int = 1000) -> tuple[str, list[int]]:
        found = await self.other.old.behind(KEY, cursor, most)
        return found.where, [found.gone] if found.where == "gone" else [event.seq for event in found.events]


async def _bench(url: str, *, lease_s: float = 3.0, old_s: float = 300.0) -> Bench:
    prefix = f"t{secrets.token_hex(4)}"
    store = Store(url, RedisOptions(prefix=prefix))
    await store.check()
    retention = RetentionOptions(old_s=old_s)
    logs = [Log(store, Keys(prefix, 64), retention, lease_s=lease_s, want_s=60.0) for _ in range(2)]
    return Bench(store, logs[0], logs[1], sync_redis.Redis.from_url(url), prefix)


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Bench]:
    made = await _bench(redis_url)
    yield made
    await made.store.close()
    made.raw.close()


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_what_lies_behind_a_cursor_is_found_wherever_it_is(bench: Bench) -> None:
    await bench.trimmed()
    assert await bench.where(0) == ("missing", [])
    assert await bench.where(99) == ("missing", [])
    assert await bench.where(100, 2) == ("log", [101, 102])
    assert await bench.where(150) == ("log", [])
    fill = await bench.taken(20)
    fill = await bench.one.old.write(fill, events(*range(21, 61)))
    assert (fill.upto, fill.floor, fill.full) == (60, 100, False)
    assert await bench.where(20, 3) == ("old", [21, 22, 23])
    assert await bench.where(59) == ("old", [60])
    assert await bench.where(60) == ("missing", [])
    assert await bench.where(19) == ("missing", [])  # before its beginning it says nothing
    fill = await bench.one.old.write(fill, events(*range(61, 101)))
    assert fill.full
    assert await bench.where(60) == ("old", list(range(61, 101)))
    assert await bench.where(100, 1) == ("log", [101])


async def test_a_hole_of_the_upstreams_own_before_the_log_is_passed(bench: Bench) -> None:
    await bench.trimmed(100, contiguous="0")
    fill = await bench.one.old.write(await bench.taken(), events(5, 90), upto=100)
    assert fill.full
    assert await bench.where(0) == ("old", [5, 90])
    assert await bench.where(90, 1) == ("log", [101])
    assert await bench.where(95, 1) == ("log", [101])


async def test_what_is_gone_is_said_only_where_nobody_has_it(bench: Bench) -> None:
    await bench.trimmed()
    fill = await bench.one.old.write(await bench.taken(), events(*range(1, 41)))
    fill = await bench.one.old.write(fill, gone=60, upto=60)
    await bench.one.old.write(fill, events(*range(61, 101)))
    assert await bench.where(0) == ("old", list(range(1, 41)))  # not one page across the hole
    assert await bench.where(39) == ("old", [40])
    assert await bench.where(40) == ("gone", [60])
    assert await bench.where(55) == ("gone", [60])
    assert await bench.where(60) == ("old", list(range(61, 101)))


async def test_what_the_log_still_has_is_never_gone(bench: Bench) -> None:
    await bench.trimmed()
    fill = await bench.one.old.write(await bench.taken(), gone=140, upto=100)
    assert fill.full
    assert (await bench.one.states([KEY]))[0].gone == 100  # type: ignore[union-attr]
    assert await bench.where(0) == ("gone", [100])
    assert await bench.where(100, 1) == ("log", [101])


async def test_a_log_whose_state_was_lost_knows_its_floor(bench: Bench) -> None:
    await bench.trimmed()
    bench.raw.delete(bench.one.keys.run(KEY))
    assert await bench.where(0) == ("missing", [])
    assert await bench.where(100, 1) == ("log", [101])
    with pytest.raises(LogMoved):
        await bench.one.old.take(KEY, 0)
    claim = await bench.other.claim(KEY)
    assert isinstance(claim, Claim)
    assert claim.state.floor == 100
    assert (await bench.one.states([KEY]))[0].floor == 100  # type: ignore[union-attr]


async def test_an_operators_trim_is_seen_in_a_run_without_holes(bench: Bench) -> None:
    await bench.trimmed()
    bench.raw.xtrim(bench.one.keys.log(KEY), minid="121-0", approximate=False)
    assert await bench.where(110) == ("missing", [])
    assert (await bench.taken(110)).floor == 120


async def test_a_run_that_starts_above_1_is_asked_for_its_head_once(bench: Bench) -> None:
    await bench.trimmed()
    fill = await bench.one.old.write(await bench.taken(), upto=100, starts=101)
    assert fill.full
    assert await bench.where(0, 1) == ("log", [101])
    bench.raw.delete(bench.one.keys.old(KEY), bench.one.keys.fill(KEY))
    assert await bench.where(0, 1) == ("log", [101])
    assert await bench.one.old.take(KEY, 0) is None


async def test_a_start_that_the_log_no_longer_holds_moves_no_floor(bench: Bench) -> None:
    await bench.trimmed()
    await bench.one.old.write(await bench.taken(), upto=60, starts=61)
    assert await bench.where(0) == ("missing", [])
    assert (await bench.one.states([KEY]))[0].floor == 100  # type: ignore[union-attr]


async def test_a_trim_that_trims_nothing_moves_no_floor(redis_url: str) -> None:
    """A run that starts above 1, and a cap that is passed without a whole node to let go."""
    bench = await _bench(redis_url)
    log = Log(bench.store, bench.one.keys, RetentionOptions(live_events=20), lease_s=3.0, want_s=60.0)
    claim = await log.claim(KEY)
    assert isinstance(claim, Claim)
    assert claim.lease is not None
    assert await log.append([Append(claim.lease, 0, events(*range(5000, 5050)), {"contiguous": "0"})]) == [None]
    assert (await log.states([KEY]))[0].floor == 0  # type: ignore[union-attr]
    assert (await bench.where(0))[0] == "log"
    await bench.store.close()
    bench.raw.close()


# ── who may fill ────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_one_fills_at_a_time_in_the_whole_fleet(bench: Bench) -> None:
    await bench.trimmed()
    answers = await asyncio.gather(*((bench.one, bench.other)[i % 2].old.take(KEY, i) for i in range(20)))
    assert sum(isinstance(answer, Fill) for answer in answers) == 1
    assert all(0 < answer <= 3.0 for answer in answers if isinstance(answer, float))


async def test_a_frozen_filler_that_wakes_up_writes_nothing(redis_url: str) -> None:
    bench = await _bench(redis_url, lease_s=0.05)
    await bench.trimmed()
    frozen = await bench.one.old.write(await bench.taken(), events(1, 2, 3))
    await asyncio.sleep(0.1)
    awake = await bench.taken(log=bench.other)
    assert (awake.start, awake.upto) == (0, 3)
    for write in (bench.one.old.write(frozen, events(4, 5)), bench.one.old.keep(frozen), bench.one.old.give_up(frozen)):
        with pytest.raises(LeaseLost):
            await write
    await bench.other.old.write(awake, events(4))
    with pytest.raises(LeaseLost):
        await bench.one.old.write(frozen, events(4, 5))
    assert await bench.where(0) == ("old", [1, 2, 3, 4])
    await bench.store.close()
    bench.raw.close()


async def test_a_filler_whose_lease_ran_out_unnoticed_goes_on(redis_url: str) -> None:
    bench = await _bench(redis_url, lease_s=1.0)
    await bench.trimmed()
    fill = await bench.taken()
    await asyncio.sleep(1.1)
    fill = await bench.one.old.write(fill, events(1))
    assert isinstance(await bench.other.old.take(KEY, 0), float)
    await bench.store.close()
    bench.raw.close()


async def test_a_right_given_up_is_free_at_once(bench: Bench) -> None:
    await bench.trimmed()
    fill = await bench.one.old.write(await bench.taken(), events(1, 2))
    await bench.one.old.give_up(fill)
    assert (await bench.taken(log=bench.other)).upto == 2


async def test_a_right_that_ends_too_late_is_pulled_back(redis_url: str) -> None:
    """Redis' clock was set back, and its filler is dead: nobody waits longer for that."""
    bench = await _bench(redis_url, lease_s=0.1)
    await bench.trimmed()
    await bench.taken()
    now_s = bench.raw.time()[0]
    bench.raw.hset(bench.one.keys.fill(KEY), "until", str((now_s + 3600) * 1000))
    assert await bench.other.old.take(KEY, 0) == 0.1
    await asyncio.sleep(0.15)
    await bench.taken(log=bench.other)
    await bench.store.close()
    bench.raw.close()


@pytest.mark.parametrize("prev", [0, 2, 4, 99])
async def test_a_write_that_does_not_continue_what_is_there_is_refused_whole(bench: Bench, prev: int) -> None:
    await bench.trimmed()
    fill = await bench.one.old.write(await bench.taken(), events(1, 2, 3))
    with pytest.raises(LogMoved):
        await bench.one.old.write(replace(fill, upto=prev), events(100))
    assert await bench.where(0) == ("old", [1, 2, 3])


@pytest.mark.parametrize("seqs", [(5, 4), (4, 4), (3,), (5, 6, 6)])
async def test_seqs_that_do_not_rise_write_nothing(bench: Bench, seqs: tuple[int, ...]) -> None:
    await bench.trimmed()
    fill = await bench.one.old.write(await bench.taken(), events(1, 2, 3))
    with pytest.raises(Exception, match="seqs must rise"):
        await bench.one.old.write(fill, events(*seqs))
    assert await bench.where(0) == ("old", [1, 2, 3])


@pytest.mark.parametrize("lost", ["old", "fill"])
async def test_half_of_it_lost_is_all_of_it_lost(bench: Bench, lost: str) -> None:
    """The stream without its note says nothing, nor does the note without its stream: it is filled anew."""
    await bench.trimmed()
    fill = await bench.one.old.write(await bench.taken(), events(1, 2, 3))
    bench.raw.delete(getattr(bench.one.keys, lost)(KEY))
    assert await bench.where(0) == ("missing", [])
    with pytest.raises((LogMoved, LeaseLost)):
        await bench.one.old.write(fill, events(4))
    await asyncio.sleep(0)
    bench.raw.delete(bench.one.keys.fill(KEY))
    again = await bench.taken(2)
    assert (again.start, again.upto) == (2, 2)
    await bench.one.old.write(again, events(3, 4))
    assert await bench.where(2) == ("old", [3, 4])
    assert await bench.where(0) == ("missing", [])


async def test_a_tail_of_it_that_was_taken_away_is_noticed(bench: Bench) -> None:
    await bench.trimmed()
    await bench.one.old.write(await bench.taken(), events(*range(1, 51)), upto=100)
    bench.raw.xdel(bench.one.keys.old(KEY), *(f"{seq}-0" for seq in range(40, 51)))
    assert await bench.where(39) == ("missing", [])
    assert await bench.where(0) == ("missing", [])


# ── beginning, going on ─────────────────────────────────────────────────────────────────────────────────────────────
async def test_it_starts_at_the_cursor_that_asks_and_anew_from_the_beginning_for_a_lower_one(bench: Bench) -> None:
    await bench.trimmed()
    fill = await bench.one.old.write(await bench.taken(80), events(*range(81, 101)))
    await bench.one.old.give_up(fill)
    assert await bench.one.old.take(KEY, 80) is None
    assert await bench.one.old.take(KEY, 95) is None
    fill = await bench.taken(40, bench.other)
    assert (fill.start, fill.upto) == (0, 0)
    assert await bench.where(80) == ("missing", [])
    fill = await bench.other.old.write(fill, events(*range(1, 91)))
    assert await bench.where(80) == ("old", list(range(81, 91)))


async def test_it_starts_behind_what_is_known_to_be_gone(bench: Bench) -> None:
    await bench.trimmed(gone="30")
    assert await bench.where(0) == ("gone", [30])
    fill = await bench.taken(10)
    assert (fill.start, fill.upto) == (30, 30)
    fill = await bench.one.old.write(fill, events(*range(31, 41)))
    await bench.one.old.give_up(fill)
    again = await bench.taken(10, bench.other)  # who asks for more than there is does not make it start anew
    assert (again.start, again.upto) == (30, 40)


async def test_it_is_extended_when_the_log_is_trimmed_further(bench: Bench) -> None:
    await bench.trimmed()
    fill = await bench.one.old.write(await bench.taken(), events(*range(1, 101)))
    assert fill.full
    await bench.trim_to(130)
    assert await bench.where(0) == ("old", list(range(1, 101)))
    assert await bench.where(100) == ("missing", [])
    await bench.one.old.give_up(fill)
    fill = await bench.taken(100, bench.other)
    assert (fill.start, fill.upto, fill.floor) == (0, 100, 130)
    fill = await bench.other.old.write(fill, events(*range(101, 131)))
    assert await bench.where(99) == ("old", list(range(100, 131)))
    assert await bench.where(130, 1) == ("log", [131])


async def test_a_trim_while_it_is_filled_is_told_to_the_filler(bench: Bench) -> None:
    await bench.trimmed()
    fill = await bench.one.old.write(await bench.taken(), events(*range(1, 51)))
    await bench.trim_to(120)
    fill = await bench.one.old.write(fill, events(*range(51, 101)))
    assert (fill.upto, fill.floor, fill.full) == (100, 120, False)


async def test_a_flush_in_the_middle_stops_the_filler(own_redis: object) -> None:
    bench = await _bench(own_redis.url)  # type: ignore[attr-defined]
    await bench.trimmed()
    fill = await bench.one.old.write(await bench.taken(), events(1, 2))
    bench.raw.flushall()
    with pytest.raises(LeaseLost):
        await bench.one.old.write(fill, events(3))
    assert await bench.where(1) == ("log", [])
    bench.lease = None
    await bench.trimmed(0, 9)
    assert await bench.where(1, 2) == ("log", [2, 3])
    await bench.store.close()
    bench.raw.close()


async def test_seqs_beyond_what_a_double_can_hold_keep_their_place(bench: Bench) -> None:
    await bench.trimmed(BIG + 5, BIG + 8)
    fill = await bench.taken(BIG)
    assert (fill.start, fill.floor) == (BIG, BIG + 5)
    fill = await bench.one.old.write(fill, events(BIG + 1, BIG + 2, BIG + 3))
    assert (fill.upto, fill.full) == (BIG + 3, False)
    assert await bench.where(BIG + 2) == ("old", [BIG + 3])
    assert await bench.where(BIG + 4) == ("missing", [])
    assert await bench.where(BIG + 5, 1) == ("log", [BIG + 6])
    bench.raw.delete(bench.one.keys.run(KEY))
    claim = await bench.other.claim(KEY)
    assert isinstance(claim, Claim)
    assert claim.state.floor == BIG + 5


@pytest.mark.parametrize(
    "seq", ["0", "1", "9", "10", "100", "101", "1000", "5040", str(2**53 + 1), "9223372036854775807"]
)
def test_the_seq_before_is_counted_exactly(redis_url: str, seq: str) -> None:
    prelude = Script("behind").text.partition("-- What lies behind")[0]
    with sync_redis.Redis.from_url(redis_url) as raw:
        assert int(raw.eval(f"{prelude} return before(ARGV[1])", 0, seq)) == max(0, int(seq) - 1)  # type: ignore[no-untyped-call]


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_it_lives_as_long_as_it_is_written_or_read_and_not_longer(redis_url: str) -> None:
    bench = await _bench(redis_url, old_s=2.0)
    await bench.trimmed()
    await bench.one.old.write(await bench.taken(), events(*range(1, 101)))
    names = [bench.one.keys.old(KEY), bench.one.keys.fill(KEY)]
    for _ in range(4):
        await asyncio.sleep(0.6)
        assert (await bench.where(0, 1))[0] == "old"
    assert all(0 < bench.raw.pttl(name) <= 2000 for name in names)
    async with asyncio.timeout(60):
        while bench.raw.exists(*names):
            await asyncio.sleep(0.1)
    assert await bench.where(0) == ("missing", [])
    await bench.store.close()
    bench.raw.close()


async def test_every_key_of_it_expires_and_lies_in_the_slot_of_its_run(bench: Bench) -> None:
    await bench.trimmed()
    fill = await bench.taken()
    for _ in range(2):
        found = list(bench.raw.scan_iter(f"{bench.prefix}:*"))
        assert bench.one.keys.fill(KEY).encode() in found
        assert [key for key in found if bench.raw.pttl(key) <= 0] == []
        fill = await bench.one.old.write(fill, events(fill.upto + 1))
    assert {key.partition(b"{")[2].partition(b"}")[0] for key in found} == {b"p%02d" % bench.one.keys.partition(KEY)}


def test_scripts_that_count_are_given_what_they_count_with() -> None:
    for name in COUNTING:
        assert Script(name).text.startswith("-- Put before every script that counts.")
