"""Snapshots of a watched run against a real log: in O(state), by few calls, whatever became of the log's head."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest

from relay.core.events import Event, decode, encode
from relay.core.fold import Fold
from relay.core.ids import RunKey
from relay.core.wires import Notice, Wire
from relay.fanout.hub import Hub
from relay.fanout.options import FanoutOptions
from relay.fanout.subscription import Subscription
from relay.ingest.folds import Folds, _Counted
from relay.store.keys import Keys
from relay.store.log import Append, Claim, Lease, Log
from relay.store.options import RedisOptions, RetentionOptions
from relay.store.redis import ScriptCall, Store
from tests.fanout.test_fanout import Wanted, key
from tests.support.runs import long_run

WIRE = Wire("ndjson")


class CountingStore(Store):
    """Knows what was asked of Redis, and how many bytes of logs and folds came."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls: list[str] = []
        self.rows = 0
        """Of logs, that came with folds."""

    async def call(self, what: str, calls: Sequence[ScriptCall]) -> list[Any]:
        self.calls.append(what)
        answers = await super().call(what, calls)
        if what == "folded":
            self.rows += sum(len(answer[3]) for answer in answers)
        return answers

    async def run(self, what: str, *args: Any, **kwargs: Any) -> list[Any]:
        self.calls.append(what)
        return await super().run(what, *args, **kwargs)


class World:
    """One Redis; hubs that stand for processes of viewers; an owner who writes."""

    def __init__(self, stack: AsyncExitStack, url: str, prefix: str) -> None:
        self._stack = stack
        self._url = url
        self._prefix = prefix
        self.lease: Lease | None = None
        self.events: list[Event] = []

    async def store(self) -> CountingStore:
        store = CountingStore(self._url, RedisOptions(prefix=self._prefix))
        self._stack.push_async_callback(store.close)
        await store.check()
        return store

    async def log(self, cap: int = 1_000_000) -> Log:
        return Log(
            await self.store(), Keys(self._prefix, 8), RetentionOptions(live_events=cap), lease_s=3.0, want_s=60.0
        )

    async def hub(self) -> tuple[Hub, CountingStore]:
        store = await self.store()
        log = Log(store, Keys(self._prefix, 8), RetentionOptions(), lease_s=3.0, want_s=60.0)
        hub = Hub(store, log, Wanted(), FanoutOptions(check_s=60.0))
        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._stack.callback(tasks.create_task(hub.run()).cancel)
        return hub, store

    async def claim(self, log: Log, run: RunKey) -> Claim:
        claim = await log.claim(run)
        assert isinstance(claim, Claim)
        assert claim.lease is not None
        self.lease = claim.lease
        return claim

    async def write(self, log: Log, events: Sequence[Event], fields: dict[str, str] | None = None) -> None:
        assert self.lease is not None
        for i in range(0, max(1, len(events)), 500):
            part = events[i : i + 500]
            prev = self.events[-1].seq if self.events else 0
            append = Append(self.lease, prev, part, {"status": "running", "primed": "1", **(fields or {})})
            assert await log.append([append]) == [None]
            self.events += part

    async def fold(self, log: Log) -> None:
        """What an owner does once a second."""
        assert self.lease is not None
        await Folds(log, lambda: {self.lease: self.events[-1].seq} if self.lease else {}).look()


