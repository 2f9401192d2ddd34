"""relay: an event-stream gateway and fan-out relay for agent runs."""

__version__ = "0.1.0"
