"""Whom to take for the master, from what several sentinels say. Pure: no clock, no I/O.

Sentinels give the master's address a *config epoch*, which grows with each failover, and adopt whatever comes with a
higher one (Redis Sentinel documentation, "Configuration epochs", "Configuration propagation"). So a higher epoch is
believed at once, whoever says it: it was agreed on. What comes with a lower one is old news of a sentinel that was cut
off or restarted, unless more than half of all sentinels say it for a while and nobody says otherwise: then epochs were
begun anew (an operator's SENTINEL REMOVE and MONITOR), or a sentinel forced a failover and died before it told anybody.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

Address = tuple[str, int]

_FRESH_S: Final = 5.0
"""How long what a sentinel said counts as what it says."""
_OVERRULE_S: Final = 10.0
"""How long a majority must say otherwise before a lower epoch is believed: longer than news takes to reach a sentinel."""


@dataclass(frozen=True, slots=True)
class Word:
    """What one sentinel says."""

    master: Address
    epoch: int


class Belief:
    def __init__(self, sentinels: int) -> None:
        self.master: Address | None = None
        self.epoch = -1
        self._sentinels = sentinels
        self._words: dict[str, tuple[Word, float]] = {}
        self._confirmed_at = 0.0
        """When a sentinel last said what we believe."""

    def hear(self, sentinel: str, word: Word, now: float) -> None:
        self._words[sentinel] = (word, now)
        if (word.master, word.epoch) == (self.master, self.epoch):
            self._confirmed_at = now

    def decide(self, now: float) -> Address | None:
        """The master to believe in; None as long as nobody has named one."""
        fresh = [word for word, at in self._words.values() if now - at <= _FRESH_S]
        newest = max(fresh, key=lambda word: word.epoch, default=None)
        if newest is not None and newest.epoch <= self.epoch:
            newest = self._overruled_by(fresh, now)
        if newest is not None:
            self.master, self.epoch, self._confirmed_at = newest.master, newest.epoch, now
        return self.master

    def silent(self, now: float) -> bool:
        """Whether no sentinel has said anything lately."""
        return all(now - at > _FRESH_S for _, at in self._words.values())

    def _overruled_by(self, fresh: list[Word], now: float) -> Word | None:
        if now - self._confirmed_at < _OVERRULE_S:
            return None
        word, count = Counter(fresh).most_common(1)[0]
        return word if count > self._sentinels // 2 else None
