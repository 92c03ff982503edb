"""The corpus that `rfjax prepare` writes: its shards, its manifest, and the frozen models that encode and decode."""
