"""Hub, follower, history and subscriptions against a real log: nothing is lost between history and live."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
import redis as sync_redis

from relay import telemetry
from relay.core.errors import StoreUnavailable
from relay.core.events import Event
from relay.core.filters import Types
from relay.core.ids import RunKey
from relay.core.window import Slice, Window
from relay.core.wires import Notice, Wire
from relay.fanout.hub import Hub
from relay.fanout.options import FanoutOptions
from relay.fanout.subscription import Subscription
from relay.fanout.topic import Topic
from relay.store.keys import Keys
from relay.store.log import Append, Claim, Lease, Log, LogState
from relay.store.old import Fill
from relay.store.options import RedisOptions, RetentionOptions
from relay.store.redis import Store

WIRE = Wire("ndjson")


@dataclass
class Wanted:
    """Stands in for the ingestor: nobody pumps here, the test writes the log itself."""

    watched: list[RunKey] = field(default_factory=list)
    wanted: list[RunKey] = field(default_factory=list)
    probed: list[RunKey] = field(default_factory=list)
    asked: list[tuple[RunKey, int]] = field(default_factory=list)

    def watch(self, key: RunKey) -> None:
        self.watched.append(key)

    def unwatch(self, key: RunKey) -> None:
        self.watched.remove(key)

    def want(self, key: RunKey) -> None:
        raise AssertionError("only who creates a run says so")

    def orphaned(self, key: RunKey) -> None:
        self.wanted.append(key)

    async def probe(self, key: RunKey) -> None:
        self.probed.append(key)

    async def decided(self, key: RunKey) -> None:
        return

    def fetch(self, key: RunKey, after_seq: int) -> None:
        self.asked.append((key, after_seq))


class CountingLog(Log):
    reads = 0
    most = 0
    bells = True

    async def read(self, requests: Sequence[tuple[RunKey, int, int]], *, what: str = "read") -> list[list[Event]]:
        self.reads += len(requests)
        self.most = max(self.most, *(most for _, _, most in requests))
        return await super().read(requests, what=what)


@dataclass
class Bench:
    hub: Hub
    log: CountingLog
    wanted: Wanted
    store: Store

    async def write(self, key: RunKey, upto: int, *, start: int = 0, size: int = 1, seal: bool = False) -> None:
        claim = await self.log.claim(key)
        assert isinstance(claim, Claim)
        assert claim.lease is not None
        prev = claim.state.last_seq or start
        events = [
            Event(seq, "a" if seq % 2 else "b", b'"%b%d"' % (b"x" * size, seq)) for seq in range(prev + 1, upto + 1)
        ]
        for i in range(0, len(events), 500):
            await self._append(claim.lease, prev, events[i : i + 500])
            prev = events[i : i + 500][-1].seq
        if seal:
            await self.log.seal(claim.lease, prev=upto, status="completed")

    async def _append(self, lease: Lease, prev: int, events: list[Event]) -> None:
        assert await self.log.append([Append(lease, prev, events, {"status": "running"})]) == [None]


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        yield await _bench(stack, redis_url, FanoutOptions(check_s=0.2, page_bytes=4096, window_bytes=8192))


async def _bench(stack: AsyncExitStack, redis_url: str, options: FanoutOptions) -> Bench:
    prefix = f"t{secrets.token_hex(4)}"
    store = Store(redis_url, RedisOptions(prefix=prefix))
    stack.push_async_callback(store.close)
    await store.check()
    log = CountingLog(store, Keys(prefix, 8), RetentionOptions(), lease_s=3.0, want_s=60.0)
    wanted = Wanted()
    hub = Hub(store, log, wanted, options)
    tasks = await stack.enter_async_context(asyncio.TaskGroup())
    stack.callback(tasks.create_task(hub.run()).cancel)
    return Bench(hub, log, wanted, store)


def key() -> RunKey:
    return RunKey("main", secrets.token_hex(6))


async def read_all(bench: Bench, topic: Topic, cursor: int, upto: int, types: Types | None = None) -> list[int]:
    """Everything a subscription gives from `cursor` until it stands at `upto`."""
    subscription = bench.hub.subscribe(topic, cursor, WIRE, types)
    seen: list[int] = []
    async with asyncio.timeout(60):
        while subscription.cursor < upto:
            part = await step(subscription)
            if part is None:
                await topic.changed(1.0)
            elif isinstance(part, bytes):
                seen += [int(line.strip(b'"x')) for line in part.splitlines()]
    return seen


async def step(subscription: Subscription) -> bytes | Notice | None:
    part = await subscription.read_back() if subscription.behind else subscription.take()
    return part.data if part is not None and not isinstance(part, Notice) else part


async def test_readers_at_any_cursor_get_everything_behind_it_while_it_is_written(bench: Bench) -> None:
    run, chance = key(), random.Random(3)
    await bench.write(run, 300)
    async with bench.hub.topic(run) as topic:
        readers = [asyncio.ensure_future(read_all(bench, topic, cursor, 1500)) for cursor in (0, 1, 299, 300, 150, 700)]
        for upto in [*sorted(chance.sample(range(301, 1500), 30)), 1500]:
            await bench.write(run, upto)
        for reader, cursor in zip(readers, (0, 1, 299, 300, 150, 700), strict=True):
            assert await reader == list(range(cursor + 1, 1501))
        assert topic.window.floor > 0


async def test_filters_skip_without_losing_the_place(bench: Bench) -> None:
    run = key()
    await bench.write(run, 200)
    async with bench.hub.topic(run) as topic:
        assert await read_all(bench, topic, 0, 200, Types(("a",))) == list(range(1, 201, 2))


async def test_growth_is_found_when_every_bell_is_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = key()
    async with bench.hub.topic(run) as topic:
        for ear in bench.hub._follower._bells._ears.values():
            monkeypatch.setattr(ear, "_heard", lambda bells: None)
        await bench.write(run, 50, seal=True)
        assert await read_all(bench, topic, 0, 50) == list(range(1, 51))
        async with asyncio.timeout(60):
            while not topic.sealed:
                await topic.changed(1.0)


async def test_bells_are_heard_again_after_their_connection_broke(bench: Bench) -> None:
    run = key()
    async with bench.hub.topic(run) as topic:
        await bench.write(run, 5)
        assert await read_all(bench, topic, 0, 5) == [1, 2, 3, 4, 5]
        await bench.store.run("test", [("CLIENT", "KILL", "TYPE", "pubsub")])
        await bench.write(run, 9)
        assert await read_all(bench, topic, 5, 9) == [6, 7, 8, 9]


async def test_two_hundred_late_joiners_share_each_page(bench: Bench) -> None:
    run = key()
    await bench.write(run, 3000, size=50, seal=True)
    async with bench.hub.topic(run) as topic:
        bench.log.reads = 0
        answers = await asyncio.gather(*(read_all(bench, topic, 0, 3000) for _ in range(200)))
        assert all(answer == list(range(1, 3001)) for answer in answers)
        assert bench.log.reads < 3000 * 60 / 4096 * 3


async def test_a_reader_that_gives_up_in_the_middle_of_a_shared_read_takes_nobody_along(bench: Bench) -> None:
    run = key()
    await bench.write(run, 2000, size=20)
    async with bench.hub.topic(run) as topic:
        readers = [asyncio.ensure_future(read_all(bench, topic, 0, 2000)) for _ in range(20)]
        await asyncio.sleep(0)
        for reader in readers[::2]:
            reader.cancel()
        assert all(seen == list(range(1, 2001)) for seen in await asyncio.gather(*readers[1::2]))


async def test_windows_are_bounded_however_much_passes(redis_url: str) -> None:
    async with AsyncExitStack() as stack:
        bench = await _bench(stack, redis_url, FanoutOptions(window_bytes=20_000, memory_bytes=40_000, check_s=0.2))
        runs = [key() for _ in range(8)]
        topics = [await stack.enter_async_context(bench.hub.topic(run)) for run in runs]
        for run in runs:
            await bench.write(run, 400, size=100)
        for topic in topics:
            assert await read_all(bench, topic, 399, 400) == [400]
        await bench.write(runs[0], 410, size=100)
        assert await read_all(bench, topics[0], 400, 410) == list(range(401, 411))
        assert sum(topic.window.size for topic in topics) < 45_000
        assert await read_all(bench, topics[1], 0, 400) == list(range(1, 401))


async def test_a_trimmed_head_is_announced_and_the_rest_delivered(bench: Bench) -> None:
    run = key()
    claim = await bench.log.claim(run)
    assert isinstance(claim, Claim)
    assert claim.lease is not None
    events = [Event(seq, "a", b'"%d"' % seq) for seq in range(101, 111)]
    assert await bench.log.append(
        [Append(claim.lease, 0, events, {"floor": "100", "gone": "100", "contiguous": "0"})]
    ) == [None]
    async with bench.hub.topic(run) as topic:
        subscription = bench.hub.subscribe(topic, 40, WIRE, None)
        notice = await subscription.read_back()
        assert isinstance(notice, Notice)
        assert (notice.type, notice.id, notice.data["from_seq"], notice.data["to_seq"]) == ("relay.reset", 100, 41, 100)
        assert await read_all(bench, topic, subscription.cursor, 110) == list(range(101, 111))


async def trim(bench: Bench, run: RunKey, floor: int) -> None:
    """As the append script does it at the cap."""
    log, state = bench.log.keys.log(run), bench.log.keys.run(run)
    await bench.store.run("t", [("XTRIM", log, "MINID", f"{floor + 1}-0"), ("HSET", state, "floor", str(floor))])


async def refill(bench: Bench, run: RunKey, cursor: int, upto: int) -> Fill:
    """What whoever fills reads from an upstream whose events are those of `Bench.write`."""
    fill = await bench.log.old.take(run, cursor)
    assert isinstance(fill, Fill)
    events = [Event(seq, "a" if seq % 2 else "b", b'"x%d"' % seq) for seq in range(fill.upto + 1, upto + 1)]
    return await bench.log.old.write(fill, events)


async def test_readers_of_a_trimmed_head_ask_once_and_read_along_while_it_is_fetched(bench: Bench) -> None:
    run = key()
    await bench.write(run, 400)
    await trim(bench, run, 300)
    async with bench.hub.topic(run) as topic:
        cursors = [50, 50, 50, 120, 299, 300, 350]
        readers = [asyncio.ensure_future(read_all(bench, topic, cursor, 450)) for cursor in cursors]
        async with asyncio.timeout(60):
            while (run, 50) not in bench.wanted.asked:  # before that there is nothing to read along with
                await asyncio.sleep(0.01)
        for upto in (100, 130, 299, 300):
            await asyncio.sleep(0.1)
            fill = await refill(bench, run, 50, upto)
            await bench.log.old.give_up(fill)
        await bench.write(run, 450)
        for reader, cursor in zip(readers, cursors, strict=True):
            assert await reader == list(range(cursor + 1, 451))
        assert {one for one, _ in bench.wanted.asked} == {run}
        assert min(cursor for _, cursor in bench.wanted.asked) == 50
        assert max(cursor for _, cursor in bench.wanted.asked) == 299


async def test_a_crowd_that_waits_for_a_trimmed_head_asks_redis_once_a_second(bench: Bench) -> None:
    run = key()
    await bench.write(run, 200)
    await trim(bench, run, 100)
    async with bench.hub.topic(run) as topic:
        began = time.monotonic()
        readers = [asyncio.ensure_future(read_all(bench, topic, 10, 220)) for _ in range(100)]
        for upto in range(201, 221):
            await asyncio.sleep(0.02)
            await bench.write(run, upto)  # each wakes everybody who waits
        assert len(bench.wanted.asked) <= 2 + (time.monotonic() - began)
        await refill(bench, run, 10, 100)
        assert all(seen == list(range(11, 221)) for seen in await asyncio.gather(*readers))


async def test_a_head_trimmed_before_it_was_published_leaves_no_hole_in_the_window(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The follower comes late, and the log has moved on: what it missed is fetched again for who was there before."""
    run = key()
    await bench.write(run, 100)
    async with bench.hub.topic(run) as topic:
        assert await read_all(bench, topic, 90, 100) == list(range(91, 101))
        with monkeypatch.context() as patch:
            patch.setattr(bench.hub._follower, "_publish", lambda topics, since: asyncio.sleep(0))
            await bench.write(run, 300)
            await trim(bench, run, 250)
            await asyncio.sleep(0.1)
        reader = asyncio.ensure_future(read_all(bench, topic, 100, 310))
        await bench.write(run, 310)
        async with asyncio.timeout(60):
            while not bench.wanted.asked:
                await asyncio.sleep(0.01)
        assert topic.window.floor >= 250
        await refill(bench, run, 100, 250)
        assert await reader == list(range(101, 311))


