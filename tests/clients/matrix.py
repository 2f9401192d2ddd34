"""Upstream x face x client, as a table. What no test has filled is said to be open, never left to be guessed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Cell = tuple[str, str, str, str]
"""Upstream, face, client, what."""

UPSTREAM = "arkloop"
"""The upstream behind these tests: the only one there is so far."""
OPEN_UPSTREAMS = ("seekrflow", "openai")
WHATS = (
    "create",
    "create + stream",
    "retrieve",
    "list",
    "cancel",
    "late join",
    "failed run",
    "input answered",
    "upstream cut",
    "stall",
    "relay restart",
    "blind resend",
    "threads, messages",
)

_HEAD = """# Who works with whom

Every cell is a test in `tests/clients` with the vendor's own client, unchanged, against a relay with this upstream behind
it; the table below is printed by those tests (`make clients` writes this file).

- **ok**: the client got every event once, in order, and the end; or the answer its vendor gives.
- **–**: the client has no such thing.
- **open**: nobody has tried it here yet. No upstream but Arkloop exists in relay so far.

"""


def verdict(outcomes: Iterable[str]) -> str:
    """One word for the tests of one cell: all must have passed."""
    seen = set(outcomes)
    if seen == {"passed"}:
        return "ok"
    return "FAILS" if "failed" in seen else "not run"


def table(results: Mapping[Cell, str]) -> list[str]:
    clients = sorted({(face, client) for _, face, client, _ in results})
    lines = [
        "| upstream | face | client | " + " | ".join(WHATS) + " |",
        "|---" * (3 + len(WHATS)) + "|",
    ]
    for upstream in (UPSTREAM, *OPEN_UPSTREAMS):
        for face, client in clients:
            words = [_word(results, upstream, face, client, what) for what in WHATS]
            lines.append(f"| {upstream} | {face} | {client} | " + " | ".join(words) + " |")
    return lines


def _word(results: Mapping[Cell, str], upstream: str, face: str, client: str, what: str) -> str:
    found = results.get((upstream, face, client, what))
    if found is not None:
        return found
    if upstream in OPEN_UPSTREAMS:
        return "open"
    return "–"


def document(results: Mapping[Cell, str]) -> str:
    return _HEAD + "\n".join(table(results)) + "\n"