@pytest.fixture
async def world(redis_url: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(stack, redis_url, f"t{key().run_id}")


def shown(events: Iterable[Event], fold: Fold | None = None) -> Any:
    return decode(encode((fold or Fold()).extend(events).data()))


async def first_frame(subscription: Subscription) -> bytes:
    assert subscription.behind
    async with asyncio.timeout(60):
        while (part := await subscription.read_back()) is None:
            await subscription.topic.changed(0.2)
    assert not isinstance(part, Notice)
    return part.data


def snapshot_of(line: bytes) -> tuple[dict[str, Any], Fold]:
    body = decode(line)
    assert body.pop("type") == "relay.snapshot"
    fold = Fold.restored(encode(body))
    assert fold is not None
    return body, fold


async def test_a_late_joiner_on_a_run_of_68_000_deltas_costs_its_state_not_its_history(world: World) -> None:
    run, words = key(), ["The ", "quick ", "brown ", "fox ", "jumps"]
    events = long_run(68_000, words)[:-1]
    log = await world.log()
    await world.claim(log, run)
    for start in range(0, len(events), 20_000):  # folded on the way, as its owner does
        await world.write(log, events[start : start + 20_000])
        await world.fold(log)
    hub, store = await world.hub()
    async with hub.topic(run) as topic:
        store.calls.clear()
        frame = await first_frame(hub.subscribe(topic, 0, WIRE, None, snapshot=True))
        asked = list(store.calls)
        assert asked == ["folded"], "one round trip to Redis"
        state = sum(len(words[i % 5]) for i in range(68_000))
        assert len(frame) <= 1.2 * state + 4096
        body, fold = snapshot_of(frame)
        assert body == shown(events)
        store.calls.clear()  # and the next one, and a hundred more who come with it, cost none
        again = [await first_frame(hub.subscribe(topic, 0, WIRE, None, snapshot=True)) for _ in range(100)]
        assert all(other is again[0] for other in again)
        assert not store.calls
        tail = [
            Event(68_002, "message.delta", encode({"seq": 68_002, "type": "message.delta", "data": {"content": "!"}}))
        ]
        await world.write(log, tail)
        assert shown(tail, fold) == shown([*events, *tail])


async def test_a_fold_goes_on_with_the_window_and_asks_redis_for_nothing(world: World) -> None:
    run, events = key(), long_run(400, ["w "])
    log = await world.log()
    await world.claim(log, run)
    await world.write(log, events[:100])
    hub, store = await world.hub()
    async with hub.topic(run) as topic:
        for upto in (100, 101, 250, 402):
            await world.write(log, events[len(world.events) : upto])
            async with asyncio.timeout(60):
                while topic.last_seq < upto:
                    await topic.refresh()
                    await topic.changed(0.2)
            store.calls.clear()
            body, _ = snapshot_of(await first_frame(hub.subscribe(topic, 0, WIRE, None, snapshot=True)))
            assert body == shown(events[:upto])
            assert "folded" not in store.calls or upto == 100


async def test_a_reader_who_resumes_gets_no_snapshot(world: World) -> None:
    run = key()
    log = await world.log()
    await world.claim(log, run)
    await world.write(log, long_run(5, ["w "]))
    hub, _ = await world.hub()
    async with hub.topic(run) as topic:
        subscription = hub.subscribe(topic, 3, WIRE, None, snapshot=True)
        part = await subscription.read_back()
        assert part is not None
        assert not isinstance(part, Notice)
        assert [decode(line)["seq"] for line in part.data.splitlines()] == [4, 5, 6, 7]


async def test_a_fold_that_cannot_be_read_is_done_without(world: World) -> None:
    run, events = key(), long_run(3000, ["w "])
    log = await world.log()
    await world.claim(log, run)
    await world.write(log, events)
    assert world.lease is not None
    assert await log.keep_fold(world.lease, 1, 2000, b'{"not":"a fold"}')
    hub, _ = await world.hub()
    async with hub.topic(run) as topic:
        body, _ = snapshot_of(await first_frame(hub.subscribe(topic, 0, WIRE, None, snapshot=True)))
        assert body == shown(events)
    await world.fold(log)
    assert await log.fold_seqs([run]) == [2000], "nor is anything folded onto it"


# --- logs nobody can fetch again -------------------------------------------------------------------------------------
OWN = {"ingest_cursor": "{}"}


async def test_what_nobody_can_fetch_again_is_trimmed_only_once_it_is_folded(world: World) -> None:
    run, events = key(), long_run(2000, ["word "])
    log = await world.log(cap=300)
    await world.claim(log, run)
    await world.write(log, events[:1000], OWN)
    assert len((await log.read([(run, 0, 5000)]))[0]) == 1000, "nothing was folded yet, so nothing may go"
    await world.fold(log)
    await world.write(log, events[1000:1250], OWN)
    kept = (await log.read([(run, 0, 5000)]))[0]
    assert kept[0].seq > 1, "what is folded may go"
    assert kept[0].seq <= 1001, "and nothing else"
    for start in range(1250, len(events), 250):
        await world.fold(log)
        await world.write(log, events[start : start + 250], OWN)
    [state] = await log.states([run])
    assert state is not None
    assert state.floor > 1001
    hub, _ = await world.hub()
    async with hub.topic(run) as topic:
        body, _ = snapshot_of(await first_frame(hub.subscribe(topic, 0, WIRE, None, snapshot=True)))
        assert body == shown(events), "nothing is missing, although its rows are gone for ever"


async def test_a_new_generation_is_folded_and_trimmed_as_the_first_one_was(world: World) -> None:
    run, first = key(), 1_000_000
    log = await world.log(cap=300)
    await world.claim(log, run)
    await world.write(log, long_run(100, ["old "]), OWN)
    await world.write(log, [], {**OWN, "generation": str(first), "floor": str(first - 1), "gone": str(first - 1)})
    new = [Event(first + i, "message.delta", b'{"seq":%d,"data":{}}' % (first + i)) for i in range(2000)]
    for start in range(0, len(new), 250):
        await world.write(log, new[start : start + 250], OWN)
        await world.fold(log)
    assert await log.fold_seqs([run]) == [new[-1].seq]
    assert len((await log.read([(run, 0, 5000)]))[0]) < 1000


async def test_what_can_be_fetched_again_is_trimmed_as_ever(world: World) -> None:
    run = key()
    log = await world.log(cap=300)
    await world.claim(log, run)
    await world.write(log, long_run(1000, ["word "]))
    assert len((await log.read([(run, 0, 5000)]))[0]) < 600


async def test_a_new_generation_is_announced_and_its_snapshot_follows(world: World) -> None:
    run = key()
    log = await world.log()
    claim = await world.claim(log, run)
    old = long_run(50, ["old "])
    await world.write(log, old, OWN)
    assert claim.lease is not None
    assert await log.keep_fold(claim.lease, 1, old[-1].seq, encode(Fold().extend(old).data()))
    hub, _ = await world.hub()
    async with hub.topic(run) as topic:
        reader = hub.subscribe(topic, 0, WIRE, None, snapshot=True)
        snapshot_of(await first_frame(reader))
        plain = hub.subscribe(topic, old[-1].seq, WIRE, None)
        first = 1_000_000
        await world.write(log, [], {**OWN, "generation": str(first), "floor": str(first - 1), "gone": str(first - 1)})
        new = [
            Event(
                first + i,
                event.type,
                event.json.replace(b"old ", b"new ").replace(b'"seq":%d,' % event.seq, b'"seq":%d,' % (first + i)),
            )
            for i, event in enumerate(long_run(20, ["old "]))
        ]
        await world.write(log, new, OWN)
        async with asyncio.timeout(60):
            while not reader.behind:
                await topic.refresh()
                await topic.changed(0.2)
        for subscription in (reader, plain):
            reset = await subscription.read_back()
            assert isinstance(reset, Notice)
            assert reset.data == {"from_seq": 1, "to_seq": first - 1, "reason": "rewritten"}
        body, _ = snapshot_of(await first_frame(reader))
        assert (body["since_seq"], body["as_of_seq"]) == (first - 1, new[-1].seq)
        assert body == shown(new, Fold(first - 1))
        follows = await plain.read_back()
        assert follows is not None
        assert not isinstance(follows, Notice)
        assert len(follows.data.splitlines()) == len(new), "who did not ask for a fold gets the whole run again"


# --- the owner's side ------------------------------------------------------------------------------------------------
async def test_only_the_owner_may_keep_a_fold_and_never_an_older_one(world: World) -> None:
    run = key()
    log = await world.log()
    first = (await world.claim(log, run)).lease
    assert first is not None
    await world.write(log, long_run(10, ["w "]))
    assert await log.keep_fold(first, 1, 8, b"{}")
    assert not await log.keep_fold(first, 1, 7, b"{}"), "an older one"
    assert not await log.keep_fold(first, 2, 9, b"{}"), "of another generation"
    assert not await log.keep_fold(first, 1, 100, b"{}"), "of events that this server's log does not hold"
    await log.release([first])
    other = await world.log()
    claim = await world.claim(other, run)
    assert claim.fields["fold"] == "", "a claim does not carry it"
    assert claim.fields["fold_seq"] == "8"
    assert not await log.keep_fold(first, 1, 9, b"{}"), "of an owner that was replaced"


async def test_folds_are_written_at_a_bounded_rate_and_short_runs_have_none(world: World) -> None:
    run = key()
    log = await world.log()
    await world.claim(log, run)
    seq, folded = 0, []
    folds = Folds(log, lambda: {world.lease: seq} if world.lease else {})
    events = long_run(6000, ["word "])
    for upto in range(100, 6000, 100):
        await world.write(log, events[upto - 100 : upto])
        seq = upto
        await folds.look()
        [at] = await log.fold_seqs([run])
        folded.append(at)
    assert folded[0] == folded[1] == 0, "two hundred rows are no more than a fold would be"
    steps = sorted({*folded} - {0})
    assert steps[-1] >= 4500
    assert all(after - before >= 500 for before, after in itertools.pairwise(steps)), steps


async def test_rows_behind_a_fold_are_read_in_bounded_pieces(world: World) -> None:
    run = key()
    log = await world.log()
    await world.claim(log, run)
    events = [Event(seq, "llm.request", b'{"seq":%d,"data":"%b"}' % (seq, b"x" * 100_000)) for seq in range(1, 101)]
    for start in range(0, 100, 10):
        await world.write(log, events[start : start + 10])
    found = await log.folded(run, 0)
    assert len(found.events) == 16, "a megabyte is enough for one call"
    assert found.more
    seen = list(found.events)
    while found.more:
        found = await log.folded(run, seen[-1].seq)
        seen += found.events
    assert seen == events


async def test_the_next_owner_goes_on_from_the_stored_fold(world: World) -> None:
    run, events = key(), long_run(3000, ["word "])
    log = await world.log()
    first = (await world.claim(log, run)).lease
    assert first is not None
    await world.write(log, events[:1500])
    await world.fold(log)
    await log.release([first])
    other = await world.log()
    await world.claim(other, run)
    await world.write(other, events[1500:])
    await world.fold(other)
    found = await other.folded(run, 0)
    fold = Fold.restored(found.fold)
    assert fold is not None
    assert fold.as_of_seq == 3002
    assert shown([], fold) == shown(events)


async def test_what_passed_since_the_last_look_is_folded_without_reading_it_back(world: World) -> None:
    run, events = key(), long_run(6000, ["word ", "é"])
    store = await world.store()
    log = Log(store, Keys(world._prefix, 8), RetentionOptions(), lease_s=3.0, want_s=60.0)
    await world.claim(log, run)
    folds = Folds(log, lambda: {world.lease: world.events[-1].seq} if world.lease else {})
    asked = []
    for upto in range(1500, 6001, 1500):
        for start in range(upto - 1500, upto, 500):
            await world.write(log, events[start : start + 500])
            if start != 3500:  # not heard here: as if another owner had written it
                folds.heard(run, start and events[start - 1].seq, events[start : start + 500])
        store.rows = 0
        await folds.look()
        asked.append(store.rows)
        fold = Fold.restored((await log.folded(run, 0)).fold)
        assert fold is not None
        assert (fold.as_of_seq, shown([], fold)) == (upto, shown(events[:upto]))
    assert asked == [1500, 0, 1500, 0]


async def test_a_run_that_was_not_folded_at_this_look_is_not_held_until_the_next(world: World) -> None:
    run, events = key(), long_run(2000, ["word "])
    log = await world.log()
    await world.claim(log, run)
    await world.write(log, events[:1500])
    folds = Folds(log, lambda: {world.lease: world.events[-1].seq} if world.lease else {})
    await folds.look()
    await world.write(log, events[1500:1510])
    folds.heard(run, 1500, events[1500:1510])
    await folds.look()
    folds.heard(run, 1510, events[1510:1520])
    assert not folds._recent._tails
    assert folds._recent._size == 0


async def test_what_was_heard_under_another_lease_is_not_folded(world: World) -> None:
    """Between the two somebody else may have written other rows under the same seqs, and a server lost ours."""
    run, events = key(), long_run(3000, ["word "])[:3000]
    log = await world.log()
    await world.claim(log, run)
    await world.write(log, events[:1500])
    folds = Folds(log, lambda: {world.lease: world.events[-1].seq} if world.lease else {})
    await folds.look()
    false = [Event(event.seq, event.type, event.json.replace(b"word", b"lost")) for event in events[1500:3000]]
    folds.heard(run, 1500, false)
    await log.release([cast(Lease, world.lease)])
    await world.claim(log, run)
    await world.write(log, events[1500:3000])
    await folds.look()
    fold = Fold.restored((await log.folded(run, 0)).fold)
    assert fold is not None
    assert (fold.as_of_seq, shown([], fold)) == (3000, shown(events))


async def test_what_is_folded_in_one_turn_of_the_loop_is_bounded_in_bytes_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = long_run(100, ["word " * 4000])
    folded: list[int] = []
    extend = Fold.extend

    def noting(self: Fold, part: Sequence[Event]) -> None:
        folded.append(sum(len(event.json) for event in part))
        extend(self, part)

    monkeypatch.setattr(Fold, "extend", noting)
    await _Counted().onto(Fold(), events)
    assert sum(folded) == sum(len(event.json) for event in events)
    assert max(folded) < 131_072 + max(len(event.json) for event in events)
