"""Which values are allowed: one table for values by themselves, below it the rules between keys.

Nothing is read or converted here. A rule that may see a secret (a token, a password inside an address, an API key
pasted where its hash belongs) is not `quotable`: its refusal never shows the value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

from relay.core.options import Secret
from relay.settings.kinds import find
from relay.settings.schema import Key, Settings, dotted, nearest, pattern, refusal


def check(settings: Settings, *, providers: Collection[str], require_upstreams: bool) -> None:
    """Raise ConfigError for the first value, or combination of values, that is not allowed."""
    for key, value in _values(settings, ()):
        _check_value(key, value)
    _check_upstreams(settings, providers, require_upstreams=require_upstreams)
    _check_order(settings)
    _check_auth(settings)


# --- shapes of values ----------------------------------------------------------------------------------------------
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>\d{1,5}))?")
_BLANK = re.compile(r"[\s\x00-\x1f\x7f]")
_USUAL_PORT = {"http": "80", "https": "443"}


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_host(text: str) -> bool:
    return _is_ip(text) or _HOST_NAME.fullmatch(text) is not None


def _is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or (_is_ip(host) and ip_address(host).is_loopback)


def _is_origin(text: str) -> bool:
    """As a browser sends it: in lower case, without path, and without the port its scheme implies."""
    match = _ORIGIN.fullmatch(text)
    return match is not None and match["port"] != _USUAL_PORT.get(match["scheme"], "")


def _split(url: str) -> SplitResult | None:
    """The parts of an address, or None if it is none (`urlsplit` drops blanks and looks at the port only on demand)."""
    try:
        parts = urlsplit(url)
        usable = _BLANK.search(url) is None and parts.port != 0
    except ValueError:
        return None
    return parts if usable else None


def _is_base_url(url: str) -> bool:
    parts = _split(url)
    if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
        return False
    return not any(mark in url for mark in "?#") and "@" not in parts.netloc


_SERVER = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):\d{1,5}"
_FLEET_URL = re.compile(
    rf"rediss?\+(cluster|sentinel)://([^@/?#\s]*@)?{_SERVER}(,{_SERVER})*(?(1)(/[A-Za-z0-9._-]+(/\d+)?)?)", re.ASCII
)


def _is_fleet_url(url: str) -> bool:
    """Several servers: a cluster has no path, sentinels need the name of the master they watch."""
    found = _FLEET_URL.fullmatch(url)
    return found is not None and (found[1] == "sentinel") == (url.count("/") > 2)


def _is_redis_url(url: str) -> bool:
    if _is_fleet_url(url):
        return True
    parts = _split(url)
    if parts is None or parts.fragment:
        return False
    if parts.scheme == "unix":
        return parts.path.startswith("/")
    return (
        parts.scheme in {"redis", "rediss"}
        and bool(parts.hostname)
        and re.fullmatch(r"(/\d*)?", parts.path) is not None
    )


# --- the table: values by themselves ---------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Rule:
    holds: Callable[[Any], bool]
    allowed: str
    quotable: bool = True


def _matches(regex: str, allowed: str | None = None, *, quotable: bool = True) -> Rule:
    return Rule(lambda text: re.fullmatch(regex, text) is not None, allowed or regex, quotable)


def _between(low: int, high: int) -> Rule:
    return Rule(lambda number: low <= number <= high, f"{low} to {high}")


def _one_of(*choices: str) -> Rule:
    return Rule(lambda choice: choice in choices, " or ".join(choices))


_PORT = _between(0, 65535)
_LISTEN = Rule(_is_host, "an IP address or a host name, without port")
_POSITIVE = Rule(lambda number: 0 < number < math.inf, "a number greater than 0")

RULES: Mapping[str, Rule] = {
    "server.host": _LISTEN,
    "server.port": _PORT,
    "server.admin_host": _LISTEN,
    "server.admin_port": _PORT,
    "server.workers": _between(1, 64),
    "server.allowed_hosts[]": Rule(lambda host: host == "*" or _is_host(host), "a host name without port, or *"),
    "server.cors_origins[]": Rule(
        _is_origin, "an origin as browsers send it: scheme://host[:port], lower case, no path, no default port"
    ),
    "redis.url": Rule(
        _is_redis_url,
        "redis://host[:port][/db], rediss://…, unix:///path, redis+sentinel://host:port,…/master or redis+cluster://host:port,…",
        quotable=False,
    ),
    "redis.prefix": _matches(r"[A-Za-z0-9_.-]{1,64}"),
    "redis.partitions": _between(1, 4096),
    "embedded.data_dir": Rule(lambda path: bool(path) and "\0" not in path, "the path of a directory"),
    "upstreams[].name": _matches(r"[a-z0-9-]{1,32}"),
    "upstreams[].base_url": Rule(
        _is_base_url,
        "http:// or https://, a host, perhaps a path; no query, fragment, user or password",
        quotable=False,
    ),
    "upstreams[].team_id": _matches(r"[A-Za-z0-9._-]{1,128}"),
    "delivery.backlog_bytes": _between(16_384, 16_777_216),
    "limits.runs_per_connection": _between(1, 500),
    "delivery.max_age_s": Rule(lambda age_s: age_s == 0 or 60 <= age_s < math.inf, "0 (never), or at least 60"),
    "delivery.retry_min_ms": _between(1000, 10000),
    "delivery.retry_max_ms": _between(1000, 10000),
    "auth.mode": _one_of("none", "api_keys"),
    "auth.keys[].name": _matches(r"[A-Za-z0-9._-]{1,64}"),
    "auth.keys[].hash": _matches(r"sha256:[0-9a-f]{64}", "sha256: and 64 lower-case hex digits", quotable=False),
    "auth.token_secret": Rule(lambda secret: len(secret) >= 32, "at least 32 characters", quotable=False),
}


def _values(node: Any, key: Key) -> Iterator[tuple[Key, Any]]:
    """Every single value, with its key; the items of a list one by one."""
    if isinstance(node, tuple):
        for index, item in enumerate(node):
            yield from _values(item, (*key, index))
    elif is_dataclass(node) and not isinstance(node, Secret):
        for option in fields(node):
            yield from _values(getattr(node, option.name), (*key, option.name))
    elif node is not None:
        yield key, node.value if isinstance(node, Secret) else node


def _check_value(key: Key, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    rule = RULES.get(pattern(key), _POSITIVE if is_number else None)
    if rule is not None and not rule.holds(value):
        shown = repr(value) if rule.quotable else "this value"
        raise refusal(dotted(key), f"{shown} cannot be used", rule.allowed)


# --- rules between keys ----------------------------------------------------------------------------------------------
def _check_upstreams(settings: Settings, providers: Collection[str], *, require_upstreams: bool) -> None:
    if require_upstreams and not settings.upstreams:
        raise refusal("upstreams", "none is configured", "at least one, with name, provider and base_url")
    _check_unique("upstreams[{}].name", [upstream.name for upstream in settings.upstreams])
    for index, upstream in enumerate(settings.upstreams):
        if upstream.provider not in providers:
            near = nearest(upstream.provider, providers)
            problem = f"{upstream.provider!r} is unknown (the nearest known one is {near})"
            raise refusal(f"upstreams[{index}].provider", problem, ", ".join(sorted(providers)))
        try:
            kind = find(upstream.provider)
        except KeyError:
            continue
        if upstream.discover and not kind.durable_seq:
            problem = f"cannot be true for {upstream.provider}, which lists runs by thread only"
            raise refusal(f"upstreams[{index}].discover", problem, "false")
        ways = ("auto", *(() if kind.durable_seq else kind.creates))
        if upstream.create not in ways:
            problem = f"{upstream.create!r} is no way to make a run of {upstream.provider}"
            raise refusal(f"upstreams[{index}].create", problem, " or ".join(ways))


def _check_unique(key: str, values: list[str], *, quotable: bool = True) -> None:
    for index, value in enumerate(values):
        first = values.index(value)
        if first != index:
            shown = repr(value) if quotable else "this value"
            raise refusal(key.format(index), f"{shown} is already at {key.format(first)}", "a different value for each")


def _check_order(settings: Settings) -> None:
    delivery, ingest = settings.delivery, settings.ingest
    if delivery.retry_min_ms > delivery.retry_max_ms:
        problem = f"{delivery.retry_min_ms} is more than delivery.retry_max_ms"
        raise refusal("delivery.retry_min_ms", problem, f"1000 to {delivery.retry_max_ms}")
    if ingest.backoff_base_s > ingest.backoff_cap_s:
        problem = f"{ingest.backoff_base_s} is more than ingest.backoff_cap_s"
        raise refusal("ingest.backoff_base_s", problem, f"at most {ingest.backoff_cap_s}")
    if settings.retention.live_s < ingest.lease_s:  # only renewals keep a live log, and there are three in a lease
        problem = f"{settings.retention.live_s} is less than ingest.lease_s"
        raise refusal("retention.live_s", problem, f"at least {ingest.lease_s}")


def _check_auth(settings: Settings) -> None:
    _check_unique("auth.keys[{}].name", [key.name for key in settings.auth.keys])
    _check_unique("auth.keys[{}].hash", [key.hash for key in settings.auth.keys], quotable=False)
    if settings.auth.mode == "none":
        _check_open(settings)
    elif not settings.auth.keys:
        raise refusal("auth.keys", "none is configured, so nobody could come in", "at least one with mode api_keys")
    elif settings.redis.url is not None and settings.auth.token_secret is None:
        problem = "is missing; with redis.url and mode api_keys every process must sign viewer tokens alike"
        raise refusal("auth.token_secret", problem, "the same secret on every process, at least 32 characters")


def _check_open(settings: Settings) -> None:
    """Without keys, only what nobody else can reach: not another machine, and not a web page (DNS rebinding)."""
    server = settings.server
    for name, host in (("server.host", server.host), ("server.admin_host", server.admin_host)):
        if not _is_loopback(host):
            problem = f"none is only allowed on a loopback address; {name} is {host}"
            raise refusal("auth.mode", problem, f"api_keys, or {name} 127.0.0.1, ::1 or localhost")
    if "*" in server.allowed_hosts:
        raise refusal("server.allowed_hosts", "* with auth.mode none opens relay to every web page", "names of hosts")
