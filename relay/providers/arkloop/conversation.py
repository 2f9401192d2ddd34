"""Arkloop's threads and messages, for the clients of other faces.

Facts from its public pages and its server's source (v1_threads.go, v1_messages.go, snapshot of 2026-04-26): create thread
`{title?, is_private?}` 201; a message is `{content}` and always the user's, 201; a list is a bare array, oldest first, of
at most 500; DELETE is 204 without a body; an unknown field is 422.
"""

from __future__ import annotations

from typing import Final

from relay.core.errors import UpstreamError
from relay.core.events import encode
from relay.providers.contract import Ask
from relay.providers.conversation import Message, Thread, text_of

_JSON: Final = {"Accept": "application/json"}


class ArkloopConversation:
    most_messages = 500

    def create_thread(self) -> Ask:
        return Ask("POST", "/v1/threads", {}, _JSON, b"{}")

    def get_thread(self, thread_id: str) -> Ask:
        return Ask("GET", f"/v1/threads/{thread_id}", {}, _JSON)

    def delete_thread(self, thread_id: str) -> Ask:
        return Ask("DELETE", f"/v1/threads/{thread_id}", {}, _JSON)

    def add_message(self, thread_id: str, content: str) -> Ask:
        return Ask("POST", f"/v1/threads/{thread_id}/messages", {}, _JSON, encode({"content": content}))

    def list_messages(self, thread_id: str) -> Ask:
        return Ask("GET", f"/v1/threads/{thread_id}/messages", {"limit": str(self.most_messages)}, _JSON)

    def thread(self, answer: object) -> Thread:
        if not isinstance(answer, dict) or not text_of(answer, "id"):
            raise UpstreamError("the upstream's answer is not a thread")
        return Thread(answer["id"], text_of(answer, "created_at"), text_of(answer, "active_run_id") or None)

    def message(self, answer: object) -> Message:
        if not isinstance(answer, dict) or not text_of(answer, "id"):
            raise UpstreamError("the upstream's answer is not a message")
        names = ("thread_id", "role", "content", "created_at")
        said = {name: text_of(answer, name) for name in names}
        return Message(id=answer["id"], run_id=text_of(answer, "run_id") or None, **said)

    def messages(self, answer: object) -> list[Message]:
        if not isinstance(answer, list):
            raise UpstreamError("the upstream's answer is not a list of messages")
        return [self.message(item) for item in answer]
