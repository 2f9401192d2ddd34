"""The matrix of docs/compatibility.md, filled by the tests themselves.

A test says which cell it fills with `@pytest.mark.cell("late join")`; its module says for which face (`FACE`) and which
client (`CLIENTS`: the one of the test's parameter `kind`, or all of them). The upstream is its parameter `behind`. A test
that watches with many clients at once fills their cells one by one (fixture `cells`). The matrix is printed after the
tests, and written where `RELAY_TEST_COMPATIBILITY` says; `RELAY_TEST_CELLS` names a file for the bare results.
"""

from __future__ import annotations

import gc
import json
import os
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients import matrix
from tests.clients.behind import Arkloop, Behind
from tests.clients.threads_behind import Assistants, SeekrFlow

_HERE = Path(__file__).parent
UPSTREAMS: dict[str, type[Any]] = {"arkloop": Arkloop, "seekrflow": SeekrFlow, "openai": Assistants}
_RESULTS: dict[matrix.Cell, list[str]] = {}


@pytest.fixture(params=UPSTREAMS)
async def behind(request: pytest.FixtureRequest) -> AsyncIterator[Behind]:
    async with UPSTREAMS[str(request.param)]() as up:
        yield up


class Cells:
    """Fills cells of the matrix from within a test."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item

    def fill(self, cell: matrix.Cell, outcome: str) -> None:
        self._item.user_properties.append(("cell", (*cell, outcome)))


@pytest.fixture
def cells(request: pytest.FixtureRequest) -> Cells:
    return Cells(request.node)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """SDKs leave sockets to the collector, whose complaint must hit no test (see the hook below).

    `RELAY_TEST_UPSTREAM` leaves the tests with another upstream out.
    """
    only = os.environ.get("RELAY_TEST_UPSTREAM")
    others = [item for item in items if only and _params(item).get("behind", only) != only]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


def _params(item: pytest.Item) -> dict[str, Any]:
    return dict(item.callspec.params) if hasattr(item, "callspec") else {}


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What was left open is collected here, not in the middle of somebody else's test."""
    if nextitem is None or not nextitem.path.is_relative_to(_HERE):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """With the report, because the matrix is made by another process than the one that tests."""
    found = item.get_closest_marker("cell")
    if found is None:
        return
    module: Any = item.module  # type: ignore[attr-defined]
    params = _params(item)
    names = [module.CLIENTS[params["kind"]]] if "kind" in params else list(module.CLIENTS.values())
    for name in names:
        for what in found.args:
            cell = (params.get("behind", matrix.UPSTREAM), module.FACE, name, what)
            item.user_properties.append(("cell", (*cell, "")))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties:
        if name == "cell" and (report.when == "call" or report.outcome != "passed"):
            *cell, outcome = value  # type: ignore[misc]
            _RESULTS.setdefault(tuple(cell), []).append(outcome or report.outcome)  # type: ignore[arg-type]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _RESULTS:
        return
    results = {cell: matrix.verdict(outcomes) for cell, outcomes in _RESULTS.items()}
    if place := os.environ.get("RELAY_TEST_CELLS"):
        Path(place).write_text(json.dumps([[*cell, outcome] for cell, found in _RESULTS.items() for outcome in found]))
        return
    terminalreporter.section("compatibility")
    for line in matrix.table(results):
        terminalreporter.line(line)
    if place := os.environ.get("RELAY_TEST_COMPATIBILITY"):
        Path(place).write_text(matrix.document(results), "utf-8")
