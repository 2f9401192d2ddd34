"""The configuration: a YAML file and the environment become frozen option classes, or one clear ConfigError.

How a value passes through:

    sources.py  file + RELAY_* variables -> one tree of plain values      (reads; knows no meaning)
    build.py    tree -> option classes: unknown keys, types, secrets      (knows types; knows no meaning)
    rules.py    which values are allowed, alone and together              (knows meaning; reads nothing)
    schema.py   the shape all three share: `Settings`, names of keys, the wording of a refusal

The option classes themselves stand beside the code that uses them; no default value is written down here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from relay.settings.build import build
from relay.settings.kinds import names_for
from relay.settings.mask import masked
from relay.settings.rules import check
from relay.settings.schema import Settings
from relay.settings.sources import gather

__all__ = ["Settings", "load", "masked"]


def load(
    path: Path | None,
    environ: Mapping[str, str],
    *,
    providers: Collection[str] | None = None,
    require_upstreams: bool = True,
) -> Settings:
    """The settings in force: defaults, then the file (`path`, else `RELAY_CONFIG`), then `RELAY_*` variables.

    `providers` are the kinds of upstream there are (None: those installed). `require_upstreams=False` accepts a
    configuration without any (commands that talk to none). Raises ConfigError, which never quotes a secret.
    """
    if path is None and environ.get("RELAY_CONFIG"):
        path = Path(environ["RELAY_CONFIG"])
    settings = build(gather(path, environ), environ)
    if providers is None:
        providers = names_for({upstream.provider for upstream in settings.upstreams})
    check(settings, providers=providers, require_upstreams=require_upstreams)
    return settings
