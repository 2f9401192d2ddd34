"""A worker's own side: an App that listens on sockets its parent bound, and answers its parent's questions.

It has no admin listener, and no configuration but what it was given. It stops when its parent says so or is gone, or at
SIGTERM, like any relay; a worker that was stopped from outside is replaced.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from contextlib import suppress
from typing import Any, Final

from relay import logs, telemetry
from relay.app import App
from relay.core.errors import ConfigError, RelayError
from relay.process import first, run_loop, when_told
from relay.workers.channel import Boot, frame, message_from

_MOMENT_S: Final = 0.2
_TOGETHER_S: Final = 1.0
"""Signals that come together are one: Linux sends a dead parent's children one for every thread it had."""


def serve(boot: Boot, channel: socket.socket) -> int:
    """Until told to stop; the exit status."""
    logs.set_up_log(boot.settings.log, worker=boot.number)
    return run_loop(Worker(boot).run(channel))


class Worker:
    def __init__(self, boot: Boot) -> None:
        self._app = App(
            boot.settings,
            boot.redis_url.value,
            boot.token_secret.value,
            lambda: True,  # the parent watches the embedded server, if there is one
            alone=boot.alone,
            listeners=[socket.socket(fileno=descriptor) for descriptor in boot.listeners],
        )
        self._told = asyncio.Event()
        """To stop: by a signal, or by the parent's last word."""
        self._told_at = math.inf
        self._heard = asyncio.Event()
        """That last word: the order to stop, which is for all workers, or that the channel is closed."""
        self._stop = asyncio.Event()
        self._parent: asyncio.StreamWriter

    async def run(self, channel: socket.socket) -> int:
        """Serve until told to stop; the exit status. An error of ours goes to the parent, who speaks for all."""
        when_told(self._told, self._told_again)
        reader, self._parent = await asyncio.open_unix_connection(sock=channel)
        self._tell({"up": True})
        try:
            await self._serve(reader)
        except RelayError as error:
            status = 2 if isinstance(error, ConfigError) else 1
            self._tell({"failed": error.message, "status": status})
            with suppress(OSError):
                await self._parent.drain()
            return status
        finally:
            self._parent.close()
        return 0

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                listening = tasks.create_task(self._listen(reader, tasks), name="parent's words")
                obeying = tasks.create_task(self._obey(), name="the end")
                await self._app.run(self._stop, self._started)
                listening.cancel()
                obeying.cancel()
        except* RelayError as errors:
            raise first(errors) from None

    def _started(self, app: App) -> None:
        app.alone = False  # from now on there are others
        self._tell({"started": True})

    async def _listen(self, reader: asyncio.StreamReader, tasks: asyncio.TaskGroup) -> None:
        with suppress(EOFError, OSError):
            while True:
                said = await message_from(reader)
                if "stop" in said:
                    self._app.alone = said["alone"]
                    self._last_word()
                else:
                    tasks.create_task(self._answer(said["ask"]), name=f"answer {said['ask']}")
        # The parent is gone: whoever comes in its place needs the port, so our viewers are told without delay.
        self._app.window_s = 0.0
        self._last_word()

    def _last_word(self) -> None:
        self._heard.set()
        self._told.set()

    def _told_again(self) -> None:
        if time.monotonic() - self._told_at > _TOGETHER_S:
            os._exit(1)

    async def _obey(self) -> None:
        """A signal may be the parent's death, and comes a little before the end of its words: these tell."""
        await self._told.wait()
        self._told_at = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(_MOMENT_S):
                await self._heard.wait()
        self._stop.set()

    async def _answer(self, what: str) -> None:
        try:
            self._tell({"answer": what, "value": await self._value(what)})
        except Exception:  # this is a request's boundary too: what breaks an answer must not end the viewers' streams
            telemetry.logger().exception("question.crashed", question=what)
            self._tell({"answer": what, "value": None})

    async def _value(self, what: str) -> Any:
        if what == "metrics":
            return telemetry.page().decode()
        health = self._app.health
        if what == "ready":
            return {"trouble": await health.trouble() if health else "starting"}
        return health.describe() if health else {"watched": [], "pumped": [], "lagging": []}

    def _tell(self, message: dict[str, Any]) -> None:
        self._parent.write(frame(message))
