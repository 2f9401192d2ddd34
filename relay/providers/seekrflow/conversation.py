"""SeekrFlow's threads and messages, for the clients of other faces.

Facts: table A1 of its reference (docs/upstreams/seekrflow.md) and its SDK. A thread is made at a path that ends in a slash;
a list is a bare array; a message is `{role, content}`, its content one text.
"""

from __future__ import annotations

from typing import Final

from relay.core.errors import UpstreamError
from relay.core.events import encode
from relay.core.times import rfc3339
from relay.providers import threads
from relay.providers.contract import Ask
from relay.providers.conversation import Message, Thread, text_of

_JSON: Final = {"Accept": "application/json"}


class SeekrFlowConversation:
    most_messages = 100

    def create_thread(self) -> Ask:
        return Ask("POST", "/v1/threads/", {}, _JSON, encode({"meta_data": None}))

    def get_thread(self, thread_id: str) -> Ask:
        return Ask("GET", f"/v1/threads/{thread_id}", {}, _JSON)

    def delete_thread(self, thread_id: str) -> Ask:
        return Ask("DELETE", f"/v1/threads/{thread_id}", {}, _JSON)

    def add_message(self, thread_id: str, content: str) -> Ask:
        body = encode({"role": "user", "content": content})
        return Ask("POST", f"/v1/threads/{thread_id}/messages", {}, _JSON, body)

    def list_messages(self, thread_id: str) -> Ask:
        query = {"limit": str(self.most_messages), "order": "asc"}
        return Ask("GET", f"/v1/threads/{thread_id}/messages", query, _JSON)

    def thread(self, answer: object) -> Thread:
        if not isinstance(answer, dict) or not text_of(answer, "id"):
            raise UpstreamError("the upstream's answer is not a thread")
        active = text_of(answer, "active_run_id") or None
        return Thread(answer["id"], rfc3339(answer.get("created_at")) or "", active)

    def message(self, answer: object) -> Message:
        return threads.message(answer)

    def messages(self, answer: object) -> list[Message]:
        return [self.message(item) for item in threads.list_of(answer, "messages")]
