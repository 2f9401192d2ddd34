"""How long to wait before a dead worker is replaced, as an immutable value."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Patience:
    """Quick deaths in a row make the pauses longer; a worker that lived well forgives those before it."""

    quick_s: float = 10.0
    """A worker that lived shorter than this died quickly; its start (about a second) counts as life."""
    base_s: float = 0.5
    cap_s: float = 15.0
    deaths: int = 0

    def died(self, lived_s: float) -> Patience:
        return replace(self, deaths=self.deaths + 1 if lived_s < self.quick_s else 1)

    @property
    def pause_s(self) -> float:
        """None after the first: the others carry its viewers until it is back."""
        return 0.0 if self.deaths <= 1 else min(self.cap_s, self.base_s * 2.0 ** min(self.deaths - 2, 16))