async def test_what_was_fetched_and_lost_again_upstream_is_read_before_the_reset(bench: Bench) -> None:
    run = key()
    await bench.write(run, 100)
    await trim(bench, run, 80)
    async with bench.hub.topic(run) as topic:
        fill = await refill(bench, run, 0, 30)
        fill = await bench.log.old.write(fill, upto=50, gone=50)
        await bench.log.old.write(fill, [Event(seq, "a", b'"x%d"' % seq) for seq in range(51, 81)])
        subscription = bench.hub.subscribe(topic, 0, WIRE, None)
        topic.mean_bytes = 1.0  # one page each
        seen = [await subscription.read_back() for _ in range(3)]
        assert isinstance(seen[0], Slice)
        assert (seen[0].upto, seen[0].sent) == (30, 30)
        assert isinstance(seen[1], Notice)
        assert seen[1].data == {"from_seq": 31, "to_seq": 50, "reason": "trimmed"}
        assert isinstance(seen[2], Slice)
        assert (seen[2].upto, seen[2].sent) == (80, 30)


async def test_of_a_run_never_seen_few_events_are_read_and_then_as_many_as_fit(redis_url: str) -> None:
    """They may be of any size: a page of 64 could be half a gigabyte."""
    async with AsyncExitStack() as stack:
        bench = await _bench(stack, redis_url, FanoutOptions())
        run = key()
        await bench.write(run, 600)
        async with bench.hub.topic(run) as topic:
            subscription = bench.hub.subscribe(topic, 0, WIRE, None)
            bench.log.most = 0
            first, second = [await subscription.read_back() for _ in range(2)]
            assert isinstance(first, Slice)
            assert isinstance(second, Slice)
            assert (first.sent, second.sent) == (8, 512)


