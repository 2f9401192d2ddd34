"""What the proxy overhears: who wrote what into Redis under which fence, and who follows which run upstream.

Both are evidence from the wire, independent of what relay, Redis or the upstream say of themselves. Times are outer
bounds: a request's `t0` is when it left for the server, its `t1` when the answer came back, so it was done in between.
`sent` is when relay wrote it, which may be long before `t0` where a link holds bytes back.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hiredis

Record = Callable[[dict[str, Any]], None]


class ScriptNames:
    """Which script a SHA is: told by the first line of its file, so that an edited script is still recognised.

    Where several files were joined, the last one is what the script does; those before it are shared functions.
    """

    def __init__(self, tree: Path) -> None:
        self._first: dict[bytes, str] = {}
        for path in sorted((tree / "relay" / "store" / "lua").glob("*.lua")):
            self._first[path.read_bytes().split(b"\n", 1)[0]] = path.stem
        self._known: dict[bytes, str] = {}

    def loading(self, text: bytes) -> str | None:
        return next((self._first[line] for line in reversed(text.split(b"\n")) if line in self._first), None)

    def learn(self, sha: object, name: str | None) -> None:
        if name is not None and isinstance(sha, bytes):
            self._known[sha] = name

    def name(self, sha: bytes) -> str | None:
        return self._known.get(sha)


class RedisTap:
    """The requests and replies of one Redis connection, paired; script calls of relay are recorded."""

    def __init__(self, owner: object, node: str, names: ScriptNames, record: Record) -> None:
        self._about = {"relay": owner, "node": node}
        self._names = names
        self._record = record
        self._requests = hiredis.Reader()
        self._replies = hiredis.Reader()
        self._open: deque[tuple[str, Any, float, float]] = deque()
        self._deaf = False

    def up(self, data: bytes, came: float) -> None:
        if self._deaf:
            return
        self._requests.feed(data)
        now = time.monotonic()
        while (request := self._requests.gets()) is not False:
            self._asked(request, came, now)

    def _asked(self, request: Any, came: float, now: float) -> None:
        word = bytes(request[0]).upper()
        if word in (b"SSUBSCRIBE", b"SUBSCRIBE", b"PSUBSCRIBE", b"MONITOR", b"PSYNC"):
            self._deaf = True
        elif word == b"SCRIPT" and len(request) > 2 and bytes(request[1]).upper() == b"LOAD":
            self._open.append(("load", self._names.loading(request[2]), came, now))
        elif word == b"EVALSHA" and (name := self._names.name(request[1])) is not None:
            self._open.append((name, request, came, now))
        else:
            self._open.append(("", None, came, now))

    def down(self, data: bytes) -> None:
        if self._deaf:
            return
        self._replies.feed(data)
        now = time.monotonic()
        while (reply := self._replies.gets()) is not False:
            if self._open:
                self._answered(*self._open.popleft(), reply, now)

    def _answered(self, name: str, request: Any, sent: float, t0: float, reply: Any, t1: float) -> None:
        if name == "load":
            self._names.learn(reply, request)
        elif name:
            for entry in _entries(name, request, reply):
                self._record({**self._about, "sent": sent, "t0": t0, "t1": t1, **entry})

    def closed(self) -> None:
        """Requests without an answer may have been executed all the same."""
        for name, request, sent, t0 in self._open:
            if name and name != "load":
                for entry in _entries(name, request, None):
                    self._record({**self._about, "sent": sent, "t0": t0, "t1": None, **entry})
        self._open.clear()


def _run_of(key: bytes) -> str:
    """`relay:{p07}:run:main:<run id>` or `main:<run id>` -> `<run id>`"""
    return key.decode().rsplit(":", 1)[1]


def _entries(name: str, request: Any, reply: Any) -> list[dict[str, Any]]:
    """What a call says, as records. A call we cannot read is recorded as such, never skipped."""
    try:
        count = int(request[2])
        keys, args = request[3 : 3 + count], request[3 + count :]
        read = _READ.get(name)
        return read(keys, args, reply) if read else []
    except (ValueError, IndexError, KeyError, TypeError) as error:
        return [{"op": "unreadable", "script": name, "why": repr(error)}]


def _answer(reply: Any) -> str:
    if reply is None:
        return "NONE"
    if isinstance(reply, Exception):
        return "ERROR " + str(reply)[:80]
    return reply.decode() if isinstance(reply, bytes) else str(reply)


def _run_key(keys: Any) -> bytes:
    return bytes(next(key for key in keys if b":run:" in key))


def _append(keys: Any, args: Any, reply: Any) -> list[dict[str, Any]]:
    first = 6 + 2 * int(args[5])
    seqs = [int(seq) for seq in args[first::3]]
    entry = {"op": "append", "run": _run_of(_run_key(keys)), "owner": args[0].decode(), "fence": int(args[1])}
    return [{**entry, "prev": int(args[2]), "seqs": _ranges(seqs), "answer": _answer(reply)}]


def _seal(keys: Any, args: Any, reply: Any) -> list[dict[str, Any]]:
    entry = {"op": "seal", "run": _run_of(_run_key(keys)), "owner": args[0].decode(), "fence": int(args[1])}
    return [{**entry, "prev": int(args[2]), "answer": _answer(reply)}]


def _claim(keys: Any, args: Any, reply: Any) -> list[dict[str, Any]]:
    fence = int(reply[1]) if isinstance(reply, list) and reply[0] == 1 and reply[1] else 0
    answer = "OK" if fence else "HELD" if isinstance(reply, list) else _answer(reply)
    return [
        {"op": "claim", "run": _run_of(_run_key(keys)), "owner": args[1].decode(), "fence": fence, "answer": answer}
    ]


def _renew(keys: Any, args: Any, reply: Any) -> list[dict[str, Any]]:
    runs = [key for key in keys if b":run:" in key]
    answers = reply if isinstance(reply, list) else [reply] * len(runs)
    at = _after(args, runs)
    step = (len(args) - at) // len(runs)
    return [
        {
            "op": "renew",
            "run": _run_of(run),
            "owner": args[at + step * i + 1].decode(),
            "fence": int(args[at + step * i + 2]),
            "answer": _answer(answers[i]),
        }
        for i, run in enumerate(runs)
    ]


def _after(args: Any, runs: Any) -> int:
    """Where the first run's arguments begin: at its member, `<upstream>:<run id>`."""
    return next(i for i, arg in enumerate(args) if arg.endswith(b":" + _run_of(runs[0]).encode()))


