"""Arkloop: durable per-run seq, native SSE. Every wire fact used here is in docs/upstreams/arkloop.md."""
