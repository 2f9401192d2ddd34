"""Every status, every stream event name and every chunk type of the vendors' tables, each with the events it must become.

The cases are files (fixtures/README.md); the tables are here, written out, so that a name without a case fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from relay.core.events import FINAL_STATUS, TERMINAL
from relay.core.run import Run
from relay.core.sse import Decoder
from relay.providers import OWN_SEQ
from relay.providers.contract import Provider
from tests.providers.joined import NUMBERED
from tests.providers.played import FOLDER, Case, cases, odd, played

TABLES: dict[str, str] = {
    # the SeekrFlow/Minds reference, C2
    "seekrflow-status": "queued running completed failed canceled cancelled",
    "openai-status": "queued in_progress requires_action cancelling cancelled failed completed incomplete expired",
    # C3
    "seekrflow-vercel": """
        start start-step finish-step text-start text-delta text-end message-metadata reasoning-start reasoning-delta
        reasoning-end tool-input-start tool-input-delta tool-input-available tool-input-error tool-output-available
        tool-output-error tool-output-denied tool-approval-request tool-approval-response steering-message custom
        reasoning-file source-url source-document file data-weather reset-step data-nestedToolEvent error abort finish
        done [DONE]""",
    "seekrflow-legacy": """
        user_prompt node_header part_start_event text_delta streaming_chunk stream_reasoning tool_call_part_delta
        streaming_tool_request streaming_tool_response streaming_tool final_result_event end_node""",
    "openai-stream": """
        thread.created thread.run.created thread.run.queued thread.run.in_progress thread.run.requires_action
        thread.run.completed thread.run.incomplete thread.run.failed thread.run.cancelling thread.run.cancelled
        thread.run.expired thread.run.step.created thread.run.step.in_progress thread.run.step.delta
        thread.run.step.completed thread.run.step.failed thread.run.step.cancelled thread.run.step.expired
        thread.message.created thread.message.in_progress thread.message.delta thread.message.completed
        thread.message.incomplete error done""",
    # the Arkloop reference, 1.5 and 2.8
    "arkloop-status": "running cancelling completed failed cancelled interrupted",
    "arkloop-events": """
        run.completed run.failed run.cancelled run.interrupted run.started run.route.selected run.cancel_requested
        run.input_requested run.input_provided run.paused run.resumed run.steering_injected run.idle_heartbeat
        run.llm.retry run.provider_fallback run.context_compact run.prompt_cache_debug run.mcp_discovery
        run.channel_delivery_failed worker.job.received message.delta run.segment.start run.segment.end
        llm.turn.completed llm.request llm.response.chunk tool.call tool.call.delta tool.result tool.denied todo.updated
        terminal.stdout_delta terminal.stderr_delta terminal.stdin_expected terminal.stdin_interaction
        acp.permission_required thread.title.updated title.generation.started title.generation.completed
        title.generation.failed title.generation.skipped memory.write.queued memory.write.completed memory.write.failed
        memory.edit.queued memory.edit.completed memory.edit.failed memory.forget.queued memory.forget.completed
        memory.forget.failed memory.distill.started memory.distill.skipped memory.distill.append_failed
        memory.distill.commit_failed memory.distill.committed memory.distill.snapshot_updated
        memory.distill.snapshot_pending memory.notebook_unavailable notebook.snapshot.read_failed
        memory.heartbeat.started security.scan.started security.scan.clean security.scan.degraded
        security.injection.detected security.injection.blocked security.tool_output.detected security.tool_output.clean
        security.tool_output.degraded security.tool_injection.detected run.input_loader run.heartbeat_schedule
        run.tool_provider_bindings run.spawn_agent run.persona_resolution run.channel_context run.channel_admin_tag
        run.channel_group_user_merge run.channel_group_context_trim run.channel_telegram_tools run.sub_agent_context
        run.skill_context run.memory_injection run.runtime_context agent.parallel_dispatch agent.parallel_complete""",
    # examples/tally
    "tally-status": "waiting busy asking finished broke stopped",
    "tally-events": "began said used got asked finished broke stopped",
}
"""File of fixtures -> all names of its table. `unknown` (a name of tomorrow) belongs to each of them."""

ALL = {path.stem: cases(path) for path in sorted(FOLDER.glob("*.yaml"))}


def of(*files: str, late: bool = True) -> list[object]:
    """`late`: with those in which a reader joins in the middle."""
    found: Iterable[Case] = [case for file in files for case in ALL[file]]
    return [pytest.param(case, id=case.label) for case in found if late or "joins late" not in case.label]


def test_every_name_of_every_table_has_a_fixture() -> None:
    missing = {
        file: sorted({*names.split(), "unknown"} - {name for case in ALL.get(file, []) for name in case.covers})
        for file, names in TABLES.items()
        if file != "seekrflow-legacy"  # its unknown types are the other family's
    }
    missing["seekrflow-legacy"] = sorted(
        set(TABLES["seekrflow-legacy"].split()) - {name for case in ALL["seekrflow-legacy"] for name in case.covers}
    )
    assert {file: names for file, names in missing.items() if names} == {}, "add a case to the file named"
    assert sorted(ALL) == sorted(TABLES), "a file of fixtures needs its table here"


def test_no_name_is_known_to_a_provider_and_to_no_table() -> None:
    """A line added to a provider's table needs a fixture, too."""
    from relay.providers.openai.events import _EVENTS
    from relay.providers.openai.events import STATUS as ASSISTANTS
    from relay.providers.seekrflow.chunks import _CHUNKS
    from relay.providers.seekrflow.provider import STATUS as SEEKRFLOW

    named = {file: {name for case in found for name in case.covers} for file, found in ALL.items()}
    assert set(_EVENTS) <= named["openai-stream"]
    assert set(_CHUNKS) <= named["seekrflow-vercel"] | named["seekrflow-legacy"]
    assert set(ASSISTANTS) <= named["openai-status"]
    assert set(SEEKRFLOW) <= named["seekrflow-status"]


