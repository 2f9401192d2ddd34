"""Everything the contract suite runs over: each provider and each face joins with one line here.

What a line lacks is said by `test_joined.py`; what the joined thing promises is tested by `test_contract.py` (systems that
number their events), `test_own_contract.py` (those that do not), `test_fixtures.py` and `test_face_contract.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from examples.tally.tally import Tally
from relay.core.faces import Fold
from relay.core.wires import AnyWire, Wire
from relay.providers import OWN_SEQ, PROVIDERS
from relay.providers.arkloop import face as arkloop
from relay.providers.contract import Provider
from relay.providers.openai import face as openai
from relay.providers.openai import face_stream as openai_stream
from relay.providers.own import OwnSeqProvider
from relay.providers.seekrflow import face as seekrflow
from relay.providers.seekrflow import face_stream as seekrflow_stream

AT = "2026-01-01T00:00:00Z"


def arkloop_row(run_id: str, status: object) -> dict[str, Any]:
    return {"run_id": run_id, "status": status, "thread_id": "t", "created_at": AT}


def tally_row(run_id: str, status: object) -> dict[str, Any]:
    return {"job": run_id, "state": status, "queue": "t", "made_at": AT}


@dataclass(frozen=True)
class Numbered:
    """A system that numbers its events durably."""

    provider: Provider
    row: Callable[[str, object], dict[str, Any]]
    """A run as the system writes it, of this id and status."""
    wire: str
    """What is known of its wire, from the root of the repository."""
    fixtures: tuple[str, ...] = ()
    """Its files in fixtures/."""

    def __str__(self) -> str:
        return self.provider.name


@dataclass(frozen=True)
class Threaded:
    """A system whose runs are in threads and whose events we number."""

    provider: OwnSeqProvider
    wire: str
    fixtures: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.provider.name


@dataclass(frozen=True)
class Face:
    name: str
    wire: AnyWire
    fold: Callable[[dict[str, Any]], Fold] | None
    """None for a face that tells each event by itself."""
    lines: tuple[str, ...]
    """How the lines of its stream may begin: what its clients survive."""
    refusal: Callable[..., tuple[int, dict[str, Any], dict[str, str]]] | None
    """None for the native envelope."""

    def __str__(self) -> str:
        return self.name


NUMBERED = [
    Numbered(PROVIDERS["arkloop"], arkloop_row, "docs/upstreams/arkloop.md", ("arkloop-events", "arkloop-status")),
    Numbered(Tally(), tally_row, "examples/tally/tally.py", ("tally-events", "tally-status")),
]
THREADED = [
    Threaded(
        OWN_SEQ["seekrflow"],
        "docs/upstreams/seekrflow.md",
        ("seekrflow-vercel", "seekrflow-legacy", "seekrflow-status"),
    ),
    Threaded(OWN_SEQ["openai"], "docs/upstreams/assistants.md", ("openai-stream", "openai-status")),
]
FACES = [
    Face("native", Wire("sse"), None, ("id: ", "data: ", "event: ", "retry: ", ": "), None),
    Face("arkloop", arkloop.WIRE, None, ("id: ", "event: ", "data: ", ": "), None),
    Face("seekrflow", seekrflow_stream.WIRE, seekrflow_stream.RunFold, ("data: ",), seekrflow.refusal),
    Face("openai", openai_stream.WIRE, openai_stream.RunFold, ("event: ", "data: ", ": "), openai.refusal),
]
