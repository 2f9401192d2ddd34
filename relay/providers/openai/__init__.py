"""The OpenAI Assistants shape, which Minds speaks too: no seq, no resume (docs/upstreams/assistants.md)."""
