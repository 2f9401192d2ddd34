"""The usual way to ingest: one task per run, aiohttp's lines, json, one awaited XADD per event. No lease, no order check.

    python -m benchmarks.peers.redis_pump UPSTREAM_URL REDIS_URL RUN_PREFIX RUNS

Writes to the streams `pump:<run>`; says "ready" once every run is connected.
"""

from __future__ import annotations

import asyncio
import json
import sys

import aiohttp
import redis.asyncio
import uvloop


async def pump(
    session: aiohttp.ClientSession, store: redis.asyncio.Redis, url: str, run: str, open_: list[str]
) -> None:
    async with session.get(f"{url}/v1/runs/{run}/events", params={"follow": "true", "after_seq": "0"}) as response:
        open_.append(run)
        async for line in response.content:
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                await store.xadd(
                    f"pump:{run}", {"type": event["type"], "event": json.dumps(event)}, f"{event['seq']}-0"
                )


async def main(url: str, redis_url: str, prefix: str, runs: int) -> None:
    store = redis.asyncio.Redis.from_url(redis_url, max_connections=2 * runs)
    connector = aiohttp.TCPConnector(limit=0)
    open_: list[str] = []
    session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
    async with session, asyncio.TaskGroup() as tasks:
        for number in range(runs):
            tasks.create_task(pump(session, store, url, f"{prefix}{number}", open_))
        while len(open_) < runs:
            await asyncio.sleep(0.05)
        print("ready", flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
