"""The command line: serve, demo, watch, check, token. Says what is wrong in one line; exits 0, 1 or 2 as documented.

Exit status: 0 asked to stop, or done; 2 a configuration or arguments that cannot be used; 1 anything else; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from relay import __version__
from relay.core.errors import ConfigError, InvalidRequest, RelayError, StartupError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except (ConfigError, InvalidRequest) as error:
        return _complain(error, 2)
    except RelayError as error:
        return _complain(error, 1)
    except BrokenPipeError:
        return 0  # whoever read us has seen enough
    except KeyboardInterrupt:
        return 130


def _complain(error: RelayError, status: int) -> int:
    print(f"relay: {error.message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="relay", description="Event-stream gateway and fan-out relay for agent runs.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"relay {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _serve_arguments(commands.add_parser("serve", help="run the relay"))
    _check_arguments(commands.add_parser("check", help="validate the configuration and print what is in force"))
    _watch_arguments(
        commands.add_parser(
            "watch",
            help="show one run live in the terminal, resuming by itself",
            description="Show one run live, resuming by itself. Exits 0 once the run is over, however it ended: a failed "
            "run has been watched well too, and its status is printed. Exits 1 if the relay refuses to show it.",
        )
    )
    _demo_arguments(commands.add_parser("demo", help="everything at once: an upstream, the relay, a run, a dashboard"))
    _token_arguments(commands.add_parser("token", help="make an API key, or a viewer token"))
    return parser


def _config_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML configuration (default: RELAY_CONFIG)")


# --- serve -----------------------------------------------------------------------------------------------------------
def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    _config_argument(parser)
    parser.add_argument("--workers", metavar="N", help="processes on the one port, 1 to 64 (default: server.workers)")
    parser.set_defaults(command=_serve)


def _serve(options: argparse.Namespace) -> int:
    from relay import logs, process
    from relay.settings import load

    settings = _with_workers(load(options.config, os.environ), options.workers)
    process.start()
    logs.set_up_log(settings.log)
    if settings.redis.url is not None:
        secret = settings.auth.token_secret
        made = secret.value if secret else secrets.token_urlsafe(48)
        return _serve_on(settings, settings.redis.url.value, made, lambda: True, alone=False)
    from relay.store.embedded import EmbeddedServer

    server = EmbeddedServer.start(settings.embedded)
    try:
        logs.logger().info("embedded.started", server=server.describe, data_dir=settings.embedded.data_dir)
        return _serve_on(settings, server.url, _token_secret(settings), server.alive, alone=True)
    finally:
        server.stop()


def _serve_on(settings: Any, redis_url: str, token_secret: str, alive: Callable[[], bool], *, alone: bool) -> int:
    """In this process, or as the parent of several; until told to stop."""
    from relay.app import App
    from relay.core.options import Secret
    from relay.process import run_loop

    if settings.server.workers == 1:
        return run_loop(_until_told(App(settings, redis_url, token_secret, alive, alone=alone)))
    from relay.workers import parent

    return parent.serve(parent.Common(settings, Secret(redis_url), Secret(token_secret), alone, alive))


def _with_workers(settings: Any, text: str | None) -> Any:
    """The settings, with the number from the command line if there is one."""
    from relay.settings.rules import RULES
    from relay.settings.schema import refusal

    if text is None:
        return settings
    rule = RULES["server.workers"]
    if not re.fullmatch(r"[0-9]{1,9}", text) or not rule.holds(int(text)):
        raise refusal("--workers", f"{text!r} cannot be used", rule.allowed)
    return replace(settings, server=replace(settings.server, workers=int(text)))


def _token_secret(settings: Any) -> str:
    from relay.app import kept_secret

    if settings.auth.token_secret is not None:
        return str(settings.auth.token_secret.value)
    return kept_secret(Path(settings.embedded.data_dir) / "token.secret")


async def _until_told(app: Any) -> int:
    """Serve until SIGTERM or SIGINT; a second one ends the process now."""
    from relay.process import first, when_told

    stop = asyncio.Event()
    when_told(stop)
    try:
        await app.run(stop)
    except* RelayError as errors:
        raise first(errors) from None
    return 0


# --- check -----------------------------------------------------------------------------------------------------------
def _check_arguments(parser: argparse.ArgumentParser) -> None:
    _config_argument(parser)
    parser.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    import yaml

    from relay.settings import load, masked

    settings = load(options.config, os.environ)
    print(yaml.safe_dump(masked(settings), sort_keys=False, allow_unicode=True), end="")
    return 0


# --- watch -----------------------------------------------------------------------------------------------------------
def _watch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run id")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="address of the relay (default: %(default)s)")
    parser.add_argument("--after-seq", type=int, default=0, metavar="N", help="skip events up to and including N")
    parser.add_argument("--types", metavar="GLOBS", help="only these event types, for example run.*,tool.*")
    parser.add_argument("--json", action="store_true", help="one event per line, for pipes")
    parser.add_argument("--no-color", dest="color", action="store_false", default=None, help="plain text")
    parser.set_defaults(command=_watch)


def _watch(options: argparse.Namespace) -> int:
    from relay.watch import WatchOptions, run

    wanted = WatchOptions(
        url=options.url,
        run_id=options.run,
        after_seq=options.after_seq,
        json=options.json,
        key=os.environ.get("RELAY_API_KEY"),
        types=options.types,
        color=options.color,
    )
    return run(wanted, sys.stdout)


# --- demo ------------------------------------------------------------------------------------------------------------
def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="show one run, then exit 0")
    parser.add_argument("--recording", type=Path, metavar="FILE", help="play this recording (JSON lines) instead")
    parser.add_argument("--port", type=int, default=8080, help="port of the relay; a free one if it is taken")
    parser.add_argument("--speed", type=float, default=1.0, metavar="X", help="play X times as fast")
    parser.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> int:
    from relay.demo.show import ShowOptions, show

    wanted = ShowOptions(once=options.once, recording=options.recording, port=options.port, speed=options.speed)
    return asyncio.run(show(wanted, sys.stdout))


# --- token -----------------------------------------------------------------------------------------------------------
def _token_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    key = kinds.add_parser("key", help="make an API key: prints the key, and its hash for auth.keys")
    key.add_argument("name", metavar="NAME", help="who will use it")
    key.set_defaults(command=_token_key)
    viewer = kinds.add_parser("viewer", help="sign a viewer token for one run, valid for at most ten minutes")
    _config_argument(viewer)
    viewer.add_argument("run", metavar="RUN", help="run id")
    viewer.add_argument("--upstream", metavar="NAME", help="needed where several are configured")
    viewer.set_defaults(command=_token_viewer)


def _token_key(options: argparse.Namespace) -> int:
    import yaml

    from relay.web.admit import hash_of

    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", options.name):
        raise ConfigError("NAME: 1 to 64 of A-Z a-z 0-9 . _ -")
    key = f"rk_{secrets.token_urlsafe(32)}"
    print(f"key (give it to {options.name}; it is not kept anywhere):\n  {key}\n\nfor auth.keys:")
    print(yaml.safe_dump([{"name": options.name, "hash": hash_of(key)}], sort_keys=False), end="")
    return 0


def _token_viewer(options: argparse.Namespace) -> int:
    from relay.core.ids import RunKey, checked_id
    from relay.settings import load
    from relay.web.tokens import Tokens

    settings = load(options.config, os.environ)
    names = [upstream.name for upstream in settings.upstreams]
    name = options.upstream or (names[0] if len(names) == 1 else None)
    if name not in names:
        raise ConfigError(f"--upstream: name one of {', '.join(names)}")
    if settings.auth.token_secret is None and settings.redis.url is not None:
        raise StartupError("auth.token_secret is not set, so a running relay would not accept this token")
    token, _ = Tokens(_token_secret(settings)).mint(RunKey(name, checked_id("RUN", options.run)), minted_by="cli")
    print(token)
    return 0
