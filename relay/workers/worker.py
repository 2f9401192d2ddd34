"""A worker's own side: an App that listens on sockets its parent bound, and answers its parent's questions.

It has no admin listener, and no configuration but what it was given. It stops when its parent says so or is gone, or at
SIGTERM, like any relay; a worker that was stopped from outside is replaced.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any

from relay import telemetry
from relay.app import App
from relay.core.errors import ConfigError, RelayError
from relay.process import first, run_loop, when_told
from relay.workers.channel import Boot, boot_from, frame, message_from


def main(descriptor: int) -> int:
    channel = socket.socket(fileno=descriptor)
    boot = boot_from(channel)
    if boot is None:
        return 1
    telemetry.set_up_log(boot.settings.log, worker=boot.number)
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
        self._stop = asyncio.Event()
        """Told by a signal, which is for this worker alone, or by the parent, who tells all."""
        self._parent: asyncio.StreamWriter

    async def run(self, channel: socket.socket) -> int:
        """Serve until told to stop; the exit status. An error of ours goes to the parent, who speaks for all."""
        when_told(self._stop)
        reader, self._parent = await asyncio.open_unix_connection(sock=channel)
        self._tell({"up": True})
        try:
            await self._serve(reader)
        except RelayError as error:
            status = 2 if isinstance(error, ConfigError) else 1
            self._tell({"failed": error.message, "status": status})
            with suppress(ConnectionError):
                await self._parent.drain()
            return status
        finally:
            self._parent.close()
        return 0

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                listening = tasks.create_task(self._listen(reader, tasks), name="parent's words")
                await self._app.run(self._stop, self._started)
                listening.cancel()
        except* RelayError as errors:
            raise first(errors) from None

    def _started(self, app: App) -> None:
        app.alone = False  # from now on there are others
        self._tell({"started": True})

    async def _listen(self, reader: asyncio.StreamReader, tasks: asyncio.TaskGroup) -> None:
        with suppress(EOFError, ConnectionError):
            while True:
                said = await message_from(reader)
                if "stop" in said:
                    self._app.alone = said["alone"]
                    self._stop.set()
                else:
                    tasks.create_task(self._answer(said["ask"]), name=f"answer {said['ask']}")
        self._stop.set()  # the parent is gone

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
        return health.describe() if health else {"watched": [], "pumped": []}

    def _tell(self, message: dict[str, Any]) -> None:
        self._parent.write(frame(message))
