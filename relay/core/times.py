"""Times as upstreams write them, as one text that sorts: RFC 3339 in UTC with milliseconds. Pure arithmetic, no clock.

Taken: RFC 3339 with an offset or without one (then UTC, as SeekrFlow means it), unix seconds as int, float or digits.
"""

from __future__ import annotations

import math
import re
from typing import Final

_TEXT: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(\.\d{1,12})?\d*(?:([Zz])|([+-])(\d\d):?(\d\d))?", re.ASCII
)
_DAYS: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_MOST: Final = 253_402_300_799
"""The last second of the year 9999."""


def rfc3339(value: object) -> str | None:
    """`2026-01-02T03:04:05.678Z`; None for what is no time."""
    seconds = unix(value)
    return _written(seconds) if seconds is not None else None


def unix(value: object) -> float | None:
    """Seconds since 1970; None for what is no time, and for what lies outside the years 1970 to 9999."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        return _of_text(value)
    if not math.isfinite(value) or not 0 <= value <= _MOST:
        return None
    return float(value)


def _of_text(text: str) -> float | None:
    found = _TEXT.fullmatch(text)
    if found is None:
        return None
    year, month, day, hour, minute, second = (int(found[i]) for i in range(1, 7))
    if not (1 <= month <= 12 and 1 <= day <= _DAYS[month - 1] and hour < 24 and minute < 60 and second <= 60):
        return None
    offset = 0
    if found[9]:
        offset = (int(found[10]) * 3600 + int(found[11]) * 60) * (1 if found[9] == "+" else -1)
    total = _days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - offset
    return total + float(found[7] or 0) if 0 <= total <= _MOST else None


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 in the proleptic Gregorian calendar, counted from 1 March so that leap days come last."""
    year -= month <= 2
    era, of_era = divmod(year, 400)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def _written(seconds: float) -> str:
    whole, millis = divmod(round(seconds * 1000), 1000)
    days, left = divmod(whole, 86400)
    era, of_era = divmod(days + 719_468, 146_097)
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    shifted = (5 * of_year + 2) // 153
    month = shifted + (3 if shifted < 10 else -9)
    day = of_year - (153 * shifted + 2) // 5 + 1
    clock = f"{left // 3600:02d}:{left // 60 % 60:02d}:{left % 60:02d}.{millis:03d}"
    return f"{year + era * 400 + (month <= 2):04d}-{month:02d}-{day:02d}T{clock}Z"
