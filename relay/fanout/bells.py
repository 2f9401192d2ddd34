"""Hearing bells: one bare pub/sub connection per server that holds a followed run, whatever the topology.

A channel's connection is the one of the server that holds its slot. When a connection breaks, a server says that a
channel lives elsewhere, or is found to be no master any more, the topology is looked at again and its channels are
subscribed where they live now. Every acknowledged subscription is reported like a bell: it is the moment from which on
nothing can be missed. Bells that were lost meanwhile are the position check's business.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from relay import telemetry
from relay.core.errors import StoreUnavailable
from relay.store.bells import Bells
from relay.store.node import Node
from relay.store.redis import Store

_PING_S = 4.0
_DEAD_S = 12.0
"""A connection that answers no ping for this long is dead, whatever TCP says."""
_AGAIN_S = 0.25

Bell = tuple[bytes, bytes | None]
"""A channel and what its bell tells; None for the acknowledgement of a subscription."""
Heard = Callable[[Sequence[Bell]], None]
"""Called with all that came at once: with many runs they come in dozens, and most of them say nothing new."""


class Ear:
    """The connection to one server and the channels it should hear. Ends, with an error, when the connection does, or
    when the server no longer holds what it held."""

    def __init__(self, node: Node, heard: Heard) -> None:
        self.channels: set[bytes] = set()
        self._leaving: Counter[bytes] = Counter()
        """Our own SUNSUBSCRIBEs that were not acknowledged yet: the last reader leaves, and another one comes at once."""
        self._bells = Bells(node, self._pushed)
        self._heard = heard
        self._unsaid: list[tuple[str, bytes]] = []
        self._speak_up = asyncio.Event()

    def subscribe(self, channel: bytes) -> None:
        self.channels.add(channel)
        self._say("SSUBSCRIBE", channel)

    def unsubscribe(self, channel: bytes) -> None:
        if channel in self.channels:
            self.channels.discard(channel)
            self._leaving[channel] += 1
            self._say("SUNSUBSCRIBE", channel)

    def _say(self, command: str, channel: bytes) -> None:
        self._unsaid.append((command, channel))
        self._speak_up.set()

    async def run(self) -> None:
        """Until the connection breaks or a channel turns out to live elsewhere: raises StoreUnavailable."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._bells.gone(), name="bells' server")
                async with asyncio.timeout(_DEAD_S):
                    await self._bells.connect()
                tasks.create_task(self._speak(), name="bell speaker")
                await self._bells.ended()
        except* (StoreUnavailable, TimeoutError) as errors:
            raise StoreUnavailable("the bells fell silent") from errors
        finally:
            self._bells.close()

    def _pushed(self, messages: Sequence[Any]) -> None:
        bells: list[Bell] = []
        for message in messages:
            if len(message) != 3:
                continue  # what a ping is answered
            kind, channel, payload = message
            if kind == b"smessage":
                bells.append((channel, payload))
            elif kind == b"ssubscribe":
                bells.append((channel, None))
            elif kind == b"sunsubscribe":
                self._left(channel)
        self._heard(bells)

    def _left(self, channel: bytes) -> None:
        if self._leaving[channel] > 0:
            self._leaving -= Counter((channel,))  # drops what falls to zero
        elif channel in self.channels:
            self._bells.close()  # this server no longer holds a channel we asked for

    async def _speak(self) -> None:
        """Send what was asked for; a ping when nothing was, and see whether anything ever comes back."""
        clock = asyncio.get_running_loop().time
        while clock() - self._bells.heard_at < _DEAD_S:
            unsaid, self._unsaid = self._unsaid, []
            self._speak_up.clear()
            for command, channel in unsaid:
                self._bells.send(command, channel)
            try:
                async with asyncio.timeout(_PING_S):
                    await self._speak_up.wait()
            except TimeoutError:
                self._bells.send("PING")
        raise StoreUnavailable("the bells fell silent")


class BellListener:
    """All ears of this process."""

    def __init__(self, store: Store, heard: Heard) -> None:
        self._store = store
        self._heard = heard
        self._channels: dict[bytes, str | None] = {}
        """Every channel, and the name of the server whose ear hears it; None while none does."""
        self._ears: dict[str, Ear] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._homeless = asyncio.Event()

    def add(self, channel: bytes) -> None:
        self._channels[channel] = None
        self._place(channel)

    def remove(self, channel: bytes) -> None:
        name = self._channels.pop(channel, None)
        ear = self._ears.get(name) if name is not None else None
        if ear is not None:
            ear.unsubscribe(channel)

    async def run(self) -> None:
        """For ever: find a home for channels that have none."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await self._place_for_ever()
            finally:
                self._tasks = None  # requests that are still open at shutdown hear nothing any more

    async def _place_for_ever(self) -> None:
        for channel in self._channels:
            self._place(channel)
        while True:
            await self._homeless.wait()
            self._homeless.clear()
            await asyncio.sleep(_AGAIN_S)
            await self._look_again()
            for channel in [channel for channel, name in self._channels.items() if name is None]:
                self._place(channel)

    async def _look_again(self) -> None:
        try:
            await self._store.look_again()
        except StoreUnavailable:
            self._homeless.set()

    def _place(self, channel: bytes) -> None:
        if self._tasks is None:
            return  # `run` places everything when it starts; nothing is heard after its end
        node = self._store.node_of(channel.decode())
        if node is None:
            self._homeless.set()
            return
        ear = self._ears.get(node.name)
        if ear is None:
            ear = self._ears[node.name] = Ear(node, self._heard)
            self._tasks.create_task(self._keep(node.name, ear), name="bell listener")
        self._channels[channel] = node.name
        ear.subscribe(channel)

    async def _keep(self, name: str, ear: Ear) -> None:
        try:
            await ear.run()
        except StoreUnavailable as error:
            telemetry.STORE_ERRORS.labels("bells").inc()
            telemetry.logger().warning("bells.lost", server=name.rpartition("@")[2], reason=str(error.message))
        finally:
            del self._ears[name]
            for channel in ear.channels:
                if self._channels.get(channel) == name:
                    self._channels[channel] = None
            self._homeless.set()
