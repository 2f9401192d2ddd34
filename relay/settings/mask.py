"""The settings in force as plain values for printing and logging, without anything secret in them."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any
from urllib.parse import urlsplit

from relay.core.options import Secret
from relay.settings.schema import Key, Settings, pattern

HIDDEN = "***"


def masked(settings: Settings) -> dict[str, Any]:
    """The file's shape in plain YAML and JSON types; secrets and key hashes are `***`, redis.url keeps its place."""
    shown: dict[str, Any] = _shown(settings, ())
    return shown


def _shown(value: Any, key: Key) -> Any:
    if isinstance(value, Secret):
        return _address(value.value) if pattern(key) == "redis.url" else HIDDEN
    if is_dataclass(value):
        return {option.name: _shown(getattr(value, option.name), (*key, option.name)) for option in fields(value)}
    if isinstance(value, tuple):
        return [_shown(item, (*key, index)) for index, item in enumerate(value)]
    if pattern(key) == "auth.keys[].hash":
        return f"sha256:{HIDDEN}"
    return value


def _address(url: str) -> str:
    """Scheme and host (or socket path) of a Redis URL: user, password and query, which may hold one too, are gone."""
    parts = urlsplit(url)
    place = parts.path if parts.scheme == "unix" else parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}"
