"""What must be let go of when something ends that has no block of its own to end with.

A stream without a task outlives the call that opened it, so `with` cannot hold what it needs. This is `ExitStack` for
plain functions, in a tenth of the memory: there is one for every viewer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Hold:
    __slots__ = ("_let_go",)

    def __init__(self) -> None:
        self._let_go: list[Callable[[], object]] = []

    def add(self, let_go: Callable[[], object]) -> None:
        """`let_go` is called at the end, the last added first. It must not raise."""
        self._let_go.append(let_go)

    def release(self) -> None:
        """The end. Whatever is added later waits for the next one."""
        while self._let_go:
            self._let_go.pop()()

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()
