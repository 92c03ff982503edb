"""The fields of a config with which a run may go on under other values. No JAX here."""

# The beginnings of dotted keys. These fields change where and how fast a run is computed, not its result. A prepared
# corpus may have been moved, since its fingerprint depends on its content alone.
MAY_CHANGE = (
    "mesh.",
    "train.attention",
    "train.remat",
    "train.unroll",
    "train.stall_seconds",
    "train.together",
    "train.diagnostics_every",
    "train.trackers",
    "data.prepared.path",
    "data.prepared.models",
)
