"""How the tests of the settings load a configuration, and what every refusal must look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from relay.core.errors import ConfigError
from relay.settings import Settings, load

HASH = "sha256:" + "0a" * 32
SECRET = "s3cret-of-more-than-thirty-two-characters"
UPSTREAM = "{name: main, provider: arkloop, base_url: 'http://127.0.0.1:1'}"

FileOf = Callable[[str], Path]
"""Writes a configuration file."""


def loaded(environ: Mapping[str, str], path: Path | None = None) -> Settings:
    return load(path, environ, require_upstreams=False)


def refused(environ: Mapping[str, str], path: Path | None = None, *, require_upstreams: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, environ, require_upstreams=require_upstreams)
    message = str(caught.value)
    assert SECRET not in message
    assert "\n" not in message
    return message
