"""The systems we can read from, by name. A new one is one folder and one line here."""

from __future__ import annotations

from relay.providers.arkloop.provider import Arkloop
from relay.providers.contract import Provider

PROVIDERS: dict[str, Provider] = {Arkloop.name: Arkloop()}
