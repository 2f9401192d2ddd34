"""How the log is set up: JSON lines on stderr (console rendering on a terminal) with `run_id`, `upstream` and `trace_id`
where they apply. No secret, token or event body is ever logged.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import orjson


@contextmanager
def _without_rich() -> Iterator[None]:
    """structlog takes rich, where it is installed, for tracebacks that we never print: 70 ms and 4 MB of every start."""
    hidden = "rich" not in sys.modules
    if hidden:
        sys.modules["rich"] = cast(Any, None)  # how Python is told that there is no such module
    try:
        yield
    finally:
        if hidden:
            del sys.modules["rich"]


with _without_rich():
    import structlog


@dataclass(frozen=True, slots=True)
class LogOptions:
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important lines that are written."""
    format: Literal["auto", "json", "console"] = "auto"
    """json lines, console rendering, or auto: console on a terminal, else json."""


def set_up_log(options: LogOptions, **always: int) -> None:
    """Called once, before anything logs. Writes to stderr, so that stdout stays for what a command prints.

    `always` stands on every line: which of several processes it is.
    """

    def sign(_: object, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**line, **always}

    console = options.format == "console" or (options.format == "auto" and sys.stderr.isatty())
    render: list[Any] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_dumps)]
    )
    level = logging.getLevelNamesMapping()[options.level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            sign,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # a line in one write: several processes share it
        cache_logger_on_first_use=True,
    )
    signed = "".join(f',"{name}":{value}' for name, value in always.items())
    form = f'{{"level":"%(levelname)s","event":"%(message)s"{signed}}}'
    logging.basicConfig(level=max(level, logging.WARNING), format=form)


def _dumps(value: object, **_: object) -> str:
    return orjson.dumps(value, default=repr).decode()


def logger(**bound: Any) -> structlog.typing.FilteringBoundLogger:
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(**bound))
