"""The log: durable, append-only, one Redis stream per run, the seq as its id. Who may write is decided in Lua.

What an owner does: `claim` -> `append`… -> `seal` or `release`, and `renew` meanwhile. What a reader does: `states` and
`read`, and `old.behind` where the log no longer holds what it needs. Nothing here waits, retries or remembers; that is for
those who call (committer, pump, follower).
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import msgspec

from relay import telemetry
from relay.core.errors import LeaseLost, LogMoved, Unwanted
from relay.core.events import Event
from relay.core.ids import RunKey
from relay.store.entries import event_of, text
from relay.store.keys import Keys
from relay.store.old import Behind, Old
from relay.store.options import RetentionOptions
from relay.store.packing import packed, packed_append, packed_range, words
from relay.store.redis import Refused, ScriptCall, Store

_T = TypeVar("_T")
_UNREADABLE = (Refused, LookupError, TypeError, ValueError)
"""What reading a key of ours comes to that somebody else has written."""

_FOLDED_ROWS = 1024
_FOLDED_BYTES = 1_048_576
_LOOK_EVERY = 64
"""A log's length is looked at when its seqs pass a multiple of this (of less, where its cap is small): it costs as much as
a tenth of an append."""
_PAST_MS = 30 * 86_400_000
"""How long it is remembered that an own-seq run had a log: longer than any reader keeps a cursor."""
_ROADS = 20_000
"""How many runs' names are remembered: making them takes a checksum and three formats."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write a run: every write needs both the token and the fence to be those of the last claim."""

    key: RunKey
    owner: str
    fence: str


class Seen(NamedTuple):
    """The last event of an own-seq run that is known somewhere, and the log it was in."""

    seq: int = 0
    born: str = ""


class LogState(msgspec.Struct, frozen=True):
    """What Redis knows of a run."""

    last_seq: int = 0
    status: str = "running"
    status_known: bool = True
    """False if Redis lost what it knew of the run but not its log: the events themselves must tell."""
    sealed: bool = False
    primed: bool = False
    """Everything the upstream had when the run was first claimed is in the log."""
    contiguous: bool = True
    """False once a step in seq was confirmed."""
    floor: int = 0
    """The log does not hold events up to here: trimmed, lost, or gone upstream. `old` may (relay.store.old)."""
    gone: int = 0
    """Events up to here are known to be lost upstream too: nobody can ever have them again."""
    generation: int = 1
    """First seq of this life of an own-seq log; what has a lower one was rewritten and must be forgotten."""
    born: str = ""
    """Which log it is, of an own-seq run: after a flush it is another one. Empty for all other runs."""

    def rewritten(self, cursor: int) -> bool:
        """Whether a reader at `cursor` stands in an earlier life of the log."""
        return cursor < self.generation - 1

    def lacks(self, seen: Seen) -> bool:
        """Whether rows of an own-seq log that somebody has seen are gone, and no new generation has said so yet."""
        if not self.born or not seen.seq or self.rewritten(seen.seq):
            return False
        # Seqs from the clock are given once; those of a first generation are the same in every log there was.
        return self.last_seq < seen.seq or (self.generation == 1 and seen.born not in ("", self.born))


class Claim(msgspec.Struct, frozen=True):
    lease: Lease | None
    """None: the run is sealed, there is nothing to write."""
    state: LogState
    fields: dict[str, str] = {}
    """The whole run hash: what an own-seq run's ingest needs to go on (thread, ingest cursor)."""


class Scan(msgspec.Struct, frozen=True):
    """What a look at all wants and leases found."""

    orphans: list[RunKey]
    """Wanted runs that nobody owns."""
    soonest_s: float | None
    """Until the next lease of a wanted run may end; None: there is none."""
    clocks: dict[str, float]
    """What each partition's server took for the time, in unix seconds."""


class Folded(msgspec.Struct, frozen=True):
    """A run's stored fold, if it is newer than what was known, and the events behind it."""

    generation: int
    floor: int
    """The log does not hold events up to here."""
    fold: bytes
    """Empty: none that is newer."""
    events: list[Event]
    more: bool
    """There may be more behind these."""


