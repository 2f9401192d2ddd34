"""Where configuration comes from: one YAML file, and `RELAY_SECTION__KEY` variables, which win over it.

The result is a tree of plain values in the file's shape. The only type knowledge here is what reading needs: a
text key keeps a variable's text as it is (`RELAY_REDIS__PREFIX=007`), every other value is read as YAML. What
the tree means, and whether it is allowed, is decided later.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from relay.core.errors import ConfigError
from relay.core.options import Secret
from relay.settings.schema import (
    PREFIX,
    Key,
    Kind,
    choices,
    dotted,
    is_optional,
    is_section,
    key_named,
    kind_of,
    known_keys,
    nearest,
    required,
    variable,
)

RESERVED = frozenset({"RELAY_CONFIG", "RELAY_API_KEY", "RELAY_RECORDINGS"})
"""Variables that are no settings: the file's path, the key `relay watch` sends, the recordings tests replay."""
RESERVED_PREFIX = "RELAY_TEST_"

_SERVICE_LINK = re.compile(
    r"RELAY(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_LINK_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+")


def gather(path: Path | None, environ: Mapping[str, str]) -> dict[str, Any]:
    """The file's tree with the environment laid over it. An unknown variable is an error that names it."""
    tree = {} if path is None else _read(path)
    named = {name: key_named(name) for name in environ if _is_setting(name, environ[name])}
    known = {key: name for name, key in named.items() if key is not None and _takes_value(key)}
    for key in sorted(
        known
    ):  # a whole list sorts before its items, so RELAY_UPSTREAMS__0__TOKEN refines RELAY_UPSTREAMS
        value = _variable_value(known[key], environ[known[key]], kind_of(key))
        tree = _placed(tree, key, value, ())
    _refuse_unknown(named.keys() - known.values() - set(_references(tree)))
    return tree


# --- the file ------------------------------------------------------------------------------------------------------
class _Loader(yaml.SafeLoader):
    """SafeLoader, but a key given twice is an error: silently taking the last one hides half of a section."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, "a key is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the configuration file {path} is not UTF-8 text") from error
    tree = _parsed(text, str(path))
    if tree is None:  # empty, or comments only
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as `server:` at the top, got {type(tree).__name__}")
    return tree


def _parsed(text: str, origin: str) -> Any:
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2024-13-45 looks like a date
        # The cause is cut off on purpose: its text quotes the line, which may hold a secret.
        raise ConfigError(f"{origin}: not valid YAML{_place(error)}") from None


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
    problem = getattr(error, "problem", None)
    return where if problem is None else f"{where}: " + re.sub(r"(['\"])(.*?)\1", _unquoted, problem)


def _unquoted(found: re.Match[str]) -> str:
    """The parser quotes what it found, which may be a piece of a secret: only marks and token names may stay."""
    return found[0] if len(found[2]) <= len(r"\n") or found[2].startswith("<") else "…"


# --- the environment -----------------------------------------------------------------------------------------------
def _is_setting(name: str, value: str) -> bool:
    if not name.startswith(PREFIX) or name in RESERVED or name.startswith(RESERVED_PREFIX):
        return False
    return not _is_service_link(name, value)


def _is_service_link(name: str, value: str) -> bool:
    """Kubernetes puts the addresses of a Service called `relay…` into every pod beside it; they are nobody's typo."""
    if name.endswith("_PORT") and _LINK_ADDRESS.fullmatch(value):
        return True
    return _SERVICE_LINK.fullmatch(name) is not None


def _takes_value(key: Key) -> bool:
    kind = kind_of(key)
    return kind is not None and not (is_section(kind) and len(key) == 1)


def _variable_value(name: str, text: str, kind: Kind) -> Any:
    if required(kind) in (str, Secret) or choices(kind):
        return None if is_optional(kind) and text == "null" else text
    return _parsed(text, name)


def _placed(node: Any, key: Key, value: Any, at: Key) -> Any:
    """A copy of `node` with `value` at `key`: YAML anchors share nodes, so changing one in place could change two."""
    if not key:
        return value
    step, rest = key[0], key[1:]
    if isinstance(step, str):
        mapping = _copied(node, dict, at)
        mapping[step] = _placed(mapping.get(step), rest, value, (*at, step))
        return mapping
    items = _copied(node, list, at)
    if step > len(items):
        raise ConfigError(f"{variable((*at, step, *rest))}: {dotted(at)} has no item {step - 1} before it")
    before = items[step] if step < len(items) else None
    items[step : step + 1] = [_placed(before, rest, value, (*at, step))]
    return items


def _copied(node: Any, kind: type, at: Key) -> Any:
    if node is not None and not isinstance(node, kind):
        raise ConfigError(f"{dotted(at)}: expected a {'mapping' if kind is dict else 'list'}")
    return kind(node or ())


def _references(node: Any) -> Iterator[str]:
    """Variables that secrets name: `token: env:RELAY_MAIN_TOKEN` makes that name known."""
    if isinstance(node, dict | list):
        for item in node.values() if isinstance(node, dict) else node:
            yield from _references(item)
    elif isinstance(node, str) and node.startswith("env:"):
        yield node.removeprefix("env:")


def _refuse_unknown(names: Iterable[str]) -> None:
    for name in sorted(names):
        near = nearest(name.upper(), (variable(key) for key in known_keys() if _takes_value(key)))
        raise ConfigError(f"{name}: unknown variable; the nearest known one is {near}", details={"nearest": near})
