"""The seeded bugs take five minutes: they are left out unless `RELAY_TEST_BUGS` asks for them (or `-m` does)."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "RELAY_TEST_BUGS" in os.environ or "bugs" in str(config.getoption("markexpr")):
        return
    left_out = [item for item in items if item.get_closest_marker("bugs") is not None]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
