"""The run as a story for people: what the model says flows, everything else is a line or a small block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TextIO

from rich.console import Console

from relay.core.events import FINAL_STATUS, encode, is_final
from relay.watch.margin import Margin
from relay.watch.screen import printable


class _Paper(Console):
    def on_broken_pipe(self) -> None:
        """rich would exit with status 1 here; `run` knows better."""
        raise BrokenPipeError


class Story:
    """The run as text: what the model says flows, everything else is a line or a small block.

    `_flow` names what the cursor of the terminal stands in (None: nothing, at the start of a line); text of another
    kind starts a new paragraph. Without a terminal the same text comes without colours.
    """

    def __init__(self, out: TextIO, err: TextIO, color: bool | None) -> None:
        self._console = _Paper(
            file=out,
            markup=False,
            highlight=False,
            emoji=False,
            no_color=None if color is None else not color,
            force_terminal=color or None,
        )
        self._err = err
        self._flow: str | None = None
        self._tail = "\n"  # the last two characters written
        self._margin = Margin()
        self._streamed: set[str] = set()

    def event(self, event: dict[str, Any], text: str) -> None:
        kind = str(event.get("type", ""))
        data = event.get("data")
        data = data if isinstance(data, dict) else {}
        if is_final(kind, data):
            self._finished(kind, data)
        elif kind in FINAL_STATUS:
            self._line(f"  · a nested agent's run: {FINAL_STATUS[kind]}", "dim")
        elif kind in self._TELL:
            self._TELL[kind](self, data)
        else:
            self._line(f"  · {kind} {_short(data)}", "dim")

    def reset(self, frame: dict[str, Any]) -> None:
        lost = f"{frame.get('from_seq')} to {frame.get('to_seq')}"
        self._line(f"! events {lost} cannot be had ({frame.get('reason')})", "bold red")

    def note(self, text: str) -> None:
        if self._console.is_terminal:
            self._line(f"  … {text}", "yellow")
        else:
            print(f"relay watch: {printable(text)}", file=self._err, flush=True)

    def aside(self, text: str, style: str = "") -> None:
        """A line of whoever shows the run, between what the run says."""
        self._line(text, style)

    def end(self, status: str, last_seq: int) -> None:
        self._line(f"— {status}, seq {last_seq} —", _STATUS_STYLE.get(status, "bold"))

    def flush(self) -> None:
        self._console.file.flush()

    def close(self) -> None:
        self._break()
        self.flush()

    # how text reaches the terminal: two verbs, and one place where it is made harmless
    def _write(self, text: str, style: str, *, flows: bool = False) -> None:
        text = printable(text)
        if flows and self._console.is_terminal:
            text = self._margin.fit(text, self._console.width)
        if text:
            self._console.out(text, end="", style=style, highlight=False)
            self._tail = (self._tail + text)[-2:]
        if text.endswith("\n"):
            self._margin.newline()

    def _stream(self, flow: str, text: str, style: str, label: str = "") -> None:
        if self._flow != flow:
            self._break()
            if label:
                self._line(f"  · {label}", "dim")
            self._flow = flow
        self._write(text, style, flows=True)

    def _line(self, text: str, style: str) -> None:
        self._break()
        self._write(text + "\n", style)

    def _break(self) -> None:
        """To the start of a line, with a blank one before it if text was flowing."""
        missing = (1 if self._flow is None else 2) - self._tail.count("\n", len(self._tail.rstrip("\n")))
        self._flow = None
        self._write("\n" * missing, "")

    # what there is to tell, by type
    def _started(self, data: dict[str, Any]) -> None:
        self._line(f"▶ run started {data.get('model') or ''}".rstrip(), "bold")

    def _said(self, data: dict[str, Any]) -> None:
        if data.get("channel") == "thinking":
            self._stream("thinking", str(data.get("content") or ""), "dim italic", "thinking")
        else:
            self._stream(f"text {data.get('role')}", str(data.get("content") or ""), "")

    def _arguments(self, data: dict[str, Any]) -> None:
        call = _call_id(data)
        self._streamed.add(call)
        self._stream(f"arguments {call}", str(data.get("arguments_delta") or ""), "dim", "arguments")

    def _called(self, data: dict[str, Any]) -> None:
        shown = _call_id(data) in self._streamed
        self._streamed.discard(_call_id(data))
        self._line(f"⚙ {_tool_name(data)}", "bold cyan")
        if not shown:
            self._line(_indented(_short(data.get("arguments"))), "cyan")

    def _returned(self, data: dict[str, Any]) -> None:
        failed = bool(data.get("error") or data.get("is_error"))
        outcome = data.get("error") or data.get("result")
        self._line(f"{'✗' if failed else '✓'} {_tool_name(data)}", "bold red" if failed else "bold green")
        self._line(_indented(_short(outcome)), "red" if failed else "dim")

    def _waiting(self, data: dict[str, Any]) -> None:
        self._line(f"? waiting for input: {data.get('message') or _short(data)}", "bold black on yellow")

    def _input(self, data: dict[str, Any]) -> None:
        self._line(f"> {data.get('content') or ''}", "bold")

    def _titled(self, data: dict[str, Any]) -> None:
        self._line(f"# {data.get('title') or ''}", "bold underline")

    def _gap(self, data: dict[str, Any]) -> None:
        self._line(f"! a gap in the run: {data.get('reason') or _short(data)}", "bold red")

    def _finished(self, kind: str, data: dict[str, Any]) -> None:
        status = FINAL_STATUS[kind]
        why = " ".join(str(data[name]) for name in ("error_class", "message") if data.get(name))
        self._line(f"■ {status}{': ' if why else ''}{why}", _STATUS_STYLE[status])

    _TELL: ClassVar[dict[str, Callable[[Story, dict[str, Any]], None]]] = {
        "run.started": _started,
        "message.delta": _said,
        "tool.call.delta": _arguments,
        "tool.call": _called,
        "tool.result": _returned,
        "run.waiting_for_input": _waiting,
        "run.input_provided": _input,
        "thread.title.updated": _titled,
        "run.gap": _gap,
    }


_STATUS_STYLE = {
    "completed": "bold green",
    "failed": "bold red",
    "cancelled": "bold yellow",
    "interrupted": "bold yellow",
}


def _short(value: object, most: int = 400) -> str:
    """A value in a few lines: text as it is, everything else as JSON, cut where it gets long."""
    text = value if isinstance(value, str) else encode(value).decode()
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def _indented(text: str) -> str:
    return "  " + text.strip("\n").replace("\n", "\n  ")


def _call_id(data: dict[str, Any]) -> str:
    return str(data.get("tool_call_id") or data.get("id") or data.get("tool_call_index") or "")


def _tool_name(data: dict[str, Any]) -> str:
    return str(data.get("tool_name") or data.get("name") or "tool")