async def test_of_a_run_with_large_events_few_are_read_at_once(redis_url: str) -> None:
    async with AsyncExitStack() as stack:
        bench = await _bench(stack, redis_url, FanoutOptions(page_bytes=65_536))
        run = key()
        await bench.write(run, 40, size=200_000)
        async with bench.hub.topic(run) as topic:
            subscription = bench.hub.subscribe(topic, 0, WIRE, None)
            bench.log.most = 0
            pages = [await subscription.read_back() for _ in range(3)]
            assert [page.sent for page in pages if isinstance(page, Slice)] == [8, 4, 4]
            assert bench.log.most == 8


async def test_it_is_waited_for_what_lies_behind_a_cursor_but_not_for_ever(bench: Bench) -> None:
    run = key()
    await bench.write(run, 100)
    await trim(bench, run, 80)
    async with bench.hub.topic(run) as topic:
        assert await bench.hub.reachable(topic, 80, 0.2)
        assert await bench.hub.reachable(topic, 100, 0.2)
        assert not await bench.hub.reachable(topic, 10, 0.2)
        waiting = asyncio.ensure_future(bench.hub.reachable(topic, 10, 5.0))
        await asyncio.sleep(0.05)
        await refill(bench, run, 10, 12)
        assert await waiting


async def test_a_run_is_wanted_while_it_is_watched_and_only_then(bench: Bench) -> None:
    run = key()
    async with bench.hub.topic(run):
        async with bench.hub.topic(run):
            assert bench.wanted.watched == [run, run]
        assert bench.wanted.watched == [run]
    assert bench.wanted.watched == []
    assert bench.hub.describe() == []
    await bench.write(run, 3, seal=True)
    async with bench.hub.topic(run) as topic:
        assert topic.sealed
        assert bench.wanted.watched == []