@pytest.mark.parametrize("case", of("seekrflow-vercel", "seekrflow-legacy", "seekrflow-status"))
async def test_seekrflow(case: Case) -> None:
    await _check("seekrflow", case)


@pytest.mark.parametrize("case", of("openai-stream", "openai-status"))
async def test_openai(case: Case) -> None:
    await _check("openai", case)


@pytest.mark.parametrize("case", of("seekrflow-vercel", "seekrflow-legacy", late=False))
async def test_a_stream_that_answers_a_create_says_the_same(case: Case) -> None:
    expected = case.body["events"]
    assert await played(OWN_SEQ["seekrflow"].creating("runs/stream/vercel"), case) == expected


async def _check(provider: str, case: Case) -> None:
    before = odd()
    assert await played(OWN_SEQ[provider], case) == case.body["events"]
    counted = {what: count - before.get(what, 0) for what, count in odd().items()}
    assert {what: count for what, count in counted.items() if count} == case.body.get("odd", {})


def numbered(kind: str) -> list[object]:
    """The cases of every system that numbers its events."""
    files = [(one, file) for one in NUMBERED for file in one.fixtures if file.endswith(kind)]
    return [pytest.param(one.provider, case, id=case.label) for one, file in files for case in ALL[file]]


@pytest.mark.parametrize(("provider", "case"), numbered("-events"))
def test_an_event_of_a_system_that_numbers_them(provider: Provider, case: Case) -> None:
    [message] = Decoder().feed(case.body["frame"].encode())
    drafts = provider.drafts(message, run_id="r-1", received_at="2026-01-01T00:00:00Z")
    expected = case.body["event"]
    run = Run("r-1", last_seq=expected["seq"] - 1)
    [event] = run.admit(drafts).events
    assert (event.seq, event.type) == (expected["seq"], expected["type"])
    assert drafts[0].body == expected
    nested = expected["data"].get("delegate_layer") == "acp"
    assert run.ended == (expected["type"] in FINAL_STATUS and not nested)


@pytest.mark.parametrize(("provider", "case"), numbered("-status"))
def test_a_status_of_a_system_that_numbers_its_events(provider: Provider, case: Case) -> None:
    native, ends = provider.run(case.body["run"]), case.body.get("ends")
    expected = case.body["native"]
    assert {name: native[name] for name in expected} == expected
    assert (native["status"] in TERMINAL) == (ends is not None)
    assert ends is None or FINAL_STATUS[ends] == native["status"]


def test_nothing_here_was_recorded() -> None:
    """Recordings of somebody's runs do not belong into this repository: these are made by hand, and short."""
    for path in FOLDER.glob("*.yaml"):
        assert max(map(len, path.read_text("utf-8").splitlines())) < 500, path
        assert not re.search(r"sk-[A-Za-z0-9]{8}|ak-[0-9a-f]{8}|Bearer ", path.read_text("utf-8")), path
