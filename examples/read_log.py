"""A backend that follows one run straight from Redis, by the contract in docs/log.md. Needs only redis-py.

python examples/read_log.py redis://127.0.0.1:6379 main RUN_ID
"""

import sys
import time
import zlib

import redis

PARTITIONS = 64


def main(url: str, upstream: str, run_id: str) -> None:
    client = redis.Redis.from_url(url)
    tag = f"relay:{{p{zlib.crc32(f'{upstream}/{run_id}'.encode()) % PARTITIONS:02d}}}"
    log, run, bell = (f"{tag}:{kind}:{upstream}:{run_id}" for kind in ("log", "run", "bell"))
    bells = client.pubsub(ignore_subscribe_messages=True)
    bells.ssubscribe(bell)
    cursor = 0
    while True:
        for entry_id, fields in client.xrange(log, f"({cursor}-0", "+", count=500):
            cursor = int(entry_id.split(b"-")[0])
            print(cursor, fields[b"type"].decode(), fields[b"event"].decode())
        sealed, last_seq = client.hmget(run, "sealed", "last_seq")
        if sealed == b"1" and cursor >= int(last_seq):
            return
        deadline = time.monotonic() + 1.0  # a bell may be lost: look again once a second whatever happens
        while time.monotonic() < deadline and bells.get_sharded_message(timeout=0.2) is None:
            pass


if __name__ == "__main__":
    main(*sys.argv[1:4])
