"""Runs a study on Kubernetes (GKE): a JobSet for each point, then a Job that collects."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

import yaml

from rfjax.errors import ConfigError, RfjaxError
from rfjax.inputs.text import read_text
from rfjax.launch import accelerators
from rfjax.launch.target import PREEMPTED, Launch, Plan, Task, option

MOUNT = "/rfjax"  # where the shared volume is in every container
CONFIGS = "/etc/rfjax"  # where the config file is in every container
KUBECTL = "registry.k8s.io/kubectl:v1.34.0"  # the image of the container that waits for the JobSets
CONTAINER = "rfjax"
MOST_CONFIG = 1_000_000  # bytes; a ConfigMap holds 1 MiB, names included


class _Dumper(yaml.SafeDumper):
    """Writes plain YAML: keeps the lines of a text, and writes out an object each time it occurs, without aliases."""

    def ignore_aliases(self, data):
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


@dataclass(frozen=True, kw_only=True)
class Gke:
    """The `Target` for Kubernetes on Google's cloud; its fields are the options of its pods."""

    executable: ClassVar[str] = "kubectl"
    shares_folders: ClassVar[bool] = False

    accelerator: str = accelerators.accelerator_option()
    spot: bool = accelerators.spot_option()
    image: str = option("a container with rfjax, and JAX for the accelerator", needed=True)
    volume: str = option("shared storage, mounted at /rfjax: pvc:CLAIM, or gs://BUCKET by GCS FUSE", needed=True)
    namespace: str | None = option("default: kubectl's own")
    service_account: str | None = option("the pods' account (default: a new one); must be able to use a gs:// volume")
    max_restarts: int = option(
        "most restarts after failures; pre-emptions do not count (default 5)", metavar="N", least=0, default=5
    )

    def config_path(self, config: Path) -> Path:
        return Path(CONFIGS) / config_key(config)

    def workdir(self, given: str | None, study: str) -> str:
        path = PurePosixPath(f"{MOUNT}/{study}" if given is None else given)
        if MOUNT not in map(str, path.parents) or ".." in path.parts:
            must = f"with --on=gke it must lie in {MOUNT}, where --volume is mounted"
            raise ConfigError(f"--workdir is {given!r}; {must}")
        return str(path)

    def plan(self, launch: Launch) -> Plan:
        """Plans one file of Kubernetes objects: the config, the rights of the pods' account, a JobSet for each point,
        and a Job that collects."""
        from rfjax.launch.tasks import check_layout

        target, _ = accelerators.parse_accelerator(self.accelerator)
        for task in launch.points:
            check_layout(task, target.devices, target.describe(), target.shown_slices)
        if target.slices > 1 and accelerators.machines(target) == 1:
            single = f"{target.one_slice.name} is one machine, and GKE joins only slices of several"
            raise ConfigError(f"--accelerator is {self.accelerator}: {single}; choose a larger slice")
        volume = _volume(self.volume)
        _check_names(self)
        data = {config_key(launch.config): _config_text(launch.config)}
        objects = [_object("v1", "ConfigMap", launch, f"{launch.name}-config", data=data)]
        objects += _permissions(launch, target, self)
        objects += [_job_set(launch, task, target, self, volume) for task in launch.points]
        objects.append(_collect(launch, self, volume))
        path = launch.out / f"{launch.name}.yaml"
        namespace = ["--namespace", self.namespace] if self.namespace else []
        command = shlex.join(["kubectl", "apply", *namespace, "-f", str(path)])
        jobs = f"{len(launch.points)} JobSet(s), one a point, and a Job that waits for them and collects"
        summary = (accelerators.describe_slice(target), f"{path.name}: {jobs}")
        return Plan(summary, {path: yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=1000)}, (command,))

    def submit(self, plan: Plan, say: Callable[[str], None]) -> None:
        (command,) = plan.commands
        say(command)
        done = subprocess.run(shlex.split(command))
        if done.returncode:
            remedy = "its message is above. The same command again applies the rest"
            raise RfjaxError(f"kubectl ended with status {done.returncode}; {remedy}")


def config_key(config: Path) -> str:
    """Returns a config file's key in a ConfigMap. Kubernetes allows letters, digits, `-`, `_` and `.` in keys."""
    plain = re.sub(r"[^-._A-Za-z0-9]+", "-", config.stem).lstrip(".")[:200]
    return f"{plain or 'config'}{config.suffix}"


def _config_text(config):
    text = read_text(config, "the config file")
    if len(text.encode()) > MOST_CONFIG:
        size = f"{config} has {len(text.encode()):,} bytes, and a ConfigMap holds {MOST_CONFIG:,}"
        raise ConfigError(f"{size}; put what is long into the image")
    return text


def _check_names(gke: Gke) -> None:
    """Raises `ConfigError` for names that Kubernetes would refuse (RFC 1123)."""
    label = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
    claim = gke.volume.removeprefix("pvc:").strip("/") if gke.volume.startswith("pvc:") else None
    names = {"--namespace": gke.namespace, "--service-account": gke.service_account, "--volume pvc:": claim}
    for option_name, name in names.items():
        if name and not (len(name) <= 253 and re.fullmatch(rf"{label}(\.{label})*", name)):
            form = "lower-case letters, digits and hyphens, a letter or digit first and last"
            raise ConfigError(f"{option_name} is {name!r}; a name of Kubernetes has {form}")