async def test_a_log_that_vanished_is_asked_for_again(bench: Bench) -> None:
    run = key()
    await bench.write(run, 3)
    async with bench.hub.topic(run) as topic:
        await bench.store.run("test", [("DEL", bench.log.keys.log(run), bench.log.keys.run(run))])
        async with asyncio.timeout(60):
            while run not in bench.wanted.wanted:
                await asyncio.sleep(0.02)
        await bench.write(run, 6)
        assert await read_all(bench, topic, 3, 6) == [4, 5, 6]
        assert await read_all(bench, topic, 0, 6) == [1, 2, 3, 4, 5, 6]


async def test_a_reader_beyond_the_end_of_a_sealed_run_has_the_upstream_asked(bench: Bench) -> None:
    run = key()
    await bench.write(run, 3, seal=True)
    async with bench.hub.topic(run) as topic:
        await bench.hub.settle(topic, 3)
        assert bench.wanted.probed == []
        await bench.hub.settle(topic, 9)
        assert bench.wanted.probed == [run]


async def test_a_reader_that_comes_as_the_last_one_leaves_does_not_silence_the_bells(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's word that we left must not be taken for the server having moved the channel."""
    other, run = key(), key()
    lost = telemetry.STORE_ERRORS.labels("bells")._value.get()
    async with bench.hub.topic(other) as kept:
        for _ in range(50):
            async with bench.hub.topic(run):
                pass
        async with bench.hub.topic(run) as topic:
            monkeypatch.setattr(bench.hub._follower, "_check", lambda topics: asyncio.sleep(0))
            await bench.write(run, 3)
            await bench.write(other, 3)
            assert await read_all(bench, topic, 0, 3) == [1, 2, 3]
            assert await read_all(bench, kept, 0, 3) == [1, 2, 3]
    assert telemetry.STORE_ERRORS.labels("bells")._value.get() == lost


async def test_an_answer_older_than_what_was_published_is_no_loss(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = key()
    await bench.write(run, 3)
    async with bench.hub.topic(run) as topic:
        old = await bench.log.states([run])
        asked, go_on = asyncio.Event(), asyncio.Event()

        async def late(keys: Sequence[RunKey]) -> list[LogState | None]:
            asked.set()
            await go_on.wait()
            return old

        with monkeypatch.context() as patch:
            patch.setattr(bench.log, "states", late)
            checking = asyncio.ensure_future(bench.hub._follower._check([topic]))
            await asked.wait()
        await bench.write(run, 6)
        assert await read_all(bench, topic, 3, 6) == [4, 5, 6]
        bench.wanted.wanted.clear()
        go_on.set()
        await checking
        assert bench.wanted.wanted == []
        assert topic.state.last_seq >= 3


async def test_a_request_that_outlives_the_hub_is_refused_and_crashes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.fanout.hub._READY_S", 0.2)
    async with bench.hub.topic(key()):
        running = [task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == "Hub.run"]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        with pytest.raises(StoreUnavailable):
            async with bench.hub.topic(key()):
                pass


async def test_no_page_crosses_into_a_new_generation(bench: Bench) -> None:
    """The rows of the old one may still lie before it: whoever stood among them must hear of it first."""
    run = key()
    await bench.write(run, 10)
    async with bench.hub.topic(run) as topic:
        claim = await bench.log.claim(run)
        assert isinstance(claim, Claim)
        assert claim.lease is not None
        first = 1_700_000_000_000_000
        fields = {"generation": str(first), "floor": str(first - 1), "gone": str(first - 1)}
        assert await bench.log.append([Append(claim.lease, 10, [], fields)]) == [None]
        await bench._append(claim.lease, 10, [Event(seq, "a", b'"%d"' % seq) for seq in (first, first + 1)])
        assert (await bench.hub._history.read(topic, 4, 100)).where == "gone"
        await topic.refresh()
        seen = await read_all(bench, topic, first - 1, first + 1)
        assert seen == [first, first + 1]


async def test_a_log_nobody_can_read_is_the_trouble_of_its_own_readers_alone(bench: Bench, redis_url: str) -> None:
    odd, good = key(), key()
    await bench.write(good, 3)
    await bench.write(odd, 3)
    with sync_redis.Redis.from_url(redis_url) as raw:
        raw.delete(bench.log.keys.log(odd))
        raw.set(bench.log.keys.log(odd), "mine")
    async with bench.hub.topic(good) as topic, bench.hub.topic(odd) as other:
        bench.hub._follower._ring(other, state=True)
        other.window = Window(0)
        bench.hub._follower._ring(other, state=False)
        await bench.write(good, 6)
        assert await read_all(bench, topic, 0, 6) == [1, 2, 3, 4, 5, 6]
