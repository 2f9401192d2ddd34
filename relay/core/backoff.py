"""Full-jitter back-off as an immutable value: a fruitless attempt returns the successor, progress starts over."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Backoff:
    base_s: float
    cap_s: float
    attempt: int = 0

    @property
    def ceiling_s(self) -> float:
        """The longest the next pause may be."""
        return min(self.cap_s, self.base_s * 2.0 ** min(self.attempt, 32))

    def pause_s(self, chance: float) -> float:
        """The next pause; `chance` in [0, 1) is the caller's dice, so that this stays pure."""
        return self.ceiling_s * chance

    def failed(self) -> Backoff:
        return replace(self, attempt=self.attempt + 1)
