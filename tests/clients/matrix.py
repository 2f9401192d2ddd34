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
- **open**: not tried. The faces are written against native runs and events, but no upstream other than Arkloop has been
  behind them so far.

What each column stands for: *late join*: attached in the middle of a run and after its end; *input answered*: a run that
waits is answered through the face (for seekrai by a plain request, its SDK has no such call) and goes on; *upstream cut*:
resets, clean ends, junk and 503 in mid-run, not noticed; *stall*: silence longer than the client's read timeout; *relay
restart*: kill -9 and SIGTERM in mid-stream (the SDKs raise, and attach again; Arkloop's clients resume by themselves);
*blind resend*: the connection of a create breaks twice, one run is made. Arkloop's clients are models written from what
their source does, the SDKs are the vendors' own.

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
    for face, client in clients:
        words = [results.get((UPSTREAM, face, client, what), "–") for what in WHATS]
        lines.append(f"| {UPSTREAM} | {face} | {client} | " + " | ".join(words) + " |")
    for upstream in OPEN_UPSTREAMS:
        lines.append(f"| {upstream} | each | each | " + " | ".join(["open"] * len(WHATS)) + " |")
    return lines


def document(results: Mapping[Cell, str]) -> str:
    return _HEAD + "\n".join(table(results)) + "\n"
