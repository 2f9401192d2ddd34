"""What the log's scripts know of lost rows where seqs are given here, against a real server.

Another server answers (`doubt`), or somebody has seen more than there is (`seen`): then only a new generation is written.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pytest
import redis as sync_redis

from relay.core.errors import LogMoved
from relay.core.events import Event
from relay.core.ids import RunKey
from relay.store.embedded import EmbeddedServer
from relay.store.keys import Keys
from relay.store.log import Append, Claim, Log, LogState, Seen
from relay.store.options import RedisOptions, RetentionOptions
from relay.store.redis import Store

KEY = RunKey("main", "r1")


@dataclass
class Bench:
    """An owner, another process, and a plain client to lose things behind their backs."""

    store: Store
    owner: Log
    other: Log
    raw: sync_redis.Redis
    keys: Keys

    async def owned(self, log: Log | None = None, seen: Seen | None = None) -> Claim:
        claim = await (log or self.owner).claim(KEY, seen=seen or Seen())
        assert isinstance(claim, Claim)
        return claim

    async def append(self, claim: Claim, prev: int, *seqs: int, **fields: str) -> Exception | None:
        assert claim.lease is not None
        events = [Event(seq, "message.delta", b"{}") for seq in seqs]
        return (await self.owner.append([Append(claim.lease, prev, events, fields)]))[0]

    async def state(self) -> LogState:
        state = (await self.owner.states([KEY]))[0]
        assert state is not None
        return state

    async def wrote_and_lost(self, claim: Claim, kept: int, lost: int) -> None:
        """Events 1..kept, and up to `lost`, of which the log knows nothing any more."""
        log = self.keys.log(KEY)
        assert await self.append(claim, 0, *range(1, kept + 1)) is None
        as_it_was = self.raw.dump(log)
        assert await self.append(claim, kept, *range(kept + 1, lost + 1)) is None
        self.raw.restore(log, 0, as_it_was, replace=True)


async def _bench(url: str) -> Bench:
    prefix = f"t{secrets.token_hex(4)}"
    store, keys = Store(url, RedisOptions(prefix=prefix)), Keys(prefix, 64)
    await store.check()
    logs = [Log(store, keys, RetentionOptions(), lease_s=30.0, want_s=60.0) for _ in range(2)]
    return Bench(store, logs[0], logs[1], sync_redis.Redis.from_url(url), keys)


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Bench]:
    made = await _bench(redis_url)
    yield made
    await made.store.close()
    made.raw.close()


async def test_a_log_short_of_what_was_seen_takes_only_a_new_generation(bench: Bench) -> None:
    claim = await bench.owned()
    await bench.wrote_and_lost(claim, 3, 5)
    await bench.other.note_seen({KEY: (Seen(5, claim.state.born), "")})
    assert isinstance(await bench.append(claim, 3, 4), LogMoved)
    assert claim.lease is not None
    assert isinstance((await bench.owner.renew([(claim.lease, 3)]))[KEY], LogMoved)
    with pytest.raises(LogMoved):
        await bench.owner.seal(claim.lease, prev=3, status="completed")
    again = await bench.owned()
    assert again.fields["seen"] == "5"
    assert isinstance(await bench.append(again, 3, generation="5"), LogMoved), "5 was seen"
    assert await bench.append(again, 3, generation="1000") is None
    assert await bench.append(again, 3, 1000) is None
    assert again.lease is not None
    assert (await bench.owner.renew([(again.lease, 1000)]))[KEY] is None


async def test_what_the_log_holds_or_an_earlier_generation_had_is_no_loss(bench: Bench) -> None:
    claim = await bench.owned()
    assert await bench.append(claim, 0, 1, 2, 3) is None
    await bench.other.note_seen({KEY: (Seen(3, claim.state.born), "")})
    assert await bench.append(claim, 3, 4) is None
    assert await bench.append(claim, 4, generation="1000") is None
    await bench.other.note_seen({KEY: (Seen(900, claim.state.born), "")})
    assert await bench.append(claim, 4, 1000) is None
    assert bench.raw.hget(bench.keys.run(KEY), "seen") is None


async def test_a_claim_says_what_is_known_to_whoever_owns_the_run(bench: Bench) -> None:
    claim = await bench.owned()
    await bench.wrote_and_lost(claim, 2, 3)
    assert isinstance(await bench.other.claim(KEY, seen=Seen(3, claim.state.born)), float)
    assert isinstance(await bench.append(claim, 2, 3), LogMoved)


@pytest.mark.parametrize("length", [2, 9, 12])
async def test_another_log_is_known_by_its_birth_however_long_it_is(bench: Bench, length: int) -> None:
    first = await bench.owned()
    assert await bench.append(first, 0, 1, 2, 3) is None
    bench.raw.delete(bench.keys.log(KEY), bench.keys.run(KEY))
    second = await bench.owned()
    assert second.state.born != first.state.born
    assert await bench.append(second, 0, *range(1, length + 1)) is None
    assert (await bench.state()).lacks(Seen(3, first.state.born))
    assert not (await bench.state()).lacks(Seen(length, second.state.born))
    await bench.other.note_seen({KEY: (Seen(3, first.state.born), "")})
    assert isinstance(await bench.append(second, length, length + 1), LogMoved)
    third = await bench.owned()
    assert int(third.fields["seen"]) > length
    assert await bench.append(third, length, generation="1000") is None
    assert await bench.append(third, length, 1000) is None
    await bench.other.note_seen({KEY: (Seen(1000, first.state.born), "")})
    assert await bench.append(third, 1000, 1001) is None, "seqs from the clock are given once, whatever log it is"


async def test_a_sealed_log_that_lost_rows_is_opened_again(bench: Bench) -> None:
    first = await bench.owned()
    await bench.wrote_and_lost(first, 2, 3)
    assert first.lease is not None
    await bench.owner.seal(first.lease, prev=2, status="completed")
    assert (await bench.owned(bench.other, Seen(2, first.state.born))).lease is None
    again = await bench.owned(bench.other, Seen(3, first.state.born))
    assert again.lease is not None
    assert not again.state.sealed
    assert not (await bench.state()).sealed


async def test_what_was_seen_outlives_a_flush_but_not_for_ever(bench: Bench) -> None:
    await bench.other.note_seen({KEY: (Seen(7, "1"), "")})
    assert 0 < bench.raw.pttl(bench.keys.run(KEY)) <= 86_400_000  # type: ignore[operator]
    claim = await bench.owned()
    assert claim.fields["seen"] == "7"
    assert isinstance(await bench.append(claim, 0, 1), LogMoved)


async def test_who_takes_over_on_another_server_is_told_so(own_redis: EmbeddedServer) -> None:
    """A promotion gives the data a new history; so does a start of the server."""
    bench = await _bench(own_redis.url)
    claim = await bench.owned()
    assert await bench.append(claim, 0, 1) is None
    assert "doubt" not in (await bench.owned()).fields, "the same server"
    bench.raw.execute_command("REPLICAOF", "127.0.0.1", "1")
    bench.raw.execute_command("REPLICAOF", "NO", "ONE")
    claim = await bench.owned()
    assert claim.fields["doubt"] == "1"
    assert (await bench.owned()).fields["doubt"] == "1", "until an owner has said otherwise"
    claim = await bench.owned()
    assert await bench.append(claim, 1, doubt="0") is None
    assert (await bench.owned()).fields["doubt"] == "0"
    await bench.store.close()
    bench.raw.close()


async def test_a_server_that_loses_nothing_but_with_its_machine_is_doubted_when_that_started_anew(
    own_redis: EmbeddedServer,
) -> None:
    bench = await _bench(own_redis.url)
    knobs: dict[str, Any] = {"lease_s": 3.0, "want_s": 60.0}
    first, second = (
        Log(bench.store, bench.keys, RetentionOptions(), life=life, **knobs) for life in ("boot-1", "boot-2")
    )
    claim = await bench.owned(first)
    assert claim.lease is not None
    assert await first.append([Append(claim.lease, 0, [Event(1, "message.delta", b"{}")], {})]) == [None]
    await first.release([claim.lease])
    bench.raw.execute_command("REPLICAOF", "127.0.0.1", "1")
    bench.raw.execute_command("REPLICAOF", "NO", "ONE")
    claim = await bench.owned(first)
    assert "doubt" not in claim.fields
    assert claim.lease is not None
    await first.release([claim.lease])
    assert (await bench.owned(second)).fields["doubt"] == "1"
    await bench.store.close()
    bench.raw.close()


async def test_runs_that_their_upstream_numbers_know_none_of_this(bench: Bench) -> None:
    claim = await bench.owner.claim(KEY)
    assert isinstance(claim, Claim)
    assert not {"born", "life", "seen", "doubt"} & claim.fields.keys()
    assert not claim.state.lacks(Seen(100, ""))


async def test_a_user_who_may_not_ask_for_the_servers_history_can_claim_all_the_same(own_redis: EmbeddedServer) -> None:
    bench = await _bench(own_redis.url)
    assert "life" in (await bench.owned()).fields
    bench.raw.execute_command("ACL", "SETUSER", "default", "-info")
    assert (await bench.owned()).fields["life"] == "?"
    await bench.store.close()
    bench.raw.close()


async def test_the_seq_after_another(bench: Bench) -> None:
    lua = files("relay.store").joinpath("lua", "seqs.lua").read_text("utf-8")
    seqs = [*range(1, 120), 199, 999, 1099, 2**53 - 1, 2**53, 10**18 - 1, 1234567899999999]
    script = f"{lua}\nlocal found = {{}} for i, seq in ipairs(ARGV) do found[i] = after(seq) end return found"
    assert [int(one) for one in bench.raw.eval(script, 0, *seqs)] == [seq + 1 for seq in seqs]  # type: ignore[union-attr]
