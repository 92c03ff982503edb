"""What is taken from inside JAX is still there. Where one of these fails after a new JAX, that release has moved it:
mend `rfjax/training/processes/jax_internals.py`, or keep the upper bound of `jax` in pyproject.toml."""

import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import jax
import pytest

from rfjax.training.processes import cluster, distributed, jax_internals

MOVED = f"JAX {jax.__version__} has moved or changed {{}}, which {jax_internals.__name__} takes from inside it"
# A job of one process: the smallest that has a client.
JOB = """
import socket
import jax
from rfjax.training.processes.jax_internals import coordination_client
assert coordination_client() is None
with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
jax.distributed.initialize(f"localhost:{port}", 1, 0, cluster_detection_method="deactivate")
client = coordination_client()
client.key_value_set("a/0", "word")
assert client.blocking_key_value_get("a/0", 1000) == "word"
assert list(client.key_value_dir_get("a")) == [("a/0", "word")]
client.wait_at_barrier("here", 1000)
"""


def test_the_coordination_service_has_a_client_that_exchanges_words():
    done = subprocess.run([sys.executable, "-c", JOB], capture_output=True, text=True)
    assert done.returncode == 0, MOVED.format("the client of its coordination service") + "\n" + done.stderr[-2000:]
    used = set(re.findall(r"coordination_client\(\)\.(\w+)", Path(distributed.__file__).read_text()))
    assert used and used <= set(re.findall(r"client\.(\w+)", JOB))  # none is used that is not tried above


def test_the_kinds_of_cluster_are_known_by_name_and_by_what_is_asked_of_them():
    moved = MOVED.format("the kinds of cluster that it recognises")
    kinds = jax_internals.cluster_kinds()
    assert {"slurm", "k8s", "gcetpu", "gketpu"} <= set(kinds), moved
    asked = set(re.findall(r"\bkind\.(\w+)", Path(cluster.__file__).read_text()))
    assert {"is_env_present", "get_process_count"} <= asked
    for kind in kinds.values():
        assert not {name for name in asked if not hasattr(kind, name)}, moved


def test_a_pod_of_no_indexed_job_is_alone(monkeypatch):
    """Catches a pod that asks Kubernetes for the others of a job that it is not of, and ends where it hears of none."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setitem(sys.modules, "kubernetes", MagicMock())
    kind = jax_internals.cluster_kinds()["k8s"]
    assert kind.is_env_present()
    monkeypatch.setattr(kind, "get_process_count", lambda: pytest.fail("Kubernetes was asked"))
    assert cluster.find_job() is None
