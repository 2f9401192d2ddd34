"""What every test may ask for. Real parts: a real Valkey or Redis per test worker, real sockets, real processes.

Hypothesis is seeded (`HYPOTHESIS_SEED` or a fixed one) so that a failure replays.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from relay.store.embedded import EmbeddedServer
from relay.store.options import EmbeddedOptions
from tests.support import accepted
from tests.support.upstream import ScriptedUpstream

accepted.mend()
settings.register_profile("relay", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", deadline=None, max_examples=5000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("RELAY_TEST_PROFILE", "relay"))


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server for this test worker. Tests share it: each uses a prefix of its own and never flushes."""
    with embedded(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A real server for this test alone, to be flushed, stopped and filled at will."""
    with embedded(tmp_path / "own-redis") as server:
        yield server


class embedded:  # noqa: N801
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> EmbeddedServer:
        self._server = EmbeddedServer.start(EmbeddedOptions(str(self._directory)))
        return self._server

    def __exit__(self, *_: object) -> None:
        self._server.stop()


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(token="upstream-secret") as up:
        yield up
