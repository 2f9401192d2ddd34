"""Which values are allowed, alone and together."""

from __future__ import annotations

import pytest

from relay.core.options import Secret
from relay.settings import load
from tests.settings.loading import HASH, SECRET, UPSTREAM, loaded, refused


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("server.host", ["127.0.0.1", "::1", "localhost"], ["", "a b", "127.0.0.1:80", "[::1]", "a..b", "-"]),
        ("server.port", ["0", "1", "65535"], ["-1", "65536"]),
        ("server.admin_port", ["0", "65535"], ["-1", "65536"]),
        ("server.workers", ["1", "2", "64"], ["0", "65", "-1"]),
        ("server.allowed_hosts[0]", ["a.example", "relay", "my_relay", "10.0.0.1"], ["a.example:80", "", "*.example", "http://a"]),
        ("server.cors_origins[0]",
         ["https://app.example.com", "http://localhost:3000", "http://[::1]:8080", "capacitor://localhost"],
         ["*", "null", "https://a.example/", "https://A.example", "https://a.example:443", "http://a:80", "a.b", ""]),
        ("drain.window_s", ["0.1", "10"], ["0", "-1", ".nan", ".inf"]),
        ("drain.close_s", ["0.1", "5"], ["0", "-1", ".nan", ".inf"]),
        ("redis.url",
         ["redis://h", "rediss://u:p@h:1/0", "unix:///a", "redis://h:6379/0?protocol=3"],
         ["http://h", "redis://", "redis://h:99999", "redis://h:x", "unix://", "h:6379", "redis://h/x", "redis://[h"]),
        ("redis.prefix", ["relay", "A.b_c-1"], ["", "a:b", "{a}", "x" * 65, "a\n"]),
        ("redis.partitions", ["1", "4096"], ["0", "4097"]),
        ("redis.timeout_s", ["0.5"], ["0"]),
        ("embedded.data_dir", ["/tmp/x", "x"], ["", "a\0"]),
        ("retention.live_events", ["1"], ["0", "-5"]),
        ("ingest.discover_s", ["0.5", "60"], ["0", "-1", ".nan", ".inf"]),
        ("ingest.discover_per_s", ["0.5", "1000"], ["0", "-1", ".nan", ".inf"]),
        ("delivery.retry_min_ms", ["1000", "10000"], ["999", "10001"]),
        ("delivery.max_age_s", ["0", "60", "86400.5"], ["-1", "59.9", ".inf"]),
        ("auth.mode", ["none"], ["jwt", "", "NONE"]),
        ("auth.token_secret", ["x" * 32], ["x" * 31]),
        ("log.level", ["debug", "info", "warning", "error"], ["warn", "INFO"]),
        ("log.format", ["auto", "json", "console"], ["text"]),
    ],
)  # fmt: skip
def test_the_table_of_values(key: str, good: list[str], bad: list[str]) -> None:
    name = "RELAY_" + key.replace("[0]", "__0").replace(".", "__").upper()
    for value in good:
        loaded({name: value})
    for value in bad:
        message = refused({name: value})
        assert message.startswith(key), value
        assert "allowed: " in message or "is empty" in message


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("name", ["main", "a-1"], ["Main", "a_b", "", "x" * 33, "a/b"]),
        ("base_url",
         ["http://h", "https://h:1/prefix/", "http://[::1]:80"],
         ["ftp://h", "http://", "h", "",
          "http://h?a=1", "http://h#f", "http://h?", "http://u:s3cret@h", "http://h:99999", "http://a b"]),
        ("discover", ["false", "true"], ["maybe", "1"]),
        ("authorization", ["auto", "bearer", "raw"], ["basic", "", "Bearer"]),
        ("team_id", ["team-1", "a.b_c"], ["", "a b", "x" * 129, "a/b"]),
        ("poll_s", ["0.5", "5"], ["0", "-1", ".nan"]),
    ],
)  # fmt: skip
def test_the_table_of_upstream_values(key: str, good: list[str], bad: list[str]) -> None:
    def environ(value: str) -> dict[str, str]:
        return {"RELAY_UPSTREAMS": f"[{UPSTREAM}]", f"RELAY_UPSTREAMS__0__{key.upper()}": value}

    for value in good:
        loaded(environ(value))
    for value in bad:
        message = refused(environ(value))
        assert message.startswith(f"upstreams[0].{key}"), value
        assert "s3cret" not in message


def test_serving_needs_an_upstream() -> None:
    assert "upstreams: none is configured" in refused({}, require_upstreams=True)


