"""The configuration file: what is missing is the default, what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.settings import Settings
from tests.settings.loading import SECRET, FileOf, loaded, refused


def test_a_file_needs_only_what_differs(file_of: FileOf) -> None:
    settings = loaded({}, file_of("server: {port: 1}\nredis:\nupstreams:\n"))
    assert settings.server.port == 1
    assert settings.redis == Settings().redis
    assert settings.upstreams == ()


@pytest.mark.parametrize("text", ["", "# only comments\n", "---\n", "\ufeff"])
def test_an_empty_file_is_the_defaults(file_of: FileOf, text: str) -> None:
    assert loaded({}, file_of(text)) == Settings()


def test_the_file_may_be_named_by_a_variable(file_of: FileOf, tmp_path: Path) -> None:
    path = file_of("server: {port: 1}")
    assert loaded({"RELAY_CONFIG": str(path)}).server.port == 1
    other = tmp_path / "other.yaml"
    other.write_text("server: {port: 2}")
    assert loaded({"RELAY_CONFIG": str(path)}, other).server.port == 2
    assert loaded({"RELAY_CONFIG": ""}) == Settings()


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "none.yaml") in refused({}, tmp_path / "none.yaml")
    assert str(tmp_path) in refused({}, tmp_path)
    (tmp_path / "latin").write_bytes(b"log: {level: \xe9}")
    assert "not UTF-8" in refused({}, tmp_path / "latin")


@pytest.mark.parametrize("text", ["- server", "server", "5"])
def test_a_file_that_is_no_mapping_is_refused(file_of: FileOf, text: str) -> None:
    assert "relay.yaml: expected sections" in refused({}, file_of(text))


def test_a_syntax_error_names_the_line_but_quotes_nothing(file_of: FileOf) -> None:
    assert "line 3" in refused({}, file_of("server:\n  port: 1\n host: x\n"))
    assert "not valid YAML" in refused({}, file_of(f"auth: {{token_secret: *{SECRET}}}"))
    assert "not valid YAML" in refused({}, file_of(f"auth: {{token_secret: !{SECRET} x}}"))
    assert "not valid YAML" in refused({}, file_of("auth: {token_secret: 2024-13-45}"))
    assert "not valid YAML" in refused({}, file_of("auth: {token_secret: \x01}"))


def test_a_key_given_twice_is_refused(file_of: FileOf) -> None:
    assert "line 3, column 1: a key is given twice" in refused({}, file_of("log: {}\nauth: {}\nlog: {level: debug}\n"))


def test_an_unknown_key_is_named_with_the_nearest_known_one(file_of: FileOf) -> None:
    assert refused({}, file_of("redis: {partitons: 3}")) == (
        "redis.partitons: unknown key; the nearest known one is redis.partitions"
    )
    assert "sever: unknown key; the nearest known one is server" in refused({}, file_of("sever: {port: 1}"))
    wrong_item = "upstreams:\n- {name: a, provider: arkloop, base_url: http://a}\n- {tokn: x}\n"
    assert "upstreams[1].tokn: unknown key; the nearest known one is upstreams[1].token" in refused(
        {}, file_of(wrong_item)
    )
    assert "8080: unknown key" in refused({}, file_of("8080: x"))


def test_a_missing_key_is_named(file_of: FileOf) -> None:
    assert "upstreams[0].base_url: is missing" in refused({}, file_of("upstreams: [{name: a, provider: arkloop}]"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server: {port: '80'}", "server.port: is text; allowed: a whole number"),
        ("server: {port: yes}", "server.port: is a yes or no; allowed: a whole number"),
        ("server: {port: 80.0}", "server.port: is a number; allowed: a whole number"),
        ("server: {port: null}", "server.port: is empty; allowed: a whole number"),
        ("server: {port: [80]}", "server.port: is a list; allowed: a whole number"),
        ("server: [port]", "server: is a list; allowed: a mapping"),
        ("server: {allowed_hosts: a.example}", "server.allowed_hosts: is text; allowed: a list"),
        ("ingest: {linger_s: soon}", "ingest.linger_s: is text; allowed: a number"),
        ("ingest: {linger_s: 1" + "0" * 400 + "}", "ingest.linger_s: is a number; allowed: a number such as"),
        ("redis: {prefix: 5}", "redis.prefix: YAML reads it as a number; allowed: text; put it in quotes"),
        ("redis: {prefix: 2024-01-01}", "redis.prefix: YAML reads it as a date"),
        ("redis: {prefix: null}", "redis.prefix: is empty; allowed: text"),
        ("upstreams: [null]", "upstreams[0].name: is missing"),
        ("upstreams: [x]", "upstreams[0]: is text; allowed: a mapping"),
        ("auth: {token_secret: 12345}", "auth.token_secret: YAML reads it as a number"),
        ("auth: {token_secret: [s3cret]}", "auth.token_secret: YAML reads it as a list"),
    ],
)
def test_a_wrong_type_is_named_with_what_is_expected(file_of: FileOf, text: str, message: str) -> None:
    found = refused({}, file_of(text))
    assert found.startswith(message)
    assert "s3cret" not in found


def test_whole_numbers_serve_as_durations(file_of: FileOf) -> None:
    linger_s = loaded({}, file_of("ingest: {linger_s: 2}")).ingest.linger_s
    assert linger_s == 2.0
    assert type(linger_s) is float
