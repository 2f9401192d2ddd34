"""Read many runs of a relay over one WebSocket, through everything that may happen to it. Needs aiohttp.

    runs = Runs("http://127.0.0.1:8080", key="rk_…")
    runs.subscribe("r1")
    runs.subscribe("r2", after_seq=41, types=["run.*", "message.*"])
    async with aclosing(runs.read()) as messages:
        async for message in messages:      # until every run has ended
            ...

Each message is a dict with `op`: `event` (each once, in the order of its run), `end` (no more of this run, ever), `reset`
(`rewritten`: forget the run, it follows again; `trimmed`: those events are lost), `error` (about one run; others go on).
Or from a shell: `python examples/runs.py URL RUN…`. The protocol: docs/protocol.md.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

SILENCE_S = 40.0
"""The relay pings every 15 s: a longer silence is a dead connection."""
_LOST = (aiohttp.ClientError, ConnectionError, TimeoutError)
Message = dict[str, Any]


class Refused(Exception):
    """The relay will not have us; trying again is useless."""


class Runs:
    def __init__(self, base_url: str, *, key: str | None = None) -> None:
        self._url = f"{base_url.rstrip('/')}/v1/events"
        self._key = key
        self._wanted: dict[str, Message] = {}
        """Runs that have not ended, each as the message that asks for the rest of it."""
        self._pause_s = 0.0

    def subscribe(self, run_id: str, *, after_seq: int = 0, **more: Any) -> None:
        """From the next connection on; `more`: types, snapshot, upstream, thread_id, token."""
        self._wanted[run_id] = {"op": "subscribe", "run_id": run_id, "after_seq": after_seq, **more}

    async def read(self) -> AsyncIterator[Message]:
        """Raises Refused."""
        failures = 0
        async with aiohttp.ClientSession() as session:
            while self._wanted:
                try:
                    async for message in self._once(session):
                        failures = 0
                        yield message
                except _LOST:
                    failures += 1
                if self._wanted:  # come back with our places, a little later each time, and not in step with others
                    backoff_s = min(10.0, 0.25 * 2**failures) * random.random()
                    await asyncio.sleep(max(self._pause_s, 0.05 + backoff_s))

    async def _once(self, session: aiohttp.ClientSession) -> AsyncIterator[Message]:
        self._pause_s = 0.0
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            socket = await session.ws_connect(self._url, headers=headers, heartbeat=SILENCE_S / 2, max_msg_size=0)
        except aiohttp.WSServerHandshakeError as error:
            if error.status < 500 and error.status != 429:
                raise Refused(f"{error.status}: {error.message}") from error
            raise
        async with socket:
            for message in list(self._wanted.values()):
                await socket.send_json(message)
            async for frame in socket:
                if frame.type is not aiohttp.WSMsgType.TEXT:
                    break
                message = json.loads(frame.data)
                yield message
                self._note(message)
                if not self._wanted:
                    return
        if socket.close_code in (4403, 4404):
            raise Refused(f"closed with {socket.close_code}")

    def _note(self, message: Message) -> None:
        """Where we are now. Noted after the caller is done with a message, so that one it failed at comes again."""
        op, wanted = message["op"], self._wanted.get(message.get("run_id", ""))
        if op == "goodbye":
            self._pause_s = message["after_ms"] / 1000
        elif wanted is None:
            return
        elif op == "event":
            wanted["after_seq"] = message["event"]["seq"]
        elif op in ("position", "snapshot"):
            wanted["after_seq"] = message["seq" if op == "position" else "as_of_seq"]
        elif op == "reset":
            wanted["after_seq"] = message["to_seq"]
        elif op == "end" or (op == "error" and not message["retrying"]):
            del self._wanted[message["run_id"]]


async def main(base_url: str, *run_ids: str) -> None:
    runs = Runs(base_url)
    for run_id in run_ids:
        runs.subscribe(run_id)
    async for message in runs.read():
        print(json.dumps(message, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
