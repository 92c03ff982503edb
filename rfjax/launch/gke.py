"""A study on Kubernetes (GKE): a JobSet for each point, and a Job that collects after them all."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

import yaml

from rfjax.errors import ConfigError, RfjaxError
from rfjax.launch.accelerators import (
    accelerator_option,
    machines,
    parse_accelerator,
    per_machine,
    spot_option,
    where,
)
from rfjax.launch.target import PREEMPTED, Launch, Plan, Task, option

MOUNT = "/rfjax"  # where the shared volume is in every container
CONFIGS = "/etc/rfjax"  # where the config file is
KUBECTL = "registry.k8s.io/kubectl:v1.34.0"  # waits for the JobSets
CONTAINER = "rfjax"


class _Dumper(yaml.SafeDumper):
    """Plain YAML: text of several lines as it is written, and nothing said by reference."""

    def ignore_aliases(self, data):
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


@dataclass(frozen=True, kw_only=True)
class Gke:
    """Kubernetes on Google's cloud, a `Target`, with the options of its pods."""

    executable: ClassVar[str] = "kubectl"
    shares_folders: ClassVar[bool] = False

    accelerator: str = accelerator_option()
    spot: bool = spot_option()
    image: str = option("a container with rfjax, and JAX for the accelerator", metavar="IMAGE", needed=True)
    volume: str = option(
        "shared storage, at /rfjax in every container: pvc:CLAIM (Filestore, say) or gs://BUCKET (by GCS FUSE)",
        metavar="VOLUME",
        needed=True,
    )
    namespace: str | None = option("default: kubectl's own")
    service_account: str | None = option(
        "of the pods (default: one made for the study); GCS FUSE needs one that may use the bucket"
    )
    max_restarts: int = option(
        "of a point after failures; pre-emptions do not count (default 5)", metavar="N", least=0, default=5
    )

    def config_path(self, config: Path) -> Path:
        return Path(CONFIGS) / config.name

    def workdir(self, given: str | None, study: str) -> str:
        path = PurePosixPath(given or f"{MOUNT}/{study}")
        if MOUNT not in map(str, path.parents) or ".." in path.parts:
            raise ConfigError(
                f"--workdir is {given!r}; with --on=gke it must lie in {MOUNT}, where --volume is mounted"
            )
        return str(path)

    def plan(self, launch: Launch) -> Plan:
        """One manifest: the config, who may wait for JobSets, a JobSet a point, the Job that collects."""
        from rfjax.launch.tasks import check_layout

        target, _ = parse_accelerator(self.accelerator)
        for task in launch.points:
            check_layout(task, target.chips, target.describe())
        volume = _volume(self.volume)
        objects = [_config_map(launch), *_permissions(launch, target, self)]
        objects += [_job_set(launch, task, target, self, volume) for task in launch.points]
        objects.append(_collect(launch, self, volume))
        path = launch.out / f"{launch.name}.yaml"
        namespace = ["--namespace", self.namespace] if self.namespace else []
        command = shlex.join(["kubectl", "apply", *namespace, "-f", str(path)])
        summary = (
            where(target),
            f"{path.name}: {len(launch.points)} JobSet(s), one a point, and a Job that waits for them and collects",
        )
        return Plan(summary, {path: yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=1000)}, (command,))

    def submit(self, plan: Plan, say: Callable[[str], None]) -> None:
        (command,) = plan.commands
        say(command)
        done = subprocess.run(shlex.split(command))
        if done.returncode:
            raise RfjaxError(
                f"kubectl ended with status {done.returncode}; what it says is above. The same command again applies "
                "the rest"
            )


def _volume(text: str) -> dict:
    kind, _, name = text.partition(":")
    name = name.strip("/")
    if kind == "pvc" and name:
        return {"name": "shared", "persistentVolumeClaim": {"claimName": name}}
    if kind == "gs" and name and "/" not in name:
        options = {"bucketName": name, "mountOptions": "implicit-dirs"}
        return {"name": "shared", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": options}}
    raise ConfigError(f"--volume is {text!r}; write pvc:CLAIM for a persistent volume claim, or gs://BUCKET")


def _metadata(launch: Launch, name: str) -> dict:
    return {"name": name, "labels": {"app.kubernetes.io/name": "rfjax", "app.kubernetes.io/part-of": launch.name}}


def _config_map(launch: Launch) -> dict:
    data = {launch.config.name: launch.config.read_text()}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(launch, f"{launch.name}-config"),
        "data": data,
    }


def _account(launch: Launch, gke: Gke) -> str:
    return gke.service_account or launch.name


