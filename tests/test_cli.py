"""The command line as a person meets it: real processes, one clear line on stderr, the documented exit status (§8)."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from relay import __version__
from relay.settings import load
from relay.store.embedded import EmbeddedServer
from relay.store.options import EmbeddedOptions
from relay.web.admit import hash_of
from relay.web.tokens import Tokens
from tests.support.relay import RelayProcess

UPSTREAMS = [{"name": "main", "provider": "arkloop", "base_url": "http://127.0.0.1:1", "token": "a-service-token"}]


def relay(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`python -m relay …` to its end, with nothing of relay's in its environment but what is given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        env={**clean, **environ},
        capture_output=True,
        text=True,
        timeout=40,
    )


def config(path: Path, **sections: Any) -> str:
    file = path / "relay.yaml"
    settings = {
        "server": {"port": 0, "admin_port": 0}, "embedded": {"data_dir": str(path / "data")}, "upstreams": UPSTREAMS,
    }  # fmt: skip
    file.write_text(yaml.safe_dump({**settings, **sections}))
    return str(file)


def complaint(done: subprocess.CompletedProcess[str], status: int, *, alone: bool = True) -> str:
    """The one line it said on stderr; log lines may stand beside it once the log is set up."""
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert done.returncode == status, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("relay: ")]
    assert len(lines) == 1, done.stderr
    if alone:
        assert done.stderr.splitlines() == lines
        assert done.stdout == ""
    return lines[0]


# --- configuration: exit status 2 ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"upstreams": [{**UPSTREAMS[0], "provider": "arklop"}]}, ["upstreams[0].provider", "'arklop'", "arkloop"]),
        ({"upstreams": [{**UPSTREAMS[0], "base_url": "127.0.0.1:1"}]}, ["upstreams[0].base_url"]),
        ({"upstreams": [{**UPSTREAMS[0], "base_url": "http://u:hush@h/"}]}, ["upstreams[0].base_url"]),
        ({"upstreams": [{**UPSTREAMS[0], "base_url": "ftp://h"}]}, ["upstreams[0].base_url"]),
        ({"upstreams": []}, ["upstreams"]),
        ({"upstreams": [*UPSTREAMS, *UPSTREAMS]}, ["upstreams[1].name"]),
        ({"server": {"prot": 80}}, ["server.prot", "server.port"]),
        ({"sever": {"port": 80}}, ["sever", "server"]),
        ({"server": {"port": "eighty"}}, ["server.port"]),
        ({"server": {"port": 70000}}, ["server.port", "65535"]),
        ({"server": {"host": "0.0.0.0"}}, ["auth.mode", "loopback"]),
        ({"auth": {"mode": "api_keys"}}, ["auth.keys"]),
        ({"auth": {"mode": "nome"}}, ["auth.mode"]),
        ({"redis": {"url": "http://h:6379"}}, ["redis.url"]),
        ({"redis": {"url": "redis://:hush@"}}, ["redis.url"]),
    ],
    ids=lambda value: None if isinstance(value, list) else re.sub(r"[^a-z]+", "-", json.dumps(value))[:48],
)
def test_a_configuration_that_cannot_be_used(tmp_path: Path, sections: Any, words: list[str]) -> None:
    line = complaint(relay("check", "--config", config(tmp_path, **sections)), 2)
    assert all(word in line for word in words), line
    assert "hush" not in line
    assert "a-service-token" not in line


def test_nothing_is_started_with_a_configuration_that_cannot_be_used(tmp_path: Path) -> None:
    assert complaint(relay("serve", "--config", config(tmp_path, server={"prot": 80})), 2)
    assert not (tmp_path / "data").exists()


def test_a_variable_nobody_knows_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    line = complaint(relay("check", "--config", config(tmp_path), RELAY_SERVER__PROT="1"), 2)
    assert "RELAY_SERVER__PROT" in line
    assert "RELAY_SERVER__PORT" in line


@pytest.mark.parametrize(
    "text", [None, "", "- a\n", "a: [", "server: {port: 80\n", "\x00", "a: !!python/object:os.system x"]
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "relay.yaml"
    if text is not None:
        file.write_text(text)
    assert complaint(relay("check", "--config", str(file)), 2)


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["serve", "--nothing"], ["watch"], ["token"], ["token", "key"]])
def test_arguments_that_cannot_be_used(arguments: list[str]) -> None:
    done = relay(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "usage: relay" in done.stderr


@pytest.mark.parametrize("number", ["0", "65", "-1", "two", "1.5", "", "1_0", "٢", "9" * 5000])
def test_a_number_of_workers_that_cannot_be_used(tmp_path: Path, number: str) -> None:
    line = complaint(relay("serve", "--workers", number, "--config", config(tmp_path)), 2)
    assert line.startswith("relay: --workers: ")
    assert line.endswith("; allowed: 1 to 64")
    assert not (tmp_path / "data").exists()


def test_a_configured_number_of_workers_that_cannot_be_used(tmp_path: Path) -> None:
    line = complaint(relay("serve", "--config", config(tmp_path), RELAY_SERVER__WORKERS="65"), 2)
    assert line == "relay: server.workers: 65 cannot be used; allowed: 1 to 64"


# --- the surroundings: exit status 1 ---------------------------------------------------------------------------------
@pytest.mark.parametrize("workers", ["1", "3"])
def test_redis_that_evicts_is_refused(tmp_path: Path, workers: str) -> None:
    server = EmbeddedServer.start(EmbeddedOptions(str(tmp_path / "redis")))
    try:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        line = complaint(
            relay("serve", "--workers", workers, "--config", config(tmp_path, redis={"url": server.url})), 1
        )
    finally:
        server.stop()
    assert "allkeys-lru" in line
    assert "noeviction" in line


@pytest.mark.parametrize("workers", ["1", "3"])
@pytest.mark.parametrize(("which", "section"), [("port", "server"), ("admin_port", "server.admin")])
def test_a_port_in_use(tmp_path: Path, which: str, section: str, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = config(tmp_path, server={"port": 0, "admin_port": 0, which: port})
        done = relay("serve", "--workers", workers, "--config", file)
    assert complaint(done, 1, alone=False) == f"relay: {section}: 127.0.0.1:{port} is in use"
    assert "relay.ready" not in done.stderr
    assert not _servers(tmp_path)  # the embedded server went with it


def _servers(data: Path) -> list[str]:
    """Processes whose command line names this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(data / "data") in line:
            found.append(line)
    return found


