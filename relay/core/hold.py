"""What must be let go of when something ends that has no block of its own to end with.

A stream without a task outlives the call that opened it, so `with` cannot hold what it needs. This is `ExitStack` for
plain functions, in a tenth of the memory: there is one for every viewer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Hold(list[Callable[[], object]]):
    """What is let go of, in the order in which it was added. A list itself: one object of every viewer less."""

    __slots__ = ()

    add = list.append
    """What is added is called at the end, the last added first. It must not raise."""

    def release(self) -> None:
        """The end. Whatever is added later waits for the next one."""
        while self:
            self.pop()()

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()