class Append(msgspec.Struct, frozen=True):
    """What one run has to say in a group commit. May hold no events, only changed `fields` of the run."""

    lease: Lease
    prev: int
    events: Sequence[Event]
    fields: dict[str, str]


class _Road:
    """What every event of a run needs: its names, and all of its two commands that stays the same."""

    __slots__ = ("append", "bell", "lease", "log", "member", "partition", "read", "run", "state")

    def __init__(self, keys: Keys, key: RunKey) -> None:
        self.log = keys.log(key)
        self.run = keys.run(key)
        self.bell = keys.bell(key)
        self.member = keys.member(key)
        self.partition = keys.partition(key)
        self.read = words("XRANGE", self.log)
        self.state = packed(("HMGET", self.run, *_STATE_FIELDS))
        self.lease: Lease | None = None
        """The one that `append` was packed for."""
        self.append = b""


def state_of(fields: dict[str, str], last_seq: int | None = None) -> LogState:
    return LogState(
        last_seq=int(fields.get("last_seq") or 0) if last_seq is None else last_seq,
        status=fields.get("status") or "running",
        status_known="status" in fields,
        sealed=fields.get("sealed") == "1",
        primed=fields.get("primed") == "1",
        contiguous=fields.get("contiguous") != "0",
        floor=int(fields.get("floor") or 0),
        gone=int(fields.get("gone") or 0),
        generation=int(fields.get("generation") or 1),
        born=fields.get("born") or "",
    )


_STATE_FIELDS = ("last_seq", "status", "sealed", "primed", "contiguous", "floor", "gone", "generation", "born", "fence")


