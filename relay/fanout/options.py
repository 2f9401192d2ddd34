"""What an operator may choose about the memory of watched runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FanoutOptions:
    window_bytes: int = 1_048_576
    """Event bytes kept in memory per watched run; older ones are read from the log."""
    memory_bytes: int = 268_435_456
    """Event bytes kept in memory for all watched runs together, per process; the windows shrink to fit."""
    page_bytes: int = 262_144
    """About how much a reader who is behind is given per turn, so that live readers are never starved."""
    check_s: float = 1.0
    """How often the position of every watched log is compared with Redis: heals lost bells."""
