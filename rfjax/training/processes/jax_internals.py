"""What rfjax takes from inside JAX, because no public name gives it in JAX 0.10 to 0.12.

A release may move these without notice; `tests/training/processes/test_jax_internals.py` says which one has moved.
"""

from __future__ import annotations

from typing import Any

from jax._src import clusters, distributed


def coordination_client() -> Any:
    """The client of JAX's coordination service, for words between processes; None before they have joined.

    In public there are collectives of arrays alone (`jax.experimental.multihost_utils`), which hang where a process is
    missing.
    """
    return distributed.global_state.client


def cluster_kinds() -> dict[str, Any]:
    """The kinds of cluster that JAX recognises by name, in its order, each a class of static methods.

    `jax.distributed.initialize` asks them in private, and how many processes there are must be known before joining.
    JAX 0.10 gives Kubernetes' no name; a kind without one is called by its class, `k8s` of `K8sCluster`.
    """
    kinds = clusters.ClusterEnv._cluster_types
    return {kind.name or kind.__name__.removesuffix("Cluster").lower(): kind for kind in kinds}