class Log:
    def __init__(
        self,
        store: Store,
        keys: Keys,
        retention: RetentionOptions,
        *,
        lease_s: float,
        want_s: float,
        life: str = "",
    ) -> None:
        """`life`: what changes whenever this server may have lost rows; empty where only the server itself can tell."""
        self.keys = keys
        self._life = life
        self._store = store
        self._owner = secrets.token_urlsafe(12)
        self._unreadable: set[str] = set()
        """Keys of which that was said."""
        self._fence = 0
        """The highest fence we were ever given: with it, owner and fence together never come twice."""
        self._lease_ms = int(lease_s * 1000)
        self._want_ms = int(want_s * 1000)
        self._live_ms = int(retention.live_s * 1000)
        self._sealed_ms = int(retention.sealed_s * 1000)
        self.cap = retention.live_events
        """About how many events a log holds."""
        self.old = Old(store, keys, lease_s=lease_s, old_s=retention.old_s)
        self._look_every = max(1, min(_LOOK_EVERY, self.cap // 16))
        self._limits = words(self._live_ms, self.cap)
        self._no_limits = words(self._live_ms, 0)
        self._roads: dict[RunKey, _Road] = {}

    # --- the owner's side -------------------------------------------------------------------------------------------
    async def claim(self, key: RunKey, *, reopen: bool = False, seen: Seen | None = None) -> Claim | float:
        """The lease and what the log holds, or the seconds until another owner's lease ends.

        A sealed run is not claimed, unless it is to be reopened because the upstream may have more of it. `seen`, for runs
        whose events we number: what is known of it here. A log that lacks it has lost rows, and whoever owns it is told.
        """
        keys = (self.keys.leases(key), self.keys.run(key), self.keys.log(key), self.keys.wants(key))
        args = (
            self.keys.member(key),
            self._owner,
            self._lease_ms,
            self._live_ms,
            int(reopen),
            self._want_ms,
            self._fence,
            *(("", "") if seen is None else seen),
            self._life,
        )
        try:
            answer = (await self._call("claim", [ScriptCall(self._store.scripts["claim"], keys, args)]))[0]
        except BaseException:
            self._fence += 1  # it may have been given to us, and the server that knows of it may be gone
            raise
        if not answer[0]:
            return float(answer[1]) / 1000
        flat = [text(item) for item in answer[3]]
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        last_seq = int(answer[2])
        fence = text(answer[1])
        self._fence = max(self._fence, int(fence or 0))
        return Claim(Lease(key, self._owner, fence) if fence else None, state_of(fields, last_seq), fields)

    async def append(self, appends: Sequence[Append]) -> list[Exception | None]:
        """One round trip for many runs. Per run: None (durable now) or why it was refused."""
        calls = [self._packed_append(one) for one in appends]
        answers = await self._store.call_packed("append", calls)
        return [
            None if answer == b"OK" else _refusal(answer, one.lease.key)
            for answer, one in zip(answers, appends, strict=True)
        ]

    def _packed_append(self, one: Append) -> tuple[str, bytes]:
        road = self._road(one.lease.key)
        if road.lease is not one.lease:
            lease = road.lease = one.lease
            names = (road.log, road.run, road.bell)
            road.append = words("EVALSHA", self._store.scripts["append"].sha, 3, *names, lease.owner, lease.fence)
        every = self._look_every
        looks = one.events and one.events[-1].seq // every != one.prev // every
        limits = self._limits if looks else self._no_limits
        return road.log, packed_append(road.append, one.prev, limits, one.fields, one.events)

    def _road(self, key: RunKey) -> _Road:
        found = self._roads.get(key)
        if found is None:
            if len(self._roads) >= _ROADS:
                self._roads.clear()
            found = self._roads[key] = _Road(self.keys, key)
        return found

    async def seal(self, lease: Lease, *, prev: int, status: str) -> None:
        """The run is over. Raises LogMoved or LeaseLost."""
        key = lease.key
        road = self._road(key)
        keys = (road.log, road.run, road.bell, self.keys.leases(key), self.keys.wants(key))
        args = (lease.owner, lease.fence, prev, self._sealed_ms, status, self.keys.member(key))
        answers = await self._store.call("seal", [ScriptCall(self._store.scripts["seal"], keys, args)])
        refusal = _refusal(answers[0], key)
        if refusal is not None:
            raise refusal

    async def forget_leases(self) -> None:
        """Every lease is void: for a process that knows it is the only one (its own embedded server), at its start."""
        await self._store.run("forget", [("DEL", f"{tag}:leases") for tag in self.keys.tags()])

    async def renew(self, leases: Sequence[tuple[Lease, int]]) -> dict[RunKey, Exception | None]:
        """Keep leases (each with the last seq its owner wrote), one call per partition, one round trip.

        Per run: None, or LogMoved, LeaseLost, Unwanted (kept, but nobody wants it any more), StoreUnavailable.
        """
        by_partition: dict[int, list[tuple[Lease, int]]] = defaultdict(list)
        for lease, last_seq in leases:
            by_partition[self._road(lease.key).partition].append((lease, last_seq))
        groups = list(by_partition.values())
        answers = await self._store.call("renew", [self._renew_call(group) for group in groups])
        result: dict[RunKey, Exception | None] = {}
        for group, answer in zip(groups, answers, strict=True):
            each = [answer] * len(group) if isinstance(answer, Exception) else answer
            for (lease, _), one in zip(group, each, strict=True):
                result[lease.key] = _refusal(one, lease.key)
        return result

    def _renew_call(self, group: Sequence[tuple[Lease, int]]) -> ScriptCall:
        keys = [self.keys.leases(group[0][0].key), self.keys.wants(group[0][0].key)]
        args: list[str | bytes | int] = [self._lease_ms, self._live_ms]
        for lease, last_seq in group:
            road = self._road(lease.key)
            keys += (road.run, road.log)
            args += (road.member, lease.owner, lease.fence, last_seq)
        return ScriptCall(self._store.scripts["renew"], keys, args)

    async def want(self, keys: Sequence[RunKey]) -> None:
        """Somebody wants these runs pumped, for `want_s` from now; one call per partition, one round trip."""
        groups: dict[str, list[str]] = defaultdict(list)
        for key in keys:
            groups[self.keys.wants(key)].append(self.keys.member(key))
        script = self._store.scripts["want"]
        calls = [
            ScriptCall(script, (wants,), (self._want_ms, self._live_ms, *members)) for wants, members in groups.items()
        ]
        if calls:
            await self._tell("want", calls)

    async def note_seen(self, seen: Mapping[RunKey, tuple[Seen, str]]) -> None:
        """What was shown here of own-seq runs whose logs seem to lack it, and their threads (empty: not known here)."""
        script = self._store.scripts["seen"]
        calls = [
            ScriptCall(script, (self.keys.run(key), self.keys.log(key)), (*shown, thread_id, self._live_ms))
            for key, (shown, thread_id) in seen.items()
        ]
        await self._tell("seen", calls)

    async def scan(self, most: int) -> Scan:
        """Looks at all partitions; gives up to `most` orphans of each."""
        script = self._store.scripts["scan"]
        tags = list(self.keys.tags())
        args = (most, self._want_ms, self._lease_ms)
        answers = await self._store.call(
            "scan", [ScriptCall(script, (f"{tag}:wants", f"{tag}:leases"), args) for tag in tags]
        )
        # That a part of Redis is away is no reason not to look at the others.
        found = {tag: answer for tag, answer in zip(tags, answers, strict=True) if not isinstance(answer, Exception)}
        return Scan(
            [RunKey(*text(member).split(":", 1)) for answer in found.values() for member in answer[2:]],
            min((int(answer[1]) / 1000 for answer in found.values() if int(answer[1]) >= 0), default=None),
            {tag: int(answer[0]) / 1000 for tag, answer in found.items()},
        )

    async def release(self, leases: Sequence[Lease]) -> None:
        script = self._store.scripts["release"]
        calls = [
            ScriptCall(
                script,
                (self.keys.leases(one.key), self.keys.run(one.key), self.keys.bell(one.key)),
                (self.keys.member(one.key), one.owner, one.fence),
            )
            for one in leases
        ]
        if calls:
            await self._tell("release", calls)

    async def _call(self, what: str, calls: Sequence[ScriptCall]) -> list[Any]:
        answers = await self._store.call(what, calls)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def _tell(self, what: str, calls: Sequence[ScriptCall]) -> None:
        """Calls of which each stands for itself: what somebody else has written under one key is no other run's trouble."""
        for call, answer in zip(calls, await self._store.call(what, calls), strict=True):
            if isinstance(answer, Refused):
                self._odd(call.keys[0], what, answer)
            elif isinstance(answer, Exception):
                raise answer

    async def fold_seqs(self, keys: Sequence[RunKey]) -> list[int]:
        """Up to where each of these runs is folded; 0 where it is not."""
        commands = [("HGET", self.keys.run(key), "fold_seq") for key in keys]
        answers = await self._store.run("fold_seqs", commands, each=True)
        return [self._readable(key, _count, answer) or 0 for key, answer in zip(keys, answers, strict=True)]

    async def keep_fold(self, lease: Lease, generation: int, seq: int, fold: bytes) -> bool:
        """Store the fold of everything up to `seq` beside the log.

        False if the run is not this owner's any more, or the log does not hold what was folded.
        """
        args = (lease.owner, lease.fence, generation, seq, fold)
        script = self._store.scripts["fold"]
        answer = (
            await self._call("fold", [ScriptCall(script, (self.keys.run(lease.key), self.keys.log(lease.key)), args)])
        )[0]
        return text(answer) == "OK"

    # --- threads: some systems ask for a run's thread with every call ------------------------------------------------
    async def note_thread(self, key: RunKey, thread_id: str) -> None:
        """Remember in which thread a run is."""
        script = self._store.scripts["thread"]
        await self._call("thread", [ScriptCall(script, (self.keys.run(key),), (thread_id, self._live_ms))])

    async def thread_of(self, key: RunKey) -> str | None:
        """As far as any process was ever told, also of a run whose log is gone."""
        commands = [("HGET", self.keys.run(key), "thread_id"), ("GET", self.keys.past(key))]
        noted, past = await self._store.run("thread", commands)
        found = noted if noted is not None else past
        return text(found) if found is not None else None

    async def note_past(self, key: RunKey, thread_id: str) -> None:
        """Events of this run were given numbers: should it be fetched again one day, they must not get them again."""
        await self._store.run("past", [("SET", self.keys.past(key), thread_id, "PX", _PAST_MS)])

    async def has_past(self, key: RunKey) -> bool:
        return bool((await self._store.run("past", [("EXISTS", self.keys.past(key))]))[0])

    # --- the reader's side ------------------------------------------------------------------------------------------
    async def states(self, keys: Sequence[RunKey]) -> list[LogState | None]:
        """What is known of each run; None where nothing is (never pumped, expired, flushed)."""
        roads = [self._road(key) for key in keys]
        answers = await self._store.run_packed("states", [(road.run, road.state) for road in roads], each=True)
        return [self._readable(key, _state, answer) for key, answer in zip(keys, answers, strict=True)]

    async def tail(self, key: RunKey, most: int, *, before: int | None = None) -> list[Event]:
        """The last events of a log, or the last before a seq; in order."""
        end = "+" if before is None else f"({before}-0"
        answer = (await self._store.run("tail", [("XREVRANGE", self.keys.log(key), end, "-", "COUNT", most)]))[0]
        return [event_of(entry) for entry in reversed(answer)]

    async def read(self, requests: Sequence[tuple[RunKey, int, int]], *, what: str = "read") -> list[list[Event]]:
        """For each (run, after_seq, most): the events behind after_seq, in one round trip.

        Appends and reads share a connection; with `what=HISTORY` they do not.
        """
        roads = [self._road(key) for key, _, _ in requests]
        commands = [
            (road.log, packed_range(road.read, after, most))
            for road, (_, after, most) in zip(roads, requests, strict=True)
        ]
        answers = await self._store.run_packed(what, commands, each=True)
        return [
            self._readable(key, _events, answer) or [] for (key, _, _), answer in zip(requests, answers, strict=True)
        ]

    async def behind(self, key: RunKey, cursor: int, most: int) -> Behind | None:
        """As `old.behind`; None if somebody else has written there."""
        try:
            return await self.old.behind(key, cursor, most)
        except _UNREADABLE as error:
            self._odd(self.keys.run(key), "behind", error)
            return None

    async def folded(self, key: RunKey, known: int, most: int = _FOLDED_ROWS) -> Folded:
        """The run's stored fold, unless a reader who has all up to `known` needs none, and events behind it.

        As many as an owner leaves unfolded (relay.ingest.folds) come in one call, and about a megabyte; or about `most`.
        """
        keys = (self.keys.run(key), self.keys.log(key))
        script = ScriptCall(self._store.scripts["folded"], keys, (known, most, _FOLDED_BYTES))
        generation, floor, fold, rows, more = (await self._call("folded", [script]))[0]
        return Folded(int(generation), int(floor), bytes(fold), _events(rows), more=bool(more))

    def _readable(self, key: RunKey, read: Callable[[Any], _T], answer: Any) -> _T | None:
        """What an answer says; None if somebody else has written there: that is that run's trouble and nobody else's."""
        try:
            if isinstance(answer, Exception):
                raise answer
            return read(answer)
        except _UNREADABLE as error:
            self._odd(self.keys.run(key), "read", error)
            return None

    def _odd(self, name: str, what: str, error: Exception) -> None:
        """Said once of each key: this comes back with every look."""
        telemetry.STORE_ERRORS.labels("unreadable").inc()
        if name not in self._unreadable:
            self._unreadable = {*list(self._unreadable)[-999:], name}
            telemetry.logger().error("log.unreadable", key=name, what=what, reason=str(error))


def _count(answer: object) -> int:
    return int(text(answer)) if answer is not None else 0


def _events(answer: Sequence[Any]) -> list[Event]:
    return [event_of(entry) for entry in answer]


def _state(answer: Sequence[bytes | None]) -> LogState | None:
    if answer[-1] is None:  # no fence: never claimed, or gone
        return None
    return state_of({name: text(value) for name, value in zip(_STATE_FIELDS, answer, strict=True) if value is not None})


def _refusal(answer: object, key: RunKey) -> Exception | None:
    if isinstance(answer, Exception):
        return answer
    verdict = text(answer)
    if verdict == "LOST":
        return LogMoved(f"the log of {key} does not end where its owner left it")
    if verdict == "UNWANTED":
        return Unwanted(f"nobody wants {key} any more")
    if verdict == "FENCED":
        return LeaseLost(f"another owner writes {key} now")
    return None
