"""Upstream x face x client, as a table. What no test has filled says so, and is never left to be guessed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Cell = tuple[str, str, str, str]
"""Upstream, face, client, what."""

UPSTREAM = "arkloop"
"""The upstream behind tests that do not say another one."""
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
_LISTENS_ONLY = frozenset({"create", "create + stream", "retrieve", "list", "cancel", "blind resend"})
_HAS_NOT: Mapping[str, frozenset[str]] = {
    "websockets": _LISTENS_ONLY | {"threads, messages"},
    "EventSource": _LISTENS_ONLY | {"threads, messages"},
    "httpx-sse": frozenset({"threads, messages"}),
    "aiohttp": frozenset({"threads, messages"}),
    "seekrai 0.20": frozenset({"late join", "failed run", "input answered", "upstream cut", "stall", "relay restart"})
    | {"blind resend"},
}
"""By how a client's name begins: what it (or its face) has no such thing as."""

_HEAD = """# Who works with whom

Every cell is a test in `tests/clients` with the vendor's own client, unchanged, over real HTTP against a relay with this
upstream behind it; the table below is printed by those tests (`make clients` writes this file). The upstreams are servers
of the tests that speak each vendor's wire: Arkloop's from its source, SeekrFlow's and the Assistants shape from their
references.

- **ok**: the client got every event once, in order, and the end; or the answer its vendor gives.
- **refused**: this upstream has no such thing; the client is told so by an error of its own kind.
- **–**: the client, or its face, has no such thing (or, for seekrai 0.20, from before its streams changed, was not tried).

What each column stands for: *create*, *create + stream* (with openai also its stream helper, polling, and the messages and
steps of the run), *retrieve* and *list* (with openai through its paging), *cancel* in mid-stream; *late join*: attached in
the middle of a run and after its end; *input answered*: a run that waits is answered through the face (for seekrai by a
plain request, its SDK has no such call; with openai by `submit_tool_outputs` with and without a stream) and goes on;
*upstream cut*: resets, clean ends, junk and 503 in mid-run, not noticed; *stall*: silence longer than the client's read
timeout; *relay restart*: kill -9, and SIGTERM, in mid-stream (the SDKs raise, and attach again; Arkloop's clients and the
native ones resume); *blind resend*: the connection of a create breaks twice, one run is made (natively: the same
`Idempotency-Key`). In *late join*, *failed run*, *upstream cut*, *stall* and *relay restart* all clients of all faces watch
the same run at once, which is read from its upstream once. Arkloop's clients are models written from what their source
does, all others are the vendors' own. `beta.threads` is deprecated in the newest openai SDK, and still there; when it goes,
that row goes with it.

"""


def verdict(outcomes: Iterable[str]) -> str:
    """One word for the tests of one cell: all must have passed."""
    seen = set(outcomes)
    if seen == {"passed"}:
        return "ok"
    return "FAILS" if "failed" in seen else "not run"


def table(results: Mapping[Cell, str]) -> list[str]:
    readers = sorted({(upstream, face, client) for upstream, face, client, _ in results}, key=_place)
    lines = [
        "| upstream | face | client | " + " | ".join(WHATS) + " |",
        "|---" * (3 + len(WHATS)) + "|",
    ]
    for upstream, face, client in readers:
        words = [_word(results, (upstream, face, client, what)) for what in WHATS]
        lines.append(f"| {upstream} | {face} | {client} | " + " | ".join(words) + " |")
    return lines


def _place(reader: tuple[str, str, str]) -> tuple[int, str, str]:
    upstream, face, client = reader
    return ("arkloop", "seekrflow", "openai").index(upstream), face, client.lower()


def _word(results: Mapping[Cell, str], cell: Cell) -> str:
    upstream, face, client, what = cell
    if any(client.startswith(name) and what in without for name, without in _HAS_NOT.items()):
        return "–"
    if cell not in results:
        return "not run"
    return "refused" if results[cell] == "ok" and _is_refused(upstream, face, what) else results[cell]


def _is_refused(upstream: str, face: str, what: str) -> bool:
    """No run of SeekrFlow ever waits."""
    return (upstream, what) == ("seekrflow", "input answered")


def document(results: Mapping[Cell, str]) -> str:
    return _HEAD + "\n".join(table(results)) + "\n"
