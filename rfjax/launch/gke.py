"""A study on Kubernetes (GKE): a JobSet for each point, and a Job that collects after them all."""

from __future__ import annotations

import argparse
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import yaml

from rfjax.errors import ConfigError, RfjaxError
from rfjax.launch.accelerators import machines, parse_accelerator, per_machine, where
from rfjax.launch.tasks import PREEMPTED, Launch, Plan, Task, check_layout

EXECUTABLE = "kubectl"
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


def plan(launch: Launch, args: argparse.Namespace, out: Path, config: Path) -> Plan:
    """One manifest: the config, who may wait for JobSets, a JobSet a point, the Job that collects.

    Raises `ConfigError` for nodes that do not exist, or whose chips are not the mesh of every point.
    """
    target, _ = parse_accelerator(args.accelerator)
    for task in launch.points:
        check_layout(task.point, target.chips, target.describe())
    volume = _volume(args.volume)
    objects = [_config_map(launch, config), *_permissions(launch, target, args)]
    objects += [_job_set(launch, task, target, args, volume) for task in launch.points]
    objects.append(_collect(launch, args, volume))
    path = out / f"{launch.name}.yaml"
    namespace = ["--namespace", args.namespace] if args.namespace else []
    command = shlex.join(["kubectl", "apply", *namespace, "-f", str(path)])
    summary = (
        where(target),
        f"{path.name}: {len(launch.points)} JobSet(s), one a point, and a Job that waits for them and collects",
    )
    return Plan(summary, {path: yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=1000)}, (command,))


def submit(plan: Plan, say: Callable[[str], None]) -> None:
    (command,) = plan.commands
    say(command)
    done = subprocess.run(shlex.split(command))
    if done.returncode:
        raise RfjaxError(
            f"kubectl ended with status {done.returncode}; what it says is above. The same command again applies "
            "the rest"
        )


def workdir(given: str | None, study: str) -> str:
    """The study's folder in the containers; `ConfigError` where it would be lost with them."""
    path = PurePosixPath(given or f"{MOUNT}/{study}")
    if MOUNT not in map(str, path.parents) or ".." in path.parts:
        raise ConfigError(f"--workdir is {given!r}; with --on=gke it must lie in {MOUNT}, where --volume is mounted")
    return str(path)


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


def _config_map(launch: Launch, config: Path) -> dict:
    data = {config.name: config.read_text()}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(launch, f"{launch.name}-config"),
        "data": data,
    }


def _account(launch: Launch, args) -> str:
    return args.service_account or launch.name


def _permissions(launch: Launch, target, args) -> list[dict]:
    """To see when the JobSets have ended; and on GPU nodes what JAX asks to bring a JobSet's pods together.

    On TPUs GKE itself tells the pods of each other.
    """
    name = launch.name
    rules = [{"apiGroups": ["jobset.x-k8s.io"], "resources": ["jobsets"], "verbs": ["get", "list", "watch"]}]
    if target.chip.kind != "tpu" and machines(target) > 1:
        rules.append({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]})
        rules.append({"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list"]})
    subject = {"kind": "ServiceAccount", "name": _account(launch, args)}
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
    if not args.service_account:
        objects.insert(0, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(launch, name)})
    return objects


def _job_set(launch: Launch, task: Task, target, args, volume) -> dict:
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
    container = _container(task, args) | {"resources": _resources(target)}
    pod = _pod(launch, args, volume, container) | {"restartPolicy": "Never", "nodeSelector": _nodes(target, args.spot)}
    if args.spot:
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
    restarts = 5 if args.max_restarts is None else args.max_restarts
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
            "failurePolicy": {"maxRestarts": restarts, "rules": [rule]},
            "network": {"enableDNSHostnames": True},
            "replicatedJobs": [{"name": "workers", "replicas": 1, "template": {"spec": job}}],
        },
    }


def _collect(launch: Launch, args, volume) -> dict:
    """The Job that waits until every JobSet has completed or failed, then collects: once, where it says
    itself that it failed (a run that cannot be read stays so), and again where its pod is lost."""
    wait = ["wait", "--for=jsonpath={.status.terminalState}", "--timeout=8760h"]
    waiting = {"name": "wait", "image": KUBECTL, "args": [*wait, *(f"jobset/{task.name}" for task in launch.points)]}
    container = _container(launch.collect, args) | {"env": [{"name": "JAX_PLATFORMS", "value": "cpu"}]}
    pod = _pod(launch, args, volume, container) | {"restartPolicy": "Never", "initContainers": [waiting]}
    statuses = [RfjaxError.exit_status, ConfigError.exit_status]
    final = {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": statuses}}
    job = {
        "backoffLimit": 20,
        "podFailurePolicy": {"rules": [final]},
        "template": {"metadata": _annotations(volume), "spec": pod},
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(launch, launch.collect.name), "spec": job}


def _container(task: Task, args) -> dict:
    # Kubernetes reads $(NAME) as a variable, and $$ as a dollar
    command = [word.replace("$", "$$") for word in task.command]
    if args.setup:
        script = f"{args.setup}\nexec {shlex.join(task.command)}"
        command = ["/bin/bash", "-ec", script.replace("$", "$$")]
    mounts = [{"name": "shared", "mountPath": MOUNT}, {"name": "config", "mountPath": CONFIGS, "readOnly": True}]
    return {"name": CONTAINER, "image": args.image, "command": command, "volumeMounts": mounts}


def _pod(launch: Launch, args, volume, container) -> dict:
    config = {"name": "config", "configMap": {"name": f"{launch.name}-config"}}
    return {
        "serviceAccountName": _account(launch, args),
        "terminationGracePeriodSeconds": args.grace,
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
