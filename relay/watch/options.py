"""What a watcher may choose."""

from __future__ import annotations

from dataclasses import dataclass, field

from relay.core.errors import ConfigError
from relay.core.ids import ID_ALLOWED, is_id


@dataclass(frozen=True, slots=True)
class WatchOptions:
    run_id: str
    """The run to follow: `[A-Za-z0-9_-]{1,128}`."""
    url: str = "http://127.0.0.1:8080"
    """Where relay serves its native face; a mount path is kept (`https://host/native`)."""
    after_seq: int = 0
    """Show only what follows this seq; 0 shows the run from its beginning."""
    json: bool = False
    """One event a line, as it came, instead of a story."""
    key: str | None = field(default=None, repr=False)
    """API key or token, sent as `Authorization: Bearer`; None where none is needed."""
    types: str | None = None
    """Globs of the event types to see (`run.*,tool.*`); None shows all."""
    color: bool | None = None
    """None: colours on a terminal only (and not under NO_COLOR)."""

    def __post_init__(self) -> None:
        if not is_id(self.run_id):
            raise ConfigError(f"{self.run_id!r} is not a run id: {ID_ALLOWED}")
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"{self.url!r} is not an http:// or https:// address")
        if self.after_seq < 0:
            raise ConfigError("after_seq must not be negative")
