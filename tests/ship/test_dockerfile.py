"""The image's recipe: linted, and held against what relay, its wheel and the chart say.

What cannot be seen here: a build. No engine is asked for; only the health check is really run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path, PurePosixPath

import pytest

from relay.core.errors import ConfigError
from relay.settings import load
from relay.web.options import ServerOptions
from tests.ship.conftest import ROOT, Helm
from tests.ship.dockerfile import image_environment, stages

pytestmark = pytest.mark.ship


def only(name: str) -> str:
    (rest,) = [instruction.rest for instruction in stages()[-1] if instruction.name == name]
    return rest


def test_hadolint_finds_nothing(hadolint: str) -> None:
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hadolint_can_fail(hadolint: str, tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp\n")
    assert subprocess.run([hadolint, str(bad)], capture_output=True, check=False).returncode != 0


def test_both_stages_stand_on_one_pinned_slim_base() -> None:
    arguments = {rest.split("=")[0]: rest.split("=")[1] for name, rest in stages()[0] if name == "ARG"}
    assert arguments["PYTHON_IMAGE"].startswith("python:3.")
    assert "-slim-" in arguments["PYTHON_IMAGE"]
    assert [stage[0].rest.split()[0] for stage in stages()[1:]] == ["${PYTHON_IMAGE}"] * 2


def test_only_the_finished_environment_leaves_the_build_stage() -> None:
    assert [rest for name, rest in stages()[-1] if name in {"COPY", "ADD"}] == ["--from=build /opt/relay /opt/relay"]
    assert "--without-pip" in " ".join(rest for _, rest in stages()[1])


def test_the_user_is_not_root_and_named_by_number() -> None:
    """Kubernetes can prove `runAsNonRoot` only of a number."""
    assert only("USER") == "10001:10001"


def test_nothing_at_run_time_needs_a_shell() -> None:
    healthcheck = only("HEALTHCHECK").partition("CMD ")[2]
    assert [json.loads(form)[0] for form in (only("ENTRYPOINT"), only("CMD"), healthcheck)] == [
        "relay",
        "serve",
        "python",
    ]


def test_the_entry_point_is_a_script_of_the_wheel() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert json.loads(only("ENTRYPOINT"))[0] in scripts


def test_the_stop_signal_is_the_one_that_drains() -> None:
    assert only("STOPSIGNAL") == "SIGTERM"


def test_exposed_ports_are_the_defaults() -> None:
    assert only("EXPOSE").split() == [str(ServerOptions().port), str(ServerOptions().admin_port)]


# --- what the image decides for relay ------------------------------------------------------------------------------
def test_the_images_variables_are_keys_of_relay() -> None:
    settings = load(None, image_environment(), require_upstreams=False)
    assert settings.server.admin_host == "127.0.0.1"


KEYS = {"RELAY_AUTH__MODE": "api_keys", "RELAY_AUTH__KEYS": f'[{{"name": "a", "hash": "sha256:{"a" * 64}"}}]'}


def test_the_image_leaves_the_public_listener_on_loopback() -> None:
    assert load(None, {**image_environment(), **KEYS}, require_upstreams=False).server.host == "127.0.0.1"


def test_published_without_keys_it_refuses_to_start() -> None:
    published = {**image_environment(), "RELAY_SERVER__HOST": "0.0.0.0"}
    with pytest.raises(ConfigError, match=r"auth\.mode.*loopback"):
        load(None, published, require_upstreams=False)


def test_the_embedded_log_is_on_the_volume_where_the_chart_has_it_too(helm: Helm) -> None:
    data_dir = image_environment()["RELAY_EMBEDDED__DATA_DIR"]
    assert str(PurePosixPath(data_dir).parent) == only("VOLUME")
    assert f'"data_dir" "{data_dir}"' in (helm.chart / "templates" / "_helpers.tpl").read_text()


# --- the health check is run, not read -----------------------------------------------------------------------------
@contextmanager
def listener(status: int) -> Iterator[int]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def health_status(port: int) -> int:
    _, flag, code = json.loads(only("HEALTHCHECK").partition("CMD ")[2])
    environment = {"RELAY_SERVER__ADMIN_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, flag, code]
    return subprocess.run(command, env=environment, capture_output=True, check=False, timeout=30).returncode


@pytest.mark.parametrize(("answer", "healthy"), [(200, True), (503, False), (404, False)])
def test_health_is_what_the_admin_listener_says(answer: int, healthy: bool) -> None:
    with listener(answer) as port:
        assert (health_status(port) == 0) is healthy


def test_nobody_there_is_not_healthy() -> None:
    with listener(200) as port:
        pass
    assert health_status(port) != 0


# --- the build context ---------------------------------------------------------------------------------------------
def test_the_context_holds_what_the_wheel_is_made_of_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"], *packages}
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == needed
