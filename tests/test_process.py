"""How a process starts: what it does not import, and what becomes of the certificates it does not read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.needs import missing

START = "from relay import process; process.start(tls=False)\n"


def said(script: str, **environ: str) -> str:
    """What a script prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env={**os.environ, **environ}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- imports ---------------------------------------------------------------------------------------------------------
ELSEWHERE = ("relay.demo", "relay.watch", "relay.workers", "rich", "pygments", "structlog")
"""Of other commands, and what only they need."""
HEAVY = ("jwt", "cryptography", "unittest", "multiprocessing", "pydantic", "jsonschema", "sqlite3", "tkinter", "pydoc")
"""Used seldom, or not at all."""
SERVING = (
    "aiohttp",
    "redis",
    "hiredis",
    "prometheus_client",
    "relay.app",
    "relay.web.door",
    "relay.telemetry",
    "uvloop",
)


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        (START + "import relay.cli, relay.settings, relay.app", (*ELSEWHERE, *HEAVY)),
        ("import relay.app", (*ELSEWHERE, *HEAVY)),
        ("import relay.cli", (*ELSEWHERE, *HEAVY, *SERVING, "yaml", "relay.settings")),
        ("import relay.cli, relay.settings", (*ELSEWHERE, *HEAVY, *SERVING, "importlib.metadata")),
        ("import relay.workers.__main__", ("relay.workers.worker", "relay.demo", "rich", *HEAVY, *SERVING)),
    ],
)
def test_nothing_is_imported_that_is_not_used(imported: str, absent: tuple[str, ...]) -> None:
    found = said(f"{imported}\nimport sys; print(*sys.modules)").split()
    assert "relay" in found
    assert [name for name in absent if name in found] == []


def test_installed_packages_are_not_looked_through_for_a_provider_of_our_own(tmp_path: Path) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text("upstreams: [{name: main, provider: arkloop, base_url: 'http://127.0.0.1:1'}]")
    script = (
        "from relay.settings import load; import os, pathlib, sys\n"
        f"load(pathlib.Path({str(file)!r}), {{}}); print('importlib.metadata' in sys.modules)"
    )
    assert said(script) == "False"


# --- certificates ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of localhost, signed by itself; the key is beside it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        missing("openssl", "a certificate is made with it")
    place = tmp_path_factory.mktemp("tls") / "localhost.crt"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", place.with_suffix(".key"),
         "-out", place],
        check=True, capture_output=True,
    )  # fmt: skip
    return place


ASK = """
import asyncio, ssl, sys
before = ssl.create_default_context
from relay import process
process.start(tls={tls})
assert ssl.create_default_context is before and "set_default_verify_paths" not in vars(ssl.SSLContext)
import aiohttp
from aiohttp import web

async def main():
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(sys.argv[1], sys.argv[2])
    runner = web.ServerRunner(web.Server(lambda _: asyncio.sleep(0, web.Response(text="hello"))))
    await runner.setup()
    await web.TCPSite(runner, "localhost", 0, ssl_context=served).start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as session:
        for host in ("localhost", "127.0.0.1", "localhost"):
            try:
                async with session.get(f"https://{{host}}:{{port}}/") as answer:
                    print(await answer.text())
            except aiohttp.ClientConnectorCertificateError:
                print("refused")
    await runner.cleanup()

def run():
    if {uvloop}:
        import uvloop
        return uvloop.run(main())
    return asyncio.run(main())

run()
"""


@pytest.mark.parametrize("uvloop", [True, False])
@pytest.mark.parametrize("tls", [True, False])
def test_certificates_that_are_read_late_are_those_of_the_system(certificate: Path, *, tls: bool, uvloop: bool) -> None:
    if uvloop:
        pytest.importorskip("uvloop")
    key, script = str(certificate.with_suffix(".key")), ASK.format(tls=tls, uvloop=uvloop)
    set_argv = f"import sys; sys.argv[1:] = [{str(certificate)!r}, {key!r}]\n"
    trusting = said(set_argv + script, SSL_CERT_FILE=str(certificate)).split()
    assert trusting == ["hello", "refused", "hello"]  # by a name that is not in the certificate
    assert said(set_argv + script).split() == ["refused"] * 3
