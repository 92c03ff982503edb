"""The private parts of JAX that rfjax uses, because JAX 0.10 to 0.12 have no public names for them.

A release may move them without notice; `tests/training/processes/test_jax_internals.py` then says which one moved.
"""

from __future__ import annotations

from typing import Any

from jax._src import clusters, distributed


def coordination_client() -> Any:
    """The client of JAX's coordination service, which carries short texts between processes; None before this process
    has joined.

    JAX's public interface has only collectives of arrays (`jax.experimental.multihost_utils`), which hang if a process
    is missing.
    """
    return distributed.global_state.client


def cluster_kinds() -> dict[str, Any]:
    """The kinds of cluster that JAX recognises, by name and in JAX's order. Each is a class of static methods.

    `jax.distributed.initialize` asks these classes itself, but rfjax must know the number of processes before it joins.
    If a class has no `name`, as JAX 0.10's class for Kubernetes, the key comes from the name of the class: `K8sCluster`
    becomes `k8s`.
    """
    kinds = clusters.ClusterEnv._cluster_types
    return {kind.name or kind.__name__.removesuffix("Cluster").lower(): kind for kind in kinds}
