"""Threads and messages on a face of another shape than its upstream: mapped where both know them, with text only.

As with everything that is no run, the upstream is asked with the viewer's own credentials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from relay.core.cursor import count_of
from relay.core.errors import InvalidRequest, NotFound, Unsupported
from relay.core.ids import checked_id
from relay.ingest.own_upstream import OwnUpstream
from relay.ingest.upstream import Upstream
from relay.providers.arkloop import face as arkloop
from relay.providers.arkloop.conversation import ArkloopConversation
from relay.providers.contract import Ask
from relay.providers.conversation import Conversation, Message, Thread
from relay.providers.openai import face as openai
from relay.providers.openai.conversation import AssistantsConversation
from relay.providers.seekrflow import face as seekrflow
from relay.providers.seekrflow.conversation import SeekrFlowConversation
from relay.web.door import Answer, Endpoint, json_response
from relay.web.faces.ground import Ground, thread_of
from relay.web.faces.pages import page
from relay.web.faces.proxy import credentials_of
from relay.web.requests import json_body

CONVERSATIONS: Final[dict[str, Conversation]] = {
    "arkloop": ArkloopConversation(),
    "seekrflow": SeekrFlowConversation(),
    "openai": AssistantsConversation(),
}
"""By provider: the systems whose threads other faces can have."""


@dataclass(frozen=True, slots=True)
class Words:
    """How a face says it."""

    thread: Callable[[Thread], dict[str, Any]]
    message: Callable[[Message], dict[str, Any]]
    said: Callable[[Mapping[str, Any]], str]
    made: int = 200
    """The status of what was made."""


WORDS: Final = {
    "arkloop": Words(arkloop.thread, arkloop.message, arkloop.said, made=201),
    "openai": Words(openai.thread, openai.message, openai.said),
    "seekrflow": Words(seekrflow.thread, seekrflow.message, seekrflow.said),
}


class Threads:
    def __init__(self, ground: Ground, face: str, *, keys_are_ours: bool) -> None:
        self._ground = ground
        self._face = face
        self._words = WORDS[face]
        self._keys_are_ours = keys_are_ours

    def or_passed(self, own: Endpoint, carry: Endpoint) -> Endpoint:
        """`own` where the upstream is of another shape that is known here, else what passes requests on (or refuses)."""

        async def choose(request: web.Request) -> Answer:
            name = self._ground.upstream(request, self._face).provider.name
            return await (own if name != self._face and name in CONVERSATIONS else carry)(request)

        return choose

    async def create(self, request: web.Request) -> web.StreamResponse:
        body = await json_body(request)
        for name in ("metadata", "meta_data", "tool_resources"):
            if body.get(name):
                raise Unsupported(f"{name}: the upstream behind this face cannot keep it", details={"field": name})
        messages = body.get("messages") or []
        if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
            raise InvalidRequest.field("messages", "not a list of messages", "a list")
        said = [self._words.said(item) for item in messages]  # all of them, before anything is made
        talk = self._talk(request)
        thread = talk.thread(await self._ask(request, talk.create_thread()))
        for text in said:
            await self._ask(request, talk.add_message(checked_id("thread_id", thread.id), text))
        return json_response(self._words.thread(thread), status=self._words.made)

    async def get(self, request: web.Request) -> web.StreamResponse:
        talk = self._talk(request)
        return json_response(
            self._words.thread(talk.thread(await self._ask(request, talk.get_thread(thread_of(request)))))
        )

    async def delete(self, request: web.Request) -> web.StreamResponse:
        thread_id = thread_of(request)
        await self._ask(request, self._talk(request).delete_thread(thread_id))
        if self._face == "arkloop":
            return web.Response(status=204)
        more = {"id": thread_id, "object": "thread.deleted"} if self._face == "openai" else {}
        return json_response({**more, "deleted": True})

    async def add_message(self, request: web.Request) -> web.StreamResponse:
        thread_id, talk = thread_of(request), self._talk(request)
        text = self._words.said(await json_body(request))
        answer = await self._ask(request, talk.add_message(thread_id, text))
        return json_response(self._words.message(talk.message(answer)), status=self._words.made)

    async def get_message(self, request: web.Request) -> web.StreamResponse:
        message_id = checked_id("message_id", request.match_info["message_id"])
        for message in await self._messages(request):
            if message.id == message_id:
                return json_response(self._words.message(message))
        raise NotFound("there is no such message in this thread", code="messages.not_found")

    async def list_openai(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        limit = count_of(query, "limit", default=20, low=1, high=100)
        items = [self._words.message(message) for message in await self._ordered(request)]
        items, has_more = page(items, query.get("after"), query.get("before"), limit, name="id")
        return json_response(openai.listed(items, has_more=has_more))

    async def list_seekrflow(self, request: web.Request) -> web.StreamResponse:
        limit = count_of(request.query, "limit", default=20, low=0, high=500)
        items = [self._words.message(message) for message in await self._ordered(request)]
        return json_response(items[:limit])

    async def list_arkloop(self, request: web.Request) -> web.StreamResponse:
        """Oldest first, and the newest of them where there are more than were asked for."""
        limit = count_of(request.query, "limit", default=200, low=1, high=500)
        return json_response([self._words.message(message) for message in await self._messages(request)][-limit:])

    async def _ordered(self, request: web.Request) -> list[Message]:
        order = request.query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequest.field("order", "not an order", "asc or desc")
        messages = await self._messages(request)
        if len(messages) >= self._talk(request).most_messages and order == "desc":
            raise Unsupported("of a thread this long its upstream gives only the oldest messages: ask with order=asc")
        return messages if order == "asc" else messages[::-1]

    async def _messages(self, request: web.Request) -> list[Message]:
        talk = self._talk(request)
        return talk.messages(await self._ask(request, talk.list_messages(thread_of(request))))

    def _talk(self, request: web.Request) -> Conversation:
        return CONVERSATIONS[self._upstream(request).provider.name]

    def _upstream(self, request: web.Request) -> Upstream | OwnUpstream:
        return self._ground.upstream(request, self._face)

    async def _ask(self, request: web.Request, ask: Ask) -> Any:
        upstream = self._upstream(request)
        own = credentials_of(request, keys_are_ours=self._keys_are_ours) or ""
        key = own[7:] if own[:7].lower() == "bearer " else own
        # The same key in the form this upstream takes: one vendor's SDK sends it without a scheme.
        return await upstream.ask_as(ask, upstream.provider.authorization(key) if key.strip() else {})
