"""RELAY_SECTION__KEY variables: they win over the file, and a typo among them never passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from relay.core.errors import ConfigError
from relay.core.options import Secret
from relay.ingest.options import UpstreamOptions
from relay.settings import Settings
from relay.settings.schema import dotted, is_list, is_section, key_named, kind_of, known_keys, variable
from tests.settings.loading import SECRET, UPSTREAM, FileOf, loaded, refused


def test_a_variable_wins_over_the_file(file_of: FileOf) -> None:
    path = file_of("server: {port: 1, admin_port: 2}")
    settings = loaded({"RELAY_SERVER__PORT": "3", "PATH": "/bin"}, path)
    assert (settings.server.port, settings.server.admin_port) == (3, 2)


def test_variables_are_read_as_yaml_but_text_stays_text() -> None:
    environ = {
        "RELAY_SERVER__ALLOWED_HOSTS": "[a.example, b.example]",
        "RELAY_INGEST__LINGER_S": "0.5",
        "RELAY_REDIS__PREFIX": "007",
        "RELAY_UPSTREAMS": f"[{UPSTREAM}]",
        "RELAY_UPSTREAMS__0__TOKEN": "123",
        "RELAY_REDIS__URL": "null",
    }
    settings = loaded(environ)
    assert settings.server.allowed_hosts == ("a.example", "b.example")
    assert settings.ingest.linger_s == 0.5
    assert settings.redis.prefix == "007"
    assert settings.redis.url is None
    assert settings.upstreams == (UpstreamOptions("main", "arkloop", "http://127.0.0.1:1", Secret("123")),)


def test_list_items_are_built_and_refined_by_variables(file_of: FileOf) -> None:
    path = file_of(f"upstreams: [&a {UPSTREAM}, {{<<: *a, name: second}}]")
    environ = {"RELAY_UPSTREAMS__1__TOKEN": "t", "RELAY_UPSTREAMS__2": UPSTREAM, "RELAY_UPSTREAMS__2__NAME": "third"}
    environ["RELAY_SERVER__CORS_ORIGINS__0"] = "https://a.example"
    settings = loaded(environ, path)
    assert [(upstream.name, upstream.token) for upstream in settings.upstreams] == [
        ("main", None),
        ("second", Secret("t")),
        ("third", None),
    ]
    assert settings.server.cors_origins == ("https://a.example",)


def test_more_than_ten_items_keep_their_order() -> None:
    environ = {f"RELAY_SERVER__ALLOWED_HOSTS__{index}": f"h{index}" for index in range(12)}
    assert loaded(environ).server.allowed_hosts == tuple(f"h{index}" for index in range(12))


def test_a_variable_beyond_the_list_is_refused() -> None:
    assert refused({"RELAY_UPSTREAMS__1__NAME": "a"}) == "RELAY_UPSTREAMS__1__NAME: upstreams has no item 0 before it"


def test_a_variable_into_a_misshapen_file_is_refused(file_of: FileOf) -> None:
    assert refused({"RELAY_SERVER__PORT": "1"}, file_of("server: 5")) == "server: expected a mapping"
    assert refused({"RELAY_UPSTREAMS__0__NAME": "a"}, file_of("upstreams: {a: 1}")) == "upstreams: expected a list"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("RELAY_REDIS__PARTITONS", "RELAY_REDIS__PARTITIONS"),
        ("RELAY_SERVER_PORT", "RELAY_SERVER__PORT"),
        ("RELAY_PORT", "RELAY_SERVER__PORT"),
        ("RELAY_UPSTREAMS__3__TOKN", "RELAY_UPSTREAMS__0__TOKEN"),
        ("RELAY_server__port", "RELAY_SERVER__PORT"),
        ("RELAY_UPSTREAMS__00__NAME", "RELAY_UPSTREAMS__0__NAME"),
        ("RELAY_SERVER__PORT__0", "RELAY_SERVER__PORT"),
        ("RELAY_SERVER", "RELAY_SERVER__"),
        ("RELAY_", ""),
    ],
)
def test_an_unknown_variable_is_named_with_the_nearest_known_one(name: str, nearest: str) -> None:
    assert refused({name: SECRET}).startswith(f"{name}: unknown variable; the nearest known one is {nearest}")


def test_variables_that_are_no_settings_are_left_alone() -> None:
    reserved = ("RELAY_API_KEY", "RELAY_RECORDINGS", "RELAY_TEST_REDIS_URL", "RELAYER_PORT")
    assert loaded(dict.fromkeys(reserved, "x")) == Settings()


def test_what_kubernetes_sets_for_a_service_called_relay_is_no_typo() -> None:
    environ = {
        "RELAY_SERVICE_HOST": "10.0.0.1",
        "RELAY_SERVICE_PORT": "80",
        "RELAY_SERVICE_PORT_HTTP": "80",
        "RELAY_PORT": "tcp://10.0.0.1:80",
        "RELAY_PORT_80_TCP": "tcp://10.0.0.1:80",
        "RELAY_PORT_80_TCP_ADDR": "10.0.0.1",
        "RELAY_ADMIN_SERVICE_HOST": "10.0.0.2",
        "RELAY_ADMIN_PORT": "tcp://10.0.0.2:80",
    }
    assert loaded(environ) == Settings()


def test_a_variable_with_bad_yaml_is_named_and_not_quoted() -> None:
    assert refused({"RELAY_UPSTREAMS": f"[{{token: {SECRET}"}).startswith("RELAY_UPSTREAMS: not valid YAML at line 1")
    assert "RELAY_SERVER__ALLOWED_HOSTS: not valid YAML" in refused({"RELAY_SERVER__ALLOWED_HOSTS": "[*]"})


def test_every_key_has_a_variable_and_back() -> None:
    for key in known_keys(index=7):
        assert key_named(variable(key)) == key
        assert kind_of(key) is not None, dotted(key)


@settings_of_hypothesis(max_examples=50, deadline=None)
@given(st.text(max_size=30))
def test_any_value_of_any_variable_is_a_setting_or_a_config_error(text: str) -> None:
    for key in known_keys():
        if is_list(kind_of(key)) or not is_section(kind_of(key)):
            try:
                loaded({variable(key): text})
            except ConfigError as error:
                message = str(error)
            else:
                continue
            assert message.startswith(variable(key)) or str(key[0]) in message