def test_an_unknown_provider_names_the_known_ones_and_the_nearest() -> None:
    environ = {"RELAY_UPSTREAMS": f"[{UPSTREAM}]", "RELAY_UPSTREAMS__0__PROVIDER": "arklop"}
    assert refused(environ) == (
        "upstreams[0].provider: 'arklop' is unknown (the nearest known one is arkloop); "
        "allowed: arkloop, openai, seekrflow"
    )
    for name in ("seekrflow", "openai"):
        environ["RELAY_UPSTREAMS__0__PROVIDER"] = name
        assert load(None, environ).upstreams[0].provider == name
    environ["RELAY_UPSTREAMS__0__PROVIDER"] = "another"
    assert load(None, environ, providers=["arkloop", "another"]).upstreams[0].provider == "another"


@pytest.mark.parametrize("provider", ["seekrflow", "openai"])
def test_what_lists_runs_by_thread_only_cannot_be_discovered(provider: str) -> None:
    environ = {"RELAY_UPSTREAMS": f"[{UPSTREAM}]", "RELAY_UPSTREAMS__0__PROVIDER": provider}
    loaded(environ)
    message = refused(environ | {"RELAY_UPSTREAMS__0__DISCOVER": "true"})
    assert message.startswith("upstreams[0].discover: cannot be true")


def test_upstream_names_are_unique() -> None:
    message = refused({"RELAY_UPSTREAMS": f"[{UPSTREAM}, {UPSTREAM}]"})
    assert message.startswith("upstreams[1].name: 'main' is already at upstreams[0].name")


@pytest.mark.parametrize("key", ["host", "admin_host"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "relay.example.com"])
def test_without_keys_both_listeners_stay_on_loopback(key: str, host: str) -> None:
    message = refused({f"RELAY_SERVER__{key.upper()}": host})
    assert message.startswith(f"auth.mode: none is only allowed on a loopback address; server.{key} is {host}")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert loaded({"RELAY_SERVER__HOST": host}).auth.mode == "none"


def test_without_keys_any_host_name_is_too_many() -> None:
    assert refused({"RELAY_SERVER__ALLOWED_HOSTS": "['*']"}).startswith("server.allowed_hosts: * with auth.mode none")


def _with_keys(keys: str, **more: str) -> dict[str, str]:
    return {"RELAY_AUTH__MODE": "api_keys", "RELAY_AUTH__KEYS": keys, "RELAY_SERVER__HOST": "0.0.0.0", **more}


def test_api_keys_open_every_address_and_any_host_name() -> None:
    keys = f"[{{name: a, hash: '{HASH}'}}]"
    assert loaded(_with_keys(keys, RELAY_SERVER__ALLOWED_HOSTS="['*']")).server.host == "0.0.0.0"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("[]", "auth.keys: none is configured"),
        (f"[{{name: a b, hash: '{HASH}'}}]", "auth.keys[0].name"),
        (f"[{{name: a, hash: {SECRET}}}]", "auth.keys[0].hash: this value cannot be used"),
        (f"[{{name: a, hash: '{HASH.upper()}'}}]", "auth.keys[0].hash"),
        (f"[{{name: a, hash: '{HASH}'}}, {{name: a, hash: '{HASH[:-1]}b'}}]", "auth.keys[1].name: 'a' is already at"),
        (f"[{{name: a, hash: '{HASH}'}}, {{name: b, hash: '{HASH}'}}]", "auth.keys[1].hash: this value is already at"),
    ],
)
def test_api_keys_are_checked(keys: str, message: str) -> None:
    assert refused(_with_keys(keys)).startswith(message)


def test_a_shared_redis_needs_a_shared_token_secret() -> None:
    environ = _with_keys(f"[{{name: a, hash: '{HASH}'}}]", RELAY_REDIS__URL="redis://h")
    assert refused(environ).startswith("auth.token_secret: is missing; with redis.url")
    assert loaded({**environ, "RELAY_AUTH__TOKEN_SECRET": SECRET}).auth.token_secret == Secret(SECRET)


def test_bounds_stand_in_order() -> None:
    environ = {"RELAY_DELIVERY__RETRY_MIN_MS": "5000", "RELAY_DELIVERY__RETRY_MAX_MS": "4000"}
    assert refused(environ).startswith("delivery.retry_min_ms: 5000 is more than delivery.retry_max_ms")
    assert refused({"RELAY_INGEST__BACKOFF_CAP_S": "0.1"}).startswith("ingest.backoff_base_s: 0.25 is more than")


def test_a_live_log_is_kept_until_it_is_renewed() -> None:
    """An append gives a log no more time: one with less than a lease would be gone while its run goes on."""
    assert loaded({"RELAY_RETENTION__LIVE_S": "3"}).retention.live_s == 3
    assert refused({"RELAY_RETENTION__LIVE_S": "2.9"}).startswith("retention.live_s: 2.9 is less than ingest.lease_s")
    assert refused({"RELAY_INGEST__LEASE_S": "90000"}).startswith("retention.live_s: 86400.0 is less than")
