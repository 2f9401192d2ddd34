"""docs/compatibility.md is what the tests printed, with nothing failed, open or left out in it."""

from __future__ import annotations

import itertools

from tests.clients import matrix
from tests.support.needs import ROOT

CLIENTS = {
    "arkloop": ("Arkloop CLI (model)", "Arkloop TUI (model)", "Arkloop web (model)"),
    "seekrflow": ("seekrai 0.20.0 (async)", "seekrai 0.35", "seekrai 0.20.0 (sync)"),
    "openai": ("openai 2.54.0 (async)", "openai 2.54.0 (sync)", "openai 3.54.0 (async)", "openai 3.54.0 (sync)"),
    "native": ("aiohttp", "httpx-sse", "websockets", "EventSource"),
}


def test_every_cell_of_the_document_is_filled() -> None:
    lines = (ROOT / "docs" / "compatibility.md").read_text("utf-8").splitlines()
    rows = [[word.strip() for word in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    for upstream, (face, clients) in itertools.product(("arkloop", "seekrflow", "openai"), CLIENTS.items()):
        for client in clients:
            assert any(row[:2] == [upstream, face] and row[2].startswith(client) for row in rows), (upstream, client)
    for row in rows:
        assert len(row) == 3 + len(matrix.WHATS)
        assert set(row[3:]) <= {"ok", "–", "refused"}, row


def test_a_cell_is_ok_only_if_all_of_its_tests_passed() -> None:
    assert matrix.verdict(["passed", "passed"]) == "ok"
    assert matrix.verdict(["passed", "failed"]) == "FAILS"
    assert matrix.verdict(["passed", "skipped"]) == "not run"
    results = {("arkloop", "openai", "openai 2.54.0 (sync)", "create"): "ok"}
    [row] = matrix.table(results)[2:]
    assert row.count("not run") == len(matrix.WHATS) - 1
