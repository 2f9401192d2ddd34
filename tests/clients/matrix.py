"""Upstream x face x client, as a table. What no test has filled is said to be open, never left to be guessed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Cell = tuple[str, str, str, str]
"""Upstream, face, client, what."""

UPSTREAM = "arkloop"
"""The upstream behind these tests, where they do not say another one."""
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
- **open**: not tried. With SeekrFlow and the Assistants shape as upstreams these are simulated servers.

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
    readers = sorted({(upstream, face, client) for upstream, face, client, _ in results})
    lines = [
        "| upstream | face | client | " + " | ".join(WHATS) + " |",
        "|---" * (3 + len(WHATS)) + "|",
    ]
    for upstream, face, client in readers:
        words = [_word(results.get((upstream, face, client, what)), upstream) for what in WHATS]
        lines.append(f"| {upstream} | {face} | {client} | " + " | ".join(words) + " |")
    return lines


def _word(found: str | None, upstream: str) -> str:
    return found or ("open" if upstream != UPSTREAM else "–")


def document(results: Mapping[Cell, str]) -> str:
    return _HEAD + "\n".join(table(results)) + "\n"
