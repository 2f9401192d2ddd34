"""What a face's create asks for, put into the words of the upstream behind it.

Same shape behind as before: the body goes on as it is. Else only what both know can be passed on, and whatever the
client set beyond it is refused by name: an option that is silently dropped would be a lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from relay.core.errors import InvalidRequest, Unsupported
from relay.core.events import encode


class Wish(NamedTuple):
    """What every system can be asked for."""

    agent: str | None = None
    model: str | None = None


_SEEKR_DEFAULTS: Final[dict[str, Any]] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "max_tokens": None,
}
"""Its SDK always sends these."""


def of_openai(body: Mapping[str, Any]) -> Wish:
    agent = body.get("assistant_id")
    if not isinstance(agent, str) or not agent:
        raise InvalidRequest.field("assistant_id", "missing or not a string", "a string")
    _only(body, "assistant_id", "model", "stream")
    return Wish(agent, _text("model", body.get("model")))


def of_seekrflow(body: Mapping[str, Any]) -> Wish:
    agent = _text("agent_id", body.get("agent_id"))
    settings = body.get("model_settings")
    if isinstance(settings, dict):
        _only({name: value for name, value in settings.items() if value != _SEEKR_DEFAULTS.get(name)})
    rest = {name: value for name, value in body.items() if (name, value) != ("group", "default_group")}
    _only(rest, "agent_id", "model_settings")
    return Wish(None if agent == "default_agent" else agent)


def of_arkloop(body: Mapping[str, Any]) -> Wish:
    _only(body, "persona_id", "model")
    return Wish(_text("persona_id", body.get("persona_id")), _text("model", body.get("model")))


def _only(body: Mapping[str, Any], *known: str) -> None:
    for name, value in body.items():
        if name not in known and value is not None and value not in ({}, []):
            raise Unsupported(f"{name}: the upstream behind this face cannot be asked for it", details={"field": name})


def _text(field: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InvalidRequest.field(field, "not a string", "a string")
    return value or None


_OF: Final[dict[str, Callable[[Mapping[str, Any]], Wish]]] = {
    "openai": of_openai,
    "seekrflow": of_seekrflow,
    "arkloop": of_arkloop,
}
_NAMES: Final = {"openai": "assistant_id", "seekrflow": "agent_id", "arkloop": "persona_id"}
_NO_MODEL: Final = frozenset({"seekrflow"})


def body_for(provider: str, face: str, body: Mapping[str, Any]) -> bytes | None:
    """The body of the upstream's create. Raises Unsupported for what it cannot be asked, InvalidRequest for nonsense."""
    if provider == face:
        return encode({name: value for name, value in body.items() if name != "stream"}) if body else None
    wish = _OF[face](body)
    if wish.model is not None and provider in _NO_MODEL:
        raise Unsupported("model: the upstream behind this face cannot be asked for it", details={"field": "model"})
    if provider not in _NAMES:
        raise Unsupported(f"runs of {provider} cannot be created through this face")
    named = {_NAMES[provider]: wish.agent, "model": wish.model}
    return encode({name: value for name, value in named.items() if value is not None})
