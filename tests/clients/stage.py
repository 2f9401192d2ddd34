"""What happens in the runs of these tests, said once for every upstream that may be behind a face."""

from __future__ import annotations

from dataclasses import dataclass

SAID = "Fog in the valley\u2028— sun above it. ☀️ And then \U0001f3d4 rain."
"""What a run says, in pieces; with a line separator that some clients split at."""
AGENT, MODEL, THREAD = "p1", "m1", "t1"
CODE, WORDS = "x.y", "no luck"
"""Why a run failed."""


@dataclass(frozen=True)
class Act:
    """One thing that happens in a run: `think`, `call`, `say`, `ask`, or an end by its native status."""

    kind: str
    text: str = ""


THINKS, CALLS, ASKS = Act("think", "hm"), Act("call"), Act("ask")
COMPLETES, FAILS, CANCELLED = Act("completed"), Act("failed"), Act("cancelled")
ENDS = ("completed", "failed", "cancelled")


def says(text: str = SAID) -> Act:
    return Act("say", text)


WHOLE = (THINKS, CALLS, says(), COMPLETES)
"""A run that thinks, calls a tool, speaks and completes."""


def pieces(text: str = SAID, size: int = 5) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]
