"""From the tree of plain values to the option classes: unknown and missing keys, types, and where secrets come from.

Every error names the full key. Which values of the right type are allowed is said in rules.py, not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_type_hints

from relay.core.errors import ConfigError
from relay.core.options import Secret
from relay.settings.schema import (
    Key,
    Kind,
    Settings,
    choices,
    dotted,
    is_list,
    is_optional,
    is_section,
    item_kind,
    refusal,
    required,
    unknown_key,
)

_FORMS_OF_A_SECRET = "the text itself, file:/path or env:NAME"  # noqa: S105 (words about secrets, no secret)
_WANTED = {str: "text", int: "a whole number", float: "a number such as 15 or 0.5", bool: "true or false"}
_EXACT_FLOAT = 2**53
"""Whole numbers beyond this do not fit a float exactly, and nobody means them."""


def build(tree: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """The settings a tree describes; `environ` and the file system only answer `env:` and `file:` secrets."""
    settings: Settings = _section(Settings, tree, (), environ)
    return settings


def _convert(kind: Kind, value: Any, key: Key, environ: Mapping[str, str]) -> Any:
    if is_optional(kind) and value is None:
        return None
    kind = required(kind)
    if is_section(kind):
        return _section(kind, value, key, environ)
    if is_list(kind):
        return _items(kind, value, key, environ)
    if kind is Secret:
        return Secret(_secret(value, key, environ))
    if choices(kind):
        return _choice(kind, value, key)
    return _scalar(kind, value, key)


def _section(kind: Kind, value: Any, key: Key, environ: Mapping[str, str]) -> Any:
    given = {} if value is None else value  # `server:` with every key commented out
    if not isinstance(given, Mapping):
        raise refusal(dotted(key), f"is {_shape(value)}", "a mapping of keys to values")
    hints = get_type_hints(kind)
    for name in given:
        if name not in hints:
            raise unknown_key((*key, str(name)))
    for option in fields(kind):
        if option.name not in given and not _has_default(option):
            raise refusal(dotted((*key, option.name)), "is missing", _wanted(hints[option.name]))
    return kind(**{name: _convert(hints[name], item, (*key, name), environ) for name, item in given.items()})


def _has_default(option: Field[Any]) -> bool:
    return option.default is not MISSING or option.default_factory is not MISSING


def _items(kind: Kind, value: Any, key: Key, environ: Mapping[str, str]) -> tuple[Any, ...]:
    if value is None:  # `upstreams:` with every item commented out
        return ()
    if not isinstance(value, list):
        raise refusal(dotted(key), f"is {_shape(value)}", "a list, also of one: [item]")
    return tuple(_convert(item_kind(kind), item, (*key, index), environ) for index, item in enumerate(value))


def _choice(kind: Kind, value: Any, key: Key) -> str:
    text: str = _scalar(str, value, key)
    if text not in choices(kind):
        raise refusal(dotted(key), f"{text!r} cannot be used", " or ".join(choices(kind)))
    return text


def _scalar(kind: type, value: Any, key: Key) -> Any:
    if kind is float and type(value) is int and abs(value) <= _EXACT_FLOAT:
        return float(value)
    if type(value) is kind:  # not isinstance: True is an int, and `port: yes` is no port
        return value
    if kind is str and not isinstance(value, dict | list | None):
        raise refusal(dotted(key), f"YAML reads it as {_shape(value)}", "text; put it in quotes")
    raise refusal(dotted(key), f"is {_shape(value)}", _wanted(kind))


# --- secrets -------------------------------------------------------------------------------------------------------
def _secret(value: Any, key: Key, environ: Mapping[str, str]) -> str:
    if not isinstance(value, str):
        raise refusal(dotted(key), f"YAML reads it as {_shape(value)}", f"{_FORMS_OF_A_SECRET}; put it in quotes")
    if value.startswith("file:"):
        return _secret_file(value.removeprefix("file:"), key)
    if value.startswith("env:"):
        return _secret_variable(value.removeprefix("env:"), key, environ)
    return _present(value, dotted(key))


def _secret_file(path: str, key: Key) -> str:
    try:
        content = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{dotted(key)}: the secret's file {path} cannot be read: {error.strerror}") from error
    except ValueError:  # not UTF-8 (cause cut off: it carries the bytes), or a NUL in the path
        raise ConfigError(f"{dotted(key)}: the secret's file {path!r} is not UTF-8 text") from None
    return _present(content.rstrip("\r\n"), f"{dotted(key)}: the secret's file {path}")


def _secret_variable(name: str, key: Key, environ: Mapping[str, str]) -> str:
    if name not in environ:
        raise ConfigError(f"{dotted(key)}: the secret's variable {name} is not set")
    return _present(environ[name], f"{dotted(key)}: the secret's variable {name}")


def _present(secret: str, what: str) -> str:
    """An empty secret is a forgotten one (`${TOKEN:-}`), never a wish; to have none, leave the key out."""
    if not secret:
        raise ConfigError(f"{what} is empty; leave the key out (or null) to have none")
    return secret


# --- words for people ----------------------------------------------------------------------------------------------
_SHAPES = {
    type(None): "empty",
    bool: "a yes or no",
    int: "a number",
    float: "a number",
    str: "text",
    dict: "a mapping",
    list: "a list",
}


def _wanted(kind: Kind) -> str:
    kind = required(kind)
    if kind is Secret:
        return _FORMS_OF_A_SECRET
    return _WANTED.get(kind, "a list" if is_list(kind) else "a mapping")


def _shape(value: Any) -> str:
    """What a value is, never the value: a secret may have landed under the wrong key."""
    return _SHAPES.get(type(value), "a date or binary data")
