"""SeekrFlow: threads and runs, Vercel or legacy chunks, no seq, no resume (docs/upstreams/seekrflow.md)."""