def test_a_data_directory_that_another_relay_uses(tmp_path: Path) -> None:
    server = EmbeddedServer.start(EmbeddedOptions(str(tmp_path / "data")))
    try:
        line = complaint(relay("serve", "--config", config(tmp_path)), 1)
    finally:
        server.stop()
    assert str(tmp_path / "data") in line


def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = complaint(relay("serve", "--config", config(tmp_path, embedded={"data_dir": str(tmp_path / "file")})), 1)
    assert str(tmp_path / "file") in line


# --- told to stop ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_told_to_stop_it_exits_0_and_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    async with RelayProcess("http://127.0.0.1:1", tmp_path) as process:
        assert await process.signal(number) == 0
    log = process.log.read_text()
    assert "Traceback" not in log
    for line in log.splitlines():
        assert json.loads(line)["event"]  # JSON lines, as it is no terminal
    assert "upstream-secret" not in log
    assert not _servers(tmp_path)


# --- check, version, token -------------------------------------------------------------------------------------------
def test_check_prints_what_is_in_force_and_no_secret(tmp_path: Path) -> None:
    keys = [{"name": "k", "hash": hash_of("rk_x"), "admin": True}]
    auth = {"mode": "api_keys", "keys": keys, "token_secret": "env:HUSH"}
    secret = "a-very-secret-secret-of-40-characters-xx"
    file = config(tmp_path, auth=auth, redis={"url": "redis://user:pass-word@redis.internal:6379/3"})
    done = relay("check", "--config", file, HUSH=secret, RELAY_SERVER__PORT="8123")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    shown = yaml.safe_load(done.stdout)
    assert shown["server"]["port"] == 8123
    assert shown["upstreams"][0]["name"] == "main"
    assert "redis.internal" in shown["redis"]["url"]
    for hidden in (secret, "a-service-token", "pass-word", hash_of("rk_x"), hash_of("rk_x")[7:], "user:"):
        assert hidden not in done.stdout


def test_version() -> None:
    done = relay("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"relay {__version__}\n", "")


def test_a_made_key_opens_what_its_hash_guards(tmp_path: Path) -> None:
    keys = set()
    for _ in range(2):
        done = relay("token", "key", "frontend")
        assert (done.returncode, done.stderr) == (0, "")
        [key] = re.findall(r"^\s*(rk_[A-Za-z0-9_-]{40,})$", done.stdout, re.M)
        block = done.stdout[done.stdout.index("- name:") :]
        [entry] = yaml.safe_load(block)
        assert entry == {"name": "frontend", "hash": hash_of(key)}
        file = config(tmp_path, auth={"mode": "api_keys", "keys": [entry]})
        assert load(Path(file), {}).auth.keys[0].hash == hash_of(key)
        keys.add(key)
    assert len(keys) == 2


@pytest.mark.parametrize("name", ["", "two words", "a\nb"])
def test_a_key_is_not_made_for_a_name_that_the_configuration_would_refuse(name: str) -> None:
    done = relay("token", "key", name)
    assert done.returncode == 2, done.stdout
    assert "rk_" not in done.stdout
    assert "Traceback" not in done.stderr


SECRET = "a-test-secret-of-at-least-32-characters"


@pytest.mark.parametrize("arguments", [["../x"], ["r", "--upstream", "other"]])
def test_arguments_that_name_no_run_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    file = config(tmp_path, auth={"mode": "none", "token_secret": SECRET})
    assert complaint(relay("token", "viewer", "--config", file, *arguments), 2)


def test_a_viewer_token_that_would_not_be_accepted_is_not_made(tmp_path: Path) -> None:
    file = config(tmp_path, redis={"url": "redis://127.0.0.1:1"})
    assert "auth.token_secret" in complaint(relay("token", "viewer", "--config", file, "r"), 1)


def test_a_viewer_token_is_signed_for_one_run(tmp_path: Path) -> None:
    file = config(tmp_path, auth={"mode": "none", "token_secret": SECRET})
    done = relay("token", "viewer", "--config", file, "run-1")
    assert (done.returncode, done.stderr) == (0, "")
    key, _, _ = Tokens(SECRET).read(done.stdout.strip())
    assert key == ("main", "run-1")


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_crash_in_the_log_shows_where_and_never_what(form: str) -> None:
    """The locals of a frame hold tokens, keys and event bodies; a traceback of the log must not print them."""
    script = (
        "from relay.logs import LogOptions, logger, set_up_log\n"
        "def authenticate(presented):\n    raise RuntimeError('broken')\n"
        f"set_up_log(LogOptions(format={form!r}))\n"
        "try:\n    authenticate('hush-' + 'hush')\n"
        "except RuntimeError:\n    logger().exception('request.crashed')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "broken" in done.stderr
    assert "hush-hush" not in done.stderr
