"""Secrets: literally, by file or by variable; and nowhere to be seen again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from relay.core.options import Secret
from relay.settings import load, masked
from tests.settings.loading import HASH, SECRET, UPSTREAM, loaded, refused


def _token(value: str, environ: Mapping[str, str] | None = None) -> Secret | None:
    variables = {"RELAY_UPSTREAMS": f"[{UPSTREAM}]", "RELAY_UPSTREAMS__0__TOKEN": value, **(environ or {})}
    return load(None, variables).upstreams[0].token


def test_a_secret_is_given_literally_or_by_file_or_by_variable(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(" from file \r\n")
    assert _token("literal") == Secret("literal")
    assert _token(f"file:{path}") == Secret(" from file ")
    assert _token("env:TOKEN", {"TOKEN": "from variable"}) == Secret("from variable")


def test_a_secret_may_come_from_a_variable_with_our_prefix() -> None:
    assert _token("env:RELAY_MAIN_TOKEN", {"RELAY_MAIN_TOKEN": "x"}) == Secret("x")


def test_a_secret_that_cannot_be_had_is_named_by_its_key(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe")
    problems = {
        f"file:{tmp_path}/none": f"the secret's file {tmp_path}/none cannot be read",
        f"file:{tmp_path}": "cannot be read",
        f"file:{empty}": f"the secret's file {empty} is empty",
        f"file:{binary}": "is not UTF-8 text",
        "env:NOWHERE": "the secret's variable NOWHERE is not set",
        "env:EMPTY": "the secret's variable EMPTY is empty",
        "": "is empty",
    }
    for value, problem in problems.items():
        environ = {"RELAY_UPSTREAMS": f"[{UPSTREAM}]", "RELAY_UPSTREAMS__0__TOKEN": value, "EMPTY": ""}
        message = refused(environ)
        assert message.startswith("upstreams[0].token")
        assert problem in message


def test_the_masked_settings_hold_no_secret() -> None:
    environ = {
        "RELAY_UPSTREAMS": f"[{UPSTREAM}]",
        "RELAY_UPSTREAMS__0__TOKEN": SECRET,
        "RELAY_REDIS__URL": f"rediss://user:{SECRET}@redis.example:6380/3?password={SECRET}",
        "RELAY_AUTH__MODE": "api_keys",
        "RELAY_AUTH__KEYS": f"[{{name: ci, hash: '{HASH}'}}]",
        "RELAY_AUTH__TOKEN_SECRET": SECRET,
    }
    settings = load(None, environ)
    shown = masked(settings)
    text = json.dumps(shown) + yaml.safe_dump(shown) + repr(settings)
    assert SECRET not in text
    assert shown["redis"]["url"] == "rediss://redis.example:6380"
    assert shown["upstreams"][0]["token"] == shown["auth"]["token_secret"] == "***"
    assert shown["auth"]["keys"] == [{"name": "ci", "hash": "sha256:***", "admin": False}]


def test_the_masked_socket_address_keeps_its_path() -> None:
    shown = masked(loaded({"RELAY_REDIS__URL": f"unix://user:{SECRET}@/run/redis.sock?db=1"}))
    assert shown["redis"]["url"] == "unix:///run/redis.sock"
