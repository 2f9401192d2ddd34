"""The shape of the configuration: its sections, how a key is named in a file and in the environment, and how a
refusal is worded. Here are no values, no conversions and no rules about values.

A key is a tuple of steps, `("upstreams", 0, "base_url")`: the file calls it `upstreams[0].base_url`, the
environment `RELAY_UPSTREAMS__0__BASE_URL`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, is_dataclass
from functools import reduce
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from relay.core.errors import ConfigError
from relay.core.options import Secret
from relay.delivery.options import DeliveryOptions, DrainOptions
from relay.fanout.options import FanoutOptions
from relay.ingest.options import IngestOptions, UpstreamOptions
from relay.logs import LogOptions
from relay.store.options import EmbeddedOptions, RedisOptions, RetentionOptions
from relay.web.options import AuthOptions, FacesOptions, LimitOptions, ServerOptions

Key: TypeAlias = tuple[str | int, ...]
Kind: TypeAlias = Any
"""A type as written on a field: an option class, `tuple[X, ...]`, `X | None`, Secret, `Literal["a", "b"]`, str, int,
float or bool."""

PREFIX = "RELAY_"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything an operator may choose; each section is documented at its class, every key in config/relay.yaml."""

    server: ServerOptions = field(default_factory=ServerOptions)
    redis: RedisOptions = field(default_factory=RedisOptions)
    embedded: EmbeddedOptions = field(default_factory=EmbeddedOptions)
    retention: RetentionOptions = field(default_factory=RetentionOptions)
    upstreams: tuple[UpstreamOptions, ...] = ()
    ingest: IngestOptions = field(default_factory=IngestOptions)
    fanout: FanoutOptions = field(default_factory=FanoutOptions)
    delivery: DeliveryOptions = field(default_factory=DeliveryOptions)
    drain: DrainOptions = field(default_factory=DrainOptions)
    faces: FacesOptions = field(default_factory=FacesOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)
    auth: AuthOptions = field(default_factory=AuthOptions)
    log: LogOptions = field(default_factory=LogOptions)


# --- types of keys -------------------------------------------------------------------------------------------------
def is_section(kind: Kind) -> bool:
    """An option class, whose fields are keys. A Secret is a value, although it is a dataclass too."""
    return is_dataclass(kind) and kind is not Secret


def _origin(kind: Kind) -> Any:
    return get_origin(kind)  # Any: typeshed's overloads do not know the origins that tuple and Literal have


def is_list(kind: Kind) -> bool:
    return _origin(kind) is tuple


def item_kind(kind: Kind) -> Kind:
    return get_args(kind)[0]


def choices(kind: Kind) -> tuple[str, ...]:
    """The texts a `Literal` allows; none for any other type."""
    return get_args(kind) if _origin(kind) is Literal else ()


def is_optional(kind: Kind) -> bool:
    return isinstance(kind, UnionType)


def required(kind: Kind) -> Kind:
    """`X` of `X | None`; anything else is itself."""
    if not is_optional(kind):
        return kind
    return next(part for part in get_args(kind) if part is not NoneType)


def kind_of(key: Key) -> Kind:
    """The type of a key, or None if there is no such key."""
    return reduce(_child, key, Settings)


def _child(kind: Kind, step: str | int) -> Kind:
    if isinstance(step, int):
        return item_kind(kind) if is_list(kind) else None
    return get_type_hints(kind).get(step) if is_section(kind) else None


def known_keys(index: int = 0) -> Iterator[Key]:
    """Every key there is, sections included; a list shows one item, with this index."""
    return _walk(Settings, (), index)


def _walk(kind: Kind, key: Key, index: int) -> Iterator[Key]:
    if key:
        yield key
    if is_list(kind):
        yield from _walk(item_kind(kind), (*key, index), index)
    elif is_section(kind):
        for name, hint in get_type_hints(kind).items():
            yield from _walk(hint, (*key, name), index)


# --- names of keys -------------------------------------------------------------------------------------------------
def dotted(key: Key) -> str:
    """`upstreams[0].base_url`"""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in key).removeprefix(".")


def pattern(key: Key) -> str:
    """`upstreams[].base_url`: the name all items of a list share."""
    return "".join("[]" if isinstance(step, int) else f".{step}" for step in key).removeprefix(".")


def variable(key: Key) -> str:
    """`RELAY_UPSTREAMS__0__BASE_URL`"""
    return PREFIX + "__".join(str(step).upper() for step in key)


def key_named(name: str) -> Key | None:
    """The inverse of `variable`; None for a name that no key can have (`RELAY_a`, `RELAY_X__00`)."""
    steps = name.removeprefix(PREFIX).split("__")
    key = tuple(int(step) if step.isascii() and step.isdigit() else step.lower() for step in steps)
    return key if variable(key) == name else None


# --- refusals ------------------------------------------------------------------------------------------------------
def refusal(key: str, problem: str, allowed: str) -> ConfigError:
    """One sentence: which key, what is wrong, what is allowed. The caller keeps secrets out of `problem`."""
    details = {"key": key, "problem": problem, "allowed": allowed}
    return ConfigError(f"{key}: {problem}; allowed: {allowed}", details=details)


def unknown_key(key: Key) -> ConfigError:
    index = next((step for step in key if isinstance(step, int)), 0)
    near = nearest(dotted(key), map(dotted, known_keys(index)))
    return ConfigError(f"{dotted(key)}: unknown key; the nearest known one is {near}", details={"nearest": near})


def nearest(name: str, known: Iterable[str]) -> str:
    """The most similar known name, however far: a wrong guess still shows how names are formed."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)), "none")
