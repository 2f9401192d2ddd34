"""Threads and messages of the Assistants shape, for the clients of other faces.

Facts: the vendor's public reference and its SDK. Lists are envelopes of at most 100; content is a list of typed parts, of
which only texts are taken.
"""

from __future__ import annotations

from typing import Final

from relay.core.errors import UpstreamError
from relay.core.events import encode
from relay.core.times import rfc3339
from relay.providers import threads
from relay.providers.contract import Ask
from relay.providers.conversation import Message, Thread, text_of

_HEADERS: Final = {"Accept": "application/json", "OpenAI-Beta": "assistants=v2"}


class AssistantsConversation:
    most_messages = 100

    def create_thread(self) -> Ask:
        return Ask("POST", "/threads", {}, _HEADERS, b"{}")

    def get_thread(self, thread_id: str) -> Ask:
        return Ask("GET", f"/threads/{thread_id}", {}, _HEADERS)

    def delete_thread(self, thread_id: str) -> Ask:
        return Ask("DELETE", f"/threads/{thread_id}", {}, _HEADERS)

    def add_message(self, thread_id: str, content: str) -> Ask:
        body = encode({"role": "user", "content": content})
        return Ask("POST", f"/threads/{thread_id}/messages", {}, _HEADERS, body)

    def list_messages(self, thread_id: str) -> Ask:
        query = {"limit": str(self.most_messages), "order": "asc"}
        return Ask("GET", f"/threads/{thread_id}/messages", query, _HEADERS)

    def thread(self, answer: object) -> Thread:
        if not isinstance(answer, dict) or not text_of(answer, "id"):
            raise UpstreamError("the upstream's answer is not a thread")
        return Thread(answer["id"], rfc3339(answer.get("created_at")) or "")

    def message(self, answer: object) -> Message:
        return threads.message(answer)

    def messages(self, answer: object) -> list[Message]:
        return [self.message(item) for item in threads.list_of(answer, "messages")]