def _permissions(launch: Launch, target, gke: Gke) -> list[dict]:
    """To see when the JobSets have ended; and on GPU nodes what JAX asks to bring a JobSet's pods together.

    On TPUs GKE itself tells the pods of each other.
    """
    name = launch.name
    rules = [{"apiGroups": ["jobset.x-k8s.io"], "resources": ["jobsets"], "verbs": ["get", "list", "watch"]}]
    if target.chip.kind != "tpu" and machines(target) > 1:
        rules.append({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]})
        rules.append({"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list"]})
    subject = {"kind": "ServiceAccount", "name": _account(launch, gke)}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    objects = [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": _metadata(launch, name),
            "rules": rules,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": _metadata(launch, name),
            "subjects": [subject],
            "roleRef": reference,
        },
    ]
    if not gke.service_account:
        objects.insert(0, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(launch, name)})
    return objects


def _job_set(launch: Launch, task: Task, target, gke: Gke, volume) -> dict:
    """A point: as many pods as the slice has machines, all started again together.

    A pod that was told to stop (exit status 75) or whose node was taken fails its Job by policy, and
    the JobSet then restarts it without counting; every other failure counts.
    """
    count = machines(target)
    # rules are matched in order; without a restart of the whole, pods that live on would wait for a
    # coordinator that is gone
    policy = [
        {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [PREEMPTED]}},
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    container = _container(task, launch, gke) | {"resources": _resources(target)}
    pod = _pod(launch, gke, volume, container) | {"restartPolicy": "Never", "nodeSelector": _nodes(target, gke.spot)}
    if gke.spot:
        pod["tolerations"] = [
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        ]
    job = {
        "parallelism": count,
        "completions": count,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": policy},
        "template": {"metadata": _annotations(volume), "spec": pod},
    }
    metadata = _metadata(launch, task.name)
    if target.chip.kind == "tpu" and count > 1:  # all pods of a point on one slice, and no others there
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    rule = {
        "name": "preempted",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {"maxRestarts": gke.max_restarts, "rules": [rule]},
            "network": {"enableDNSHostnames": True},
            "replicatedJobs": [{"name": "workers", "replicas": 1, "template": {"spec": job}}],
        },
    }


def _collect(launch: Launch, gke: Gke, volume) -> dict:
    """The Job that waits until every JobSet has completed or failed, then collects: once, where it says
    itself that it failed (a run that cannot be read stays so), and again where its pod is lost."""
    wait = ["wait", "--for=jsonpath={.status.terminalState}", "--timeout=8760h"]
    waiting = {"name": "wait", "image": KUBECTL, "args": [*wait, *(f"jobset/{task.name}" for task in launch.points)]}
    container = _container(launch.collect, launch, gke) | {"env": [{"name": "JAX_PLATFORMS", "value": "cpu"}]}
    pod = _pod(launch, gke, volume, container) | {"restartPolicy": "Never", "initContainers": [waiting]}
    statuses = [RfjaxError.exit_status, ConfigError.exit_status]
    final = {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": statuses}}
    job = {
        "backoffLimit": 20,
        "podFailurePolicy": {"rules": [final]},
        "template": {"metadata": _annotations(volume), "spec": pod},
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(launch, launch.collect.name), "spec": job}


def _container(task: Task, launch: Launch, gke: Gke) -> dict:
    # Kubernetes reads $(NAME) as a variable, and $$ as a dollar
    command = [word.replace("$", "$$") for word in task.command]
    if launch.options.setup:
        script = f"{launch.options.setup}\nexec {shlex.join(task.command)}"
        command = ["/bin/bash", "-ec", script.replace("$", "$$")]
    mounts = [{"name": "shared", "mountPath": MOUNT}, {"name": "config", "mountPath": CONFIGS, "readOnly": True}]
    return {"name": CONTAINER, "image": gke.image, "command": command, "volumeMounts": mounts}


def _pod(launch: Launch, gke: Gke, volume, container) -> dict:
    config = {"name": "config", "configMap": {"name": f"{launch.name}-config"}}
    return {
        "serviceAccountName": _account(launch, gke),
        "terminationGracePeriodSeconds": launch.options.grace,
        "containers": [container],
        "volumes": [volume, config],
    }


def _annotations(volume) -> dict:
    return {"annotations": {"gke-gcsfuse/volumes": "true"}} if "csi" in volume else {}


def _resources(target) -> dict:
    name = "nvidia.com/gpu" if target.chip.kind != "tpu" else "google.com/tpu"
    amount = {name: str(per_machine(target))}
    return {"requests": amount, "limits": amount}


def _nodes(target, spot) -> dict:
    _, cloud = parse_accelerator(target.name)
    if target.chip.kind != "tpu":
        labels = {"cloud.google.com/gke-accelerator": cloud.label}
    else:
        shape = "x".join(map(str, target.shape))
        labels = {"cloud.google.com/gke-tpu-accelerator": cloud.label, "cloud.google.com/gke-tpu-topology": shape}
    return labels | ({"cloud.google.com/gke-spot": "true"} if spot else {})
