"""The one admin listener of several workers: asks them, and answers for all.

A worker that does not answer in time (frozen, or as busy as that) is left out and counted; it never spoils the page. Keys
were checked at the door before anything here runs; to the workers there is no other way in than their channels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from relay import telemetry
from relay.web.door import json_response
from relay.workers.channel import Question
from relay.workers.child import Child
from relay.workers.exposition import merged

_ANSWER_S: Final = 1.0
_READY_S: Final = 2.5
"""A worker itself waits two seconds for the log before it says that it is not ready."""


class Overview:
    def __init__(
        self, up: Callable[[], Sequence[Child]], stopping: Callable[[], bool], config: Callable[[], dict[str, Any]]
    ) -> None:
        """`up` gives the workers that can be asked at the moment; `stopping` is true from the first word of it on."""
        self._up = up
        self._stopping = stopping
        self._config = config

    async def healthz(self, _: web.Request) -> web.Response:
        """Alive: the parent's event loop turns. Workers that do not are its business, not the orchestrator's."""
        return json_response({"status": "ok"})

    async def readyz(self, _: web.Request) -> web.Response:
        """Ready: at least one worker is."""
        trouble = "stopping" if self._stopping() else await self._trouble()
        if trouble is not None:
            return json_response({"status": "not ready", "reason": trouble}, status=503)
        return json_response({"status": "ready"})

    async def _trouble(self) -> str | None:
        """None as soon as one worker is ready: the others may be slow to answer."""
        trouble = "no worker answers" if self._up() else "no worker is up"
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._ask(child, "ready", _READY_S)) for child in self._up()]
            for next_one in asyncio.as_completed(asked):
                answer = await next_one
                if answer is None:
                    continue
                trouble = answer["trouble"]
                if trouble is None:
                    for task in asked:
                        task.cancel()
                    break
        return trouble

    async def metrics(self, _: web.Request) -> web.Response:
        answers = await self._all("metrics")
        pages = {number: page for number, page in answers.items() if page is not None}
        body = merged(telemetry.page(telemetry.PARENT).decode(), pages).encode()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def runs(self, _: web.Request) -> web.Response:
        """What is watched and pumped and who lags, each entry with its worker; and which workers did not say."""
        answers = await self._all("runs")
        silent = [number for number, answer in answers.items() if answer is None]
        return json_response(
            {
                "watched": _entries(answers, "watched"),
                "pumped": _entries(answers, "pumped"),
                "lagging": _entries(answers, "lagging"),
                "silent": silent,
            }
        )

    async def config(self, _: web.Request) -> web.Response:
        """The effective configuration, secrets masked: the same for all of them."""
        return json_response(self._config())

    async def _all(self, what: Question) -> dict[int, Any]:
        async with asyncio.TaskGroup() as tasks:
            asked = {child.number: tasks.create_task(self._ask(child, what, _ANSWER_S)) for child in self._up()}
        return {number: task.result() for number, task in asked.items()}

    async def _ask(self, child: Child, what: Question, within_s: float) -> Any:
        answer = await child.ask(what, within_s)
        if answer is None:
            telemetry.WORKERS_SILENT.labels(what).inc()
        return answer


def _entries(answers: dict[int, Any], kind: str) -> list[dict[str, Any]]:
    return [
        {**entry, "worker": number}
        for number, answer in answers.items()
        if answer is not None
        for entry in answer[kind]
    ]