_READ: dict[str, Callable[[Any, Any, Any], list[dict[str, Any]]]] = {
    "append": _append,
    "seal": _seal,
    "claim": _claim,
    "renew": _renew,
}


def _ranges(seqs: list[int]) -> list[list[int]]:
    """[1, 2, 3, 7] -> [[1, 3], [7, 7]]"""
    ranges: list[list[int]] = []
    for seq in seqs:
        if ranges and ranges[-1][1] == seq - 1:
            ranges[-1][1] = seq
        else:
            ranges.append([seq, seq])
    return ranges


_EVENTS = re.compile(rb"GET /v1/runs/([A-Za-z0-9_-]+)/events(\?\S*)? HTTP/1\.1\r\n")

_LAST_CHUNK = b"\r\n0\r\n\r\n"


class UpstreamTap:
    """The event streams a relay process opens upstream: each with its run, its kind, and when it was open."""

    def __init__(self, owner: object, record: Record, following: dict[str, list[dict[str, Any]]]) -> None:
        self._owner = owner
        self._record = record
        self._following = following
        """The streams open now, by run; shared by all taps."""
        self._asked: dict[str, Any] | None = None
        self._tail = b""

    def up(self, data: bytes, came: float) -> None:
        for match in _EVENTS.finditer(data):
            self._end()
            query = (match[2] or b"").decode()
            after = re.search(r"after_seq=(\d+)", query)
            self._asked = {
                "relay": self._owner,
                "run": match[1].decode(),
                "follow": "follow=false" not in query,
                "after": int(after[1]) if after else 0,
                "t0": time.monotonic(),
                "status": None,
            }
            if self._asked["follow"]:
                self._following.setdefault(self._asked["run"], []).append(self._asked)

    def down(self, data: bytes) -> None:
        if self._asked is not None and self._asked["status"] is None and data.startswith(b"HTTP/1.1 "):
            self._asked["status"] = int(data[9:12])
            if b"\r\ncontent-length:" in data.partition(b"\r\n\r\n")[0].lower():
                self._end()  # no stream but a whole answer, an error's or a page's: its connection may idle from now on
                return
        self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
        if self._tail == _LAST_CHUNK:  # from here on the connection is idle, and may wait for another run's request
            self._end()

    def closed(self) -> None:
        self._end()

    def _end(self) -> None:
        if self._asked is not None:
            self._record({**self._asked, "t1": time.monotonic()})
            if self._asked["follow"]:
                self._following[self._asked["run"]].remove(self._asked)
            self._asked = None