def _volume(text: str) -> dict:
    kind, _, name = text.partition(":")
    name = name.strip("/")
    if kind == "pvc" and name:
        return {"name": "shared", "persistentVolumeClaim": {"claimName": name}}
    if kind == "gs" and name and "/" not in name:
        options = {"bucketName": name, "mountOptions": "implicit-dirs"}
        return {"name": "shared", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": options}}
    raise ConfigError(f"--volume is {text!r}; write pvc:CLAIM for a persistent volume claim, or gs://BUCKET")


def _object(api: str, kind: str, launch: Launch, name: str, **fields) -> dict:
    """Returns a Kubernetes object with the labels that all objects of a launch have."""
    labels = {"app.kubernetes.io/name": "rfjax", "app.kubernetes.io/part-of": launch.name}
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "labels": labels}, **fields}


def _account(launch: Launch, gke: Gke) -> str:
    return gke.service_account or launch.name


def _permissions(launch: Launch, target, gke: Gke) -> list[dict]:
    """Returns the objects that grant the pods' service account its rights.

    The Job that collects must watch the JobSets. On several GPU nodes JAX must also read pods and jobs, to find a
    JobSet's other pods; on TPUs GKE tells each pod of the others.
    """
    api, name, account = "rbac.authorization.k8s.io", launch.name, _account(launch, gke)
    rules = [{"apiGroups": ["jobset.x-k8s.io"], "resources": ["jobsets"], "verbs": ["get", "list", "watch"]}]
    if target.chip.kind != "tpu" and accelerators.machines(target) > 1:
        rules.append({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]})
        rules.append({"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list"]})
    subjects = [{"kind": "ServiceAccount", "name": account}]
    role = {"apiGroup": api, "kind": "Role", "name": name}
    objects = [] if gke.service_account else [_object("v1", "ServiceAccount", launch, name)]
    objects.append(_object(f"{api}/v1", "Role", launch, name, rules=rules))
    objects.append(_object(f"{api}/v1", "RoleBinding", launch, name, subjects=subjects, roleRef=role))
    return objects


def _job_set(launch: Launch, task: Task, target, gke: Gke, volume) -> dict:
    """Returns the JobSet of a point: one Job for each slice, with one pod for each of its machines, all restarted
    together. GKE tells each pod which slice it is in, and the address of the first slice.

    If a pod was told to stop (exit status 75) or lost its node, a policy fails the pod's Job, and the JobSet restarts
    without counting the restart. Every other failure counts towards `max_restarts`.
    """
    count = accelerators.machines(target)
    # Rules are matched in order. The whole JobSet restarts: pods left running would wait for a lost coordinator.
    policy = [
        {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [PREEMPTED]}},
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    container = _container(task, launch, gke) | {"resources": _resources(target)}
    pod = _pod(launch, gke, volume, container) | {"restartPolicy": "Never", "nodeSelector": _nodes(target, gke.spot)}
    if gke.spot:
        spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        pod["tolerations"] = [spot]
    job = {
        "parallelism": count,
        "completions": count,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": policy},
        "template": {"metadata": _annotations(volume), "spec": pod},
    }
    restart = {"name": "preempted", "action": "RestartJobSetAndIgnoreMaxRestarts"}
    rules = [restart | {"onJobFailureReasons": ["PodFailurePolicy"]}]
    spec = {
        "failurePolicy": {"maxRestarts": gke.max_restarts, "rules": rules},
        "network": {"enableDNSHostnames": True},
        "replicatedJobs": [{"name": "workers", "replicas": target.slices, "template": {"spec": job}}],
    }
    made = _object("jobset.x-k8s.io/v1alpha2", "JobSet", launch, task.name, spec=spec)
    if target.chip.kind == "tpu" and count > 1:  # puts all pods of a Job on one slice, and no others there
        topology = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        made["metadata"]["annotations"] = topology
    return made


def _collect(launch: Launch, gke: Gke, volume) -> dict:
    """Returns the Job that waits until every JobSet has completed or failed, then collects.

    If the Job's pod is lost, the Job starts again. If collecting itself fails, the Job does not start again, because a
    run that cannot be read would be unreadable again.
    """
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
    return _object("batch/v1", "Job", launch, launch.collect.name, spec=job)


def _container(task: Task, launch: Launch, gke: Gke) -> dict:
    command = list(task.command)
    if launch.options.setup:
        command = ["/bin/bash", "-ec", f"{launch.options.setup}\nexec {shlex.join(task.command)}"]
    command = [word.replace("$", "$$") for word in command]  # to Kubernetes $(NAME) is a variable, $$ a dollar sign
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
    amount = {name: str(accelerators.per_machine(target))}
    return {"requests": amount, "limits": amount}


def _nodes(target, spot) -> dict:
    _, cloud = accelerators.parse_accelerator(target.name)
    if target.chip.kind != "tpu":
        labels = {"cloud.google.com/gke-accelerator": cloud.label}
    else:
        shape = "x".join(map(str, target.shape))
        labels = {"cloud.google.com/gke-tpu-accelerator": cloud.label, "cloud.google.com/gke-tpu-topology": shape}
    return labels | ({"cloud.google.com/gke-spot": "true"} if spot else {})
