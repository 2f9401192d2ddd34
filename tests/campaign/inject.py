"""Doing one round: the fault itself, and its record (what, on what, from when to when)."""

from __future__ import annotations

import asyncio
import random
import signal
import time
import zlib
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Any

import redis

from tests.campaign.fleet import Relay
from tests.campaign.plan import Round
from tests.campaign.proxy import Link
from tests.campaign.servers import Node, Redises
from tests.campaign.stage import Stage
from tests.support import upstream_faults as faults
from tests.support.clocks import HOUR

Detail = dict[str, Any]
PARTITIONS = 64


_WITHIN_S = 11 * HOUR


def _jump_s(chance: random.Random) -> float:
    """Seconds, a minute, minutes, hours; there or back."""
    low, high = chance.choice([(0.5, 10), (10, 90), (120, 1800), (HOUR, 10 * HOUR)])
    return chance.choice([1, -1]) * chance.uniform(low, high)


def keys_of(prefix: str, run: str) -> dict[str, str]:
    """The names docs/log.md promises."""
    tag = f"{prefix}:{{p{zlib.crc32(f'main/{run}'.encode()) % PARTITIONS:02d}}}"
    return {"log": f"{tag}:log:main:{run}", "run": f"{tag}:run:main:{run}"}


class Injector:
    def __init__(
        self,
        relays: list[Relay],
        redises: Redises,
        upstream_links: list[Link],
        reader_links: list[Link],
        stage: Stage,
        following: dict[str, list[dict[str, Any]]],
        prefix: str,
        record: Callable[[Detail], None],
    ) -> None:
        self._relays = relays
        self._redises = redises
        self._upstream_links = upstream_links
        self._reader_links = reader_links
        self._stage = stage
        self._following = following
        self._prefix = prefix
        self._record = record
        self._standing = asyncio.Semaphore(max(1, len(relays) - 1))
        """At least one relay is always alive, so that readers have somewhere to go."""
        self._locks: dict[object, asyncio.Lock] = {}
        redises.restarted = self._restarted
        self._days_s = 0.0
        """How far ahead all clocks of Redis are, apart from the hours by which single ones differ."""

    async def inject(self, round: Round) -> None:
        part, _, what = round.kind.partition(".")
        do: Callable[[Round, str], Awaitable[Detail]] = getattr(self, f"_{part}")
        record: Detail = {"n": round.number, "kind": round.kind, "planned": round.at}
        try:
            detail = await do(round, what)
        except (
            OSError,
            TimeoutError,
            redis.RedisError,
            RuntimeError,
            IndexError,
            KeyError,
            ZeroDivisionError,
        ) as error:
            detail = {"t0": time.monotonic(), "failed": repr(error)}
        self._record({**record, "t1": time.monotonic(), **detail})

    def _restarted(self, node: Node, began: float, ended: float) -> None:
        """A fault of its own: as any kill of a master it may move its shard."""
        number = self._redises.nodes.index(node)
        fault = {"n": 0, "kind": "redis.kill_master", "planned": 0.0, "node": number, "why": "its clock was set back"}
        self._record({**fault, "t0": began, "t1": ended})

    @asynccontextmanager
    async def _alone(self, *what: object) -> Any:
        """Two faults of one kind on one thing come one after the other."""
        async with self._locks.setdefault(what, asyncio.Lock()):
            yield

    def owner_of(self, slot: int) -> int | None:
        streams = self._following.get(self._stage.current[slot % len(self._stage.current)])
        return streams[-1]["relay"] if streams else None

    def owned_by(self, relay: int) -> list[str]:
        return [run for run, streams in self._following.items() if any(s["relay"] == relay for s in streams)]

    # ── relay processes ─────────────────────────────────────────────────────────────────────────────────────────
    async def _relay(self, round: Round, what: str) -> Detail:
        index = round.relay
        if what == "clock":
            return await self._relay_clock(round)
        if what.endswith("_owner"):
            owner = self.owner_of(round.slot)
            index = round.relay if owner is None else owner
        if what == "kill_two":
            both = [index, (index + 1) % len(self._relays)]
            details = await asyncio.gather(*(self._hurt(one, "kill", round.seconds) for one in both))
            return {**details[0], "relays": both}
        return await self._hurt(index, what.removesuffix("_owner"), round.seconds)

    async def _hurt(self, index: int, what: str, seconds: float) -> Detail:
        async with self._alone("relay", index), self._standing:
            relay = self._relays[index]
            detail = {"t0": time.monotonic(), "relay": index, "owned": self.owned_by(index), "pid": relay.pid}
            if what.startswith("stop"):
                await relay.freeze(seconds)
            else:
                await relay.take_down(signal.SIGKILL if what == "kill" else signal.SIGTERM, seconds)
            detail["t1"] = time.monotonic()
            with suppress(TimeoutError):
                await relay.ready(10)
            return detail

    async def _relay_clock(self, round: Round) -> Detail:
        """Whatever a relay takes for the time is nobody's concern, so it may stay wrong by any amount."""
        async with self._alone("clock", round.relay):
            chance, clock = random.Random(round.pick), self._relays[round.relay].clock
            by_s, before = chance.choice([1, 40]) * _jump_s(chance), clock.offset_s
            detail: Detail = {"t0": time.monotonic(), "relay": round.relay, "by_s": by_s}
            clock.jump(by_s)
            await asyncio.sleep(round.seconds)
            if chance.random() < 0.5:
                clock.set(before)
            return {**detail, "ahead_s": clock.offset_s}

    # ── Redis ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def _redis(self, round: Round, what: str) -> Detail:
        async with self._alone("redis"):
            masters = await self._redises.masters()
            node = masters[round.pick % len(masters)]
            detail: Detail = {"t0": time.monotonic(), "node": self._redises.nodes.index(node)}
            detail |= await getattr(self, f"_redis_{what}")(round, node, masters) or {}
            detail["t1"] = time.monotonic()
            with suppress(TimeoutError):
                await self._redises.whole()
            if what in ("failover", "kill_master", "kill", "clock", "clock_days") and self._redises.kind != "single":
                detail["t1"] = time.monotonic()  # until then an old master may still take writes
            return detail

    async def _redis_kill(self, round: Round, node: Node, _: list[Node]) -> None:
        node.kill()
        await asyncio.sleep(round.seconds)
        await node.start()

    async def _redis_kill_master(self, round: Round, node: Node, masters: list[Node]) -> None:
        await self._redis_kill(round, node, masters)

    async def _redis_failover(self, round: Round, *_: Any) -> Detail:
        return {"answer": await self._redises.failover(round.pick)}

    async def _redis_stop(self, round: Round, node: Node, _: list[Node]) -> None:
        node.signal(signal.SIGSTOP)
        await asyncio.sleep(round.seconds)
        node.signal(signal.SIGCONT)

    async def _redis_pause(self, round: Round, node: Node, _: list[Node]) -> None:
        mode = random.Random(round.pick).choice(["ALL", "WRITE"])
        await node.client.execute_command("CLIENT", "PAUSE", int(round.seconds * 1000), mode)
        await asyncio.sleep(round.seconds)

    async def _redis_oom(self, round: Round, _: Node, masters: list[Node]) -> None:
        await self._configured(masters, "maxmemory", "1", "0", round.seconds)

    async def _redis_noreplicas(self, round: Round, _: Node, masters: list[Node]) -> None:
        await self._configured(masters, "min-replicas-to-write", "9", "0", round.seconds)

    async def _configured(self, masters: list[Node], name: str, bad: str, good: str, seconds: float) -> None:
        for node in masters:
            await node.client.execute_command("CONFIG", "SET", name, bad)
        await asyncio.sleep(seconds)
        for node in self._redises.nodes:
            await node.client.execute_command("CONFIG", "SET", name, good)

    async def _redis_flushall(self, _: Round, __: Node, masters: list[Node]) -> None:
        for node in masters:
            await node.client.execute_command("FLUSHALL")

    async def _redis_script_flush(self, _: Round, __: Node, masters: list[Node]) -> None:
        for node in masters:
            await node.client.execute_command("SCRIPT", "FLUSH")

    async def _redis_client_kill(self, _: Round, node: Node, __: list[Node]) -> Detail:
        return {"killed": await node.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")}

    async def _redis_bells_kill(self, _: Round, node: Node, __: list[Node]) -> Detail:
        return {"killed": await node.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")}

    async def _redis_clock(self, round: Round, node: Node, _: list[Node]) -> Detail:
        """One server's clock or all of them, by seconds to hours, for a while or for good."""
        chance = random.Random(round.pick)
        nodes = chance.choice([self._redises.nodes, [node], [chance.choice(self._redises.nodes)]])
        before, by_s = [each.clock.offset_s for each in nodes], _jump_s(chance)
        for each in nodes:
            # All stay within less than a day of each other: then no key expires by this (see `_redis_clock_days`).
            far = abs(each.clock.offset_s + by_s - self._days_s) > _WITHIN_S
            each.clock.jump(-by_s if far else by_s)
        ahead = [each.clock.offset_s - self._days_s for each in nodes]
        await asyncio.sleep(round.seconds)
        stays = chance.random() < 0.5
        for each, offset_s in zip(nodes, before, strict=True):
            each.clock.set(each.clock.offset_s if stays else offset_s)
        return {"nodes": [self._redises.nodes.index(each) for each in nodes], "ahead_s": ahead, "stays": stays}

    async def _redis_clock_days(self, round: Round, *_: Any) -> Detail:
        """All clocks, so far ahead that every key has expired: a loss like a flush. Half of the time they come back."""
        chance = random.Random(round.pick)
        by_s = chance.uniform(50, 80) * HOUR
        stays = chance.random() < 0.5
        for jump_s in (by_s,) if stays else (by_s, -by_s):
            self._days_s += jump_s
            for node in self._redises.nodes:
                node.clock.jump(jump_s)
            await asyncio.sleep(round.seconds)
        return {"by_s": by_s, "stays": stays}

    async def _redis_lose_log(self, round: Round, _: Node, masters: list[Node]) -> Detail:
        return await self._lose(round, "log", masters)

    async def _redis_lose_state(self, round: Round, _: Node, masters: list[Node]) -> Detail:
        return await self._lose(round, "run", masters)

    async def _lose(self, round: Round, which: str, masters: list[Node]) -> Detail:
        run = self._stage.current[round.slot]
        for node in masters:
            with suppress(redis.ResponseError):  # MOVED: another node's slot
                return {"run": run, "gone": await node.client.execute_command("DEL", keys_of(self._prefix, run)[which])}
        return {"run": run, "failed": "no node holds it"}

    # ── links ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def _store_link(self, round: Round, what: str) -> Detail:
        links, owner = self._redises.link_of(round.relay)
        if owner is not None and what != "cut":
            links = [links[round.pick % len(links)]]  # shared by all: one node is hurt, for everybody
        return await self._break(links, what, round, owner, relay=round.relay if owner is None else None)

    async def _upstream_link(self, round: Round, what: str) -> Detail:
        return await self._break([self._upstream_links[round.relay]], what, round, None, relay=round.relay)

    async def _reader_link(self, round: Round, what: str) -> Detail:
        return await self._break([self._reader_links[round.relay]], what, round, None, relay=round.relay)

    async def _break(self, links: list[Link], what: str, round: Round, owner: object, *, relay: int | None) -> Detail:
        async with self._alone("link", links[0].name):
            detail: Detail = {"t0": time.monotonic(), "relay": relay, "link": [link.name for link in links]}
            if what == "cut":
                return {**detail, "cut": sum(link.cut(owner) for link in links)}
            chance = random.Random(round.pick)
            state: dict[str, Any] = {
                "dark": {"dark": chance.choice([("up", "down"), ("up", "down"), ("up",), ("down",)])},
                "replies_lost": {"dark": ("down",)},
                "latency": {"latency_s": chance.uniform(0.02, 0.3)},
                "slow": {"bandwidth": chance.uniform(4_000, 40_000)},
                "refuse": {"refusing": True},
            }[what]
            for link in links:
                link.fail(**state)
            cut = what == "refuse" and sum(link.cut(owner) for link in links)
            await asyncio.sleep(round.seconds)
            # A long partition ends with connections that are dead on one side; a short one is only a delay.
            torn = (what == "dark" and chance.random() < 0.5) or what == "replies_lost"
            torn_count = sum(link.cut(owner) for link in links) if torn else 0
            for link in links:
                link.fail()
            return {**detail, "state": state, "cut": int(cut) + torn_count}

    # ── the upstream ────────────────────────────────────────────────────────────────────────────────────────────
    async def _upstream(self, round: Round, what: str) -> Detail:
        chance = random.Random(round.pick)
        run = self._stage.current[round.slot]
        detail: Detail = {"t0": time.monotonic(), "run": run}
        if what == "outage":
            await self._stage.call("outage", seconds=round.seconds)
            await asyncio.sleep(round.seconds + 0.1)
            return {**detail, "run": None}
        if what == "chaos":
            await self._stage.call("chaos", seed=round.pick, run_id=run, count=chance.randint(2, 6), stall_s=0.5)
        else:
            fault = self._fault(what, round.seconds, chance)
            await self._stage.call("fault", fault=asdict(fault), run_id=run, times=1)
        cut = int(await self._stage.call("cut_now", run_id=run))
        return {**detail, "cut": cut, "t1": time.monotonic() + round.seconds}

    def _fault(self, what: str, seconds: float, chance: random.Random) -> faults.Fault:
        n = chance.randint(0, 12)
        makes: dict[str, Callable[[], faults.Fault]] = {
            "cut": lambda: faults.cut(after_events=n, how=chance.choice(["rst", "drop"])),
            "eof": lambda: faults.clean_eof(after_events=n),
            "junk": lambda: faults.junk_eof(after_events=n),
            "half": lambda: faults.half_frame(after_events=n, then=chance.choice(["rst", "drop", "eof"])),
            "stall": lambda: faults.stall(after_events=n, for_s=seconds),
            "5xx": lambda: faults.status(chance.choice([500, 502, 503, 504])),
            "429": lambda: faults.status(429, retry_after=1),
            "html": lambda: faults.html(),
            "drip": lambda: faults.drip(),
            "crlf": lambda: faults.crlf(),
            "slow_answer": lambda: faults.slow_answer(seconds, target="events"),
            "resend": lambda: faults.duplicates(chance.randint(1, 20)),
            "resend_all": lambda: faults.ignore_after_seq(),
            "max_age": lambda: faults.max_age(seconds),
        }
        return makes[what]()
