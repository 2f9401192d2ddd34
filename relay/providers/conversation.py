"""Threads and messages in native words, and what a system must be able to say so that other faces can have them.

Only text: what has attachments, images or metadata of its own is for that system's own clients.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from relay.providers.contract import Ask


class Thread(msgspec.Struct, frozen=True):
    id: str
    created_at: str
    active_run_id: str | None = None


class Message(msgspec.Struct, frozen=True):
    id: str
    thread_id: str
    role: str
    content: str
    created_at: str
    run_id: str | None = None


class Conversation(Protocol):
    """How one kind of system is asked for threads and messages, with the viewer's credentials."""

    most_messages: int
    """Of a thread that has more than these, the newest cannot be had."""

    def create_thread(self) -> Ask: ...

    def get_thread(self, thread_id: str) -> Ask: ...

    def delete_thread(self, thread_id: str) -> Ask: ...

    def add_message(self, thread_id: str, content: str) -> Ask:
        """A user's message: those of assistants are made by runs."""

    def list_messages(self, thread_id: str) -> Ask: ...

    def thread(self, answer: object) -> Thread:
        """UpstreamError if it is none."""

    def message(self, answer: object) -> Message: ...

    def messages(self, answer: object) -> list[Message]:
        """Oldest first."""


def text_of(answer: dict[str, Any], name: str) -> str:
    value = answer.get(name)
    return value if isinstance(value, str) else ""
