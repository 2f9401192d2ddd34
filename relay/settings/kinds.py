"""Which kinds of upstream there are here: relay's own, and those that other installed packages bring.

A package brings one by an entry point of the group `relay.providers`, whose name is the provider's and which is the
provider itself, or a class that makes it (docs/providers.md). It is loaded only if the configuration names it.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

from relay.core.errors import ConfigError
from relay.providers import NAMES, OWN_SEQ, PROVIDERS
from relay.providers.complete import missing
from relay.providers.contract import Provider
from relay.providers.own import OwnSeqProvider

GROUP: Final = "relay.providers"


def names() -> tuple[str, ...]:
    """Every kind that a configuration may name."""
    return (*NAMES, *sorted({point.name for point in _brought()}))


def names_for(wanted: Collection[str]) -> tuple[str, ...]:
    """The same, but installed packages are looked through only for a kind that is not relay's own: it takes a while."""
    return NAMES if set(wanted) <= set(NAMES) else names()


def find(name: str) -> Provider | OwnSeqProvider:
    """The provider of this name. Raises ConfigError if it cannot be used, KeyError if there is none."""
    ours: dict[str, Provider | OwnSeqProvider] = {**PROVIDERS, **OWN_SEQ}
    if name in ours:
        return ours[name]
    points = [point for point in _brought() if point.name == name]
    if not points:
        raise KeyError(name)
    if len(points) > 1:
        raise ConfigError(f"two packages bring the provider {name!r}: {' and '.join(point.value for point in points)}")
    return _loaded(points[0])


@cache
def _brought() -> tuple[EntryPoint, ...]:
    """A name of relay's own is relay's own. Looked for once: all installed packages' metadata are read for it."""
    from importlib.metadata import entry_points  # noqa: PLC0415  (nobody else needs it)

    return tuple(point for point in entry_points(group=GROUP) if point.name not in NAMES)


@cache
def _loaded(point: EntryPoint) -> Provider | OwnSeqProvider:
    try:
        made: Any = point.load()
        made = made() if isinstance(made, type) else made
    except Exception as error:  # somebody else's code: whatever it is, it must be told apart from a fault of ours
        raise ConfigError(
            f"the provider {point.name!r} ({point.value}) cannot be loaded: {type(error).__name__}"
        ) from error
    lacks = missing(made)
    if lacks or made.name != point.name:
        lacks = lacks or [f"the name of its entry point, {point.name!r}"]
        raise ConfigError(f"the provider {point.name!r} ({point.value}) lacks: {'; '.join(lacks)}")
    found: Provider | OwnSeqProvider = made
    return found
