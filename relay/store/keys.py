"""Names of everything we keep in Redis. A public contract (docs/log.md): a change here is a new version of it.

All keys of a run, its lease and its bell carry one hash tag `{pNN}`, so that a script may touch them together, also in
a Redis Cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

from relay.core.ids import RunKey


@dataclass(frozen=True, slots=True)
class Keys:
    prefix: str
    partitions: int

    def partition(self, key: RunKey) -> int:
        return crc32(str(key).encode()) % self.partitions

    def log(self, key: RunKey) -> str:
        return self._of_run("log", key)

    def run(self, key: RunKey) -> str:
        return self._of_run("run", key)

    def old(self, key: RunKey) -> str:
        """A trimmed head of the log, fetched again."""
        return self._of_run("old", key)

    def fill(self, key: RunKey) -> str:
        """Who fills `old`, and how far it is."""
        return self._of_run("fill", key)

    def past(self, key: RunKey) -> str:
        """What outlives the log of a sealed own-seq run: that there was one."""
        return self._of_run("past", key)

    def bell(self, key: RunKey) -> str:
        return self._of_run("bell", key)

    def leases(self, key: RunKey) -> str:
        return f"{self._tag(key)}:leases"

    def wants(self, key: RunKey) -> str:
        return f"{self._tag(key)}:wants"

    def tags(self) -> list[str]:
        """The first part of every key of each partition."""
        return [f"{self.prefix}:{{p{partition:02d}}}" for partition in range(self.partitions)]

    def member(self, key: RunKey) -> str:
        """How a run is written inside the leases of its partition."""
        return f"{key.upstream}:{key.run_id}"

    def once(self, key: RunKey, digest: str) -> str:
        """The answer of a request that carried an Idempotency-Key; `key` only places it."""
        return f"{self._tag(key)}:once:{digest}"

    def of_upstream(self, kind: str, upstream: str) -> str:
        """What is kept of an upstream as a whole: all in one partition, of its own choosing."""
        return f"{self.prefix}:{{p{crc32(upstream.encode()) % self.partitions:02d}}}:{kind}:{upstream}"

    def _tag(self, key: RunKey) -> str:
        return f"{self.prefix}:{{p{self.partition(key):02d}}}"

    def _of_run(self, kind: str, key: RunKey) -> str:
        return f"{self._tag(key)}:{kind}:{key.upstream}:{key.run_id}"
