"""The matrix of docs/compatibility.md, filled by the tests themselves.

A test says which cell it fills with `@pytest.mark.cell("late join")`; its module says for which face (`FACE`) and which
client (`CLIENT`, or `CLIENTS` by the test's parameter `kind`). The matrix is printed after the tests, and written where
`RELAY_TEST_COMPATIBILITY` says.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients import matrix

_RESULTS: dict[tuple[str, str, str, str], list[str]] = {}


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """SDKs leave sockets to the collector: that must happen here, not in the middle of somebody else's test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """With the report, because the matrix is made by another process than the one that tests."""
    found = item.get_closest_marker("cell")
    if found is not None:
        module: Any = item.module  # type: ignore[attr-defined]
        kind = item.callspec.params.get("kind") if hasattr(item, "callspec") else None
        face = found.kwargs.get("face") or module.FACE
        client = (found.kwargs.get("clients") or module.CLIENTS)[kind] if kind is not None else module.CLIENT
        upstream = item.callspec.params.get("upstream_kind", matrix.UPSTREAM) if kind is not None else matrix.UPSTREAM
        for what in found.args:
            item.user_properties.append(("cell", (upstream, face, client, what)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties:
        if name == "cell" and (report.when == "call" or report.outcome != "passed"):
            cell: Any = tuple(value)  # type: ignore[arg-type]
            _RESULTS.setdefault(cell, []).append(report.outcome)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _RESULTS:
        return
    results = {cell: matrix.verdict(outcomes) for cell, outcomes in _RESULTS.items()}
    terminalreporter.section("compatibility")
    for line in matrix.table(results):
        terminalreporter.line(line)
    place = os.environ.get("RELAY_TEST_COMPATIBILITY")
    if place:
        Path(place).write_text(matrix.document(results), "utf-8")
