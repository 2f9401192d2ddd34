"""The systems relay itself can read from, by name: one folder and one line here each. Others: settings/kinds.py."""

from __future__ import annotations

from relay.providers.arkloop.provider import Arkloop
from relay.providers.contract import Provider
from relay.providers.openai.provider import Assistants
from relay.providers.own import OwnSeqProvider
from relay.providers.seekrflow.provider import SeekrFlow

PROVIDERS: dict[str, Provider] = {Arkloop.name: Arkloop()}
"""Those that number events durably. Arkloop: per-run seq, native SSE (docs/upstreams/arkloop.md)."""

OWN_SEQ: dict[str, OwnSeqProvider] = {SeekrFlow.name: SeekrFlow(), Assistants.name: Assistants()}
"""Those whose events we number ourselves, because nobody else does (docs/upstreams/seekrflow.md, assistants.md)."""

NAMES = (*PROVIDERS, *OWN_SEQ)
