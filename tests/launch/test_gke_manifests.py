"""Checks the manifests for GKE by the published schemas and by Kubernetes' own reading of a command."""

import copy
import json
import re
import shlex
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from helpers.launch_tiny import WEIRD, path_with, stand_in, write_study
from rfjax import cli
from rfjax.launch.gke import config_key

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((Path(__file__).parent / "schemas/jobset-v1alpha2.json").read_text())


def manifests(capsys, *options, config=ROOT / "configs/sd3_depth.py"):
    """The objects of a dry run."""
    assert (
        cli.main(["launch", f"--config={config}", "--on=gke", "--image=gcr.io/p/rfjax:1", "--dry-run", *options]) == 0
    )
    text = capsys.readouterr().out.split(".yaml\n", 1)[1].rsplit("\nkubectl apply", 1)[0]
    return list(yaml.safe_load_all(text))


def strict(schema):
    """`schema` refusing fields that it does not name, as `kubectl apply` does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: {k: strict(v) for k, v in value.items()} if key == "properties" else strict(value)
        for key, value in schema.items()
    }
    return made | {"additionalProperties": False} if "properties" in schema else made


def check(object):
    """Validates by JobSet's published schema and Kubernetes' (the library's newest), strictly."""
    if object["kind"] != "JobSet":
        kubernetes_validate.validate(object, kubernetes_validate.latest_version(), strict=True)
        return
    schema = strict(SCHEMA)
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own; checked with the job below
    jsonschema.validate(object, schema)
    for replicated in object["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": object["metadata"], **replicated["template"]}
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def kinds(objects, kind):
    return [object for object in objects if object["kind"] == kind]


@pytest.mark.parametrize(
    "options",
    [
        ("--accelerator=v5p-256", "--volume=pvc:shared", "--spot", "--namespace=n"),
        ("--accelerator=v6e-256", "--volume=gs://bucket", "--service-account=me", "--max-restarts=0"),
        ("--accelerator=h100x64", "--volume=pvc:shared", "--setup=nvidia-smi\necho $HOME"),
        ("--accelerator=2xv5p-256", "--volume=pvc:shared"),
    ],
)
def test_every_manifest_is_valid(capsys, options):
    """Catches a field misspelt, misplaced, or of another type than the API's."""
    objects = manifests(capsys, *options)
    for object in objects:
        check(object)
    assert len(kinds(objects, "JobSet")) == 5 and len(kinds(objects, "Job")) == 1
    broken = copy.deepcopy(kinds(objects, "JobSet")[0])  # the checks themselves can fail
    broken["spec"]["failurePolicy"]["rules"][0]["action"] = "Restart"
    with pytest.raises(jsonschema.ValidationError):
        check(broken)
    broken = copy.deepcopy(kinds(objects, "JobSet")[0])
    broken["spec"]["replicatedJobs"][0]["template"]["spec"]["backofLimit"] = 0
    with pytest.raises(kubernetes_validate.ValidationError):
        check(broken)
    names = [object["metadata"]["name"] for object in kinds(objects, "JobSet")]
    assert len(set(names)) == 5
    for name in names:  # a pod is JOBSET-workers-0-INDEX-xxxxx, within 63
        assert re.fullmatch(r"[a-z][a-z0-9-]*[a-z0-9]", name) and len(name) <= 63 - len("-workers-0-999-xxxxx")


@pytest.mark.parametrize(
    ("accelerator", "pods", "resource", "selector"),
    [
        ("v5p-256", 32, {"google.com/tpu": "4"}, {"gke-tpu-accelerator": "tpu-v5p-slice", "gke-tpu-topology": "4x4x8"}),
        (
            "v4-128",
            16,
            {"google.com/tpu": "4"},
            {"gke-tpu-accelerator": "tpu-v4-podslice", "gke-tpu-topology": "4x4x4"},
        ),
        (
            "v5litepod-256",
            64,
            {"google.com/tpu": "4"},
            {"gke-tpu-accelerator": "tpu-v5-lite-podslice", "gke-tpu-topology": "16x16"},
        ),
        ("v6e-16", 4, {"google.com/tpu": "4"}, {"gke-tpu-accelerator": "tpu-v6e-slice", "gke-tpu-topology": "4x4"}),
        ("tpu7x-128", 16, {"google.com/tpu": "4"}, {"gke-tpu-accelerator": "tpu7x", "gke-tpu-topology": "4x4x4"}),
        ("h100x16", 2, {"nvidia.com/gpu": "8"}, {"gke-accelerator": "nvidia-h100-80gb"}),
        ("h200x16", 2, {"nvidia.com/gpu": "8"}, {"gke-accelerator": "nvidia-h200-141gb"}),
    ],
)
def test_pods_are_the_slices_machines(capsys, accelerator, pods, resource, selector):
    """Google's tables: TPU names of v4 and v5p count two cores a chip, those of v5e and v6e chips."""
    objects = manifests(capsys, f"--accelerator={accelerator}", "--volume=pvc:c", "--point=depth15")
    job = kinds(objects, "JobSet")[0]["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == pods and job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == resource
    assert pod["nodeSelector"] == {f"cloud.google.com/{key}": value for key, value in selector.items()}


def test_slices_are_jobs_of_one_job_set(capsys):
    """Catches pods of two slices in one Job, which Kubernetes may spread over node pools as it likes."""
    objects = manifests(capsys, "--accelerator=4xv6e-16", "--volume=pvc:c", "--point=depth15")
    (job_set,) = kinds(objects, "JobSet")
    (workers,) = job_set["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert workers["replicas"] == 4 and job["parallelism"] == job["completions"] == 4
    assert job_set["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    assert job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"


def test_a_preemption_restarts_without_counting_and_a_failure_counts(capsys):
    objects = manifests(
        capsys, "--accelerator=v5p-256", "--volume=pvc:c", "--point=depth15", "--max-restarts=3", "--grace=90"
    )
    (job_set,) = kinds(objects, "JobSet")
    policy = job_set["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 3
    assert policy["rules"] == [
        {
            "name": "preempted",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
        }
    ]
    job = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
    first, second = job["podFailurePolicy"]["rules"]
    assert first["action"] == second["action"] == "FailJob" and job["backoffLimit"] == 0
    assert first["onExitCodes"] == {"containerName": "rfjax", "operator": "In", "values": [75]}
    assert second["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] == 90


def test_gpu_pods_may_ask_what_jax_asks(capsys):
    """JAX finds a JobSet's pods by reading its own pod and Job (jax/_src/clusters/k8s_cluster.py);
    forbidden, eight nodes would each train alone or not at all."""
    for accelerator, asks in (("h100x16", True), ("h100x8", False), ("v5p-256", False)):
        objects = manifests(
            capsys,
            f"--accelerator={accelerator}",
            "--volume=pvc:c",
            "--point=depth15",
            "--service-account=me",
            "--config.mesh.fsdp=4",
        )
        (role,), (binding,) = kinds(objects, "Role"), kinds(objects, "RoleBinding")
        allowed = {
            (group, resource) for rule in role["rules"] for group in rule["apiGroups"] for resource in rule["resources"]
        }
        assert allowed == {("jobset.x-k8s.io", "jobsets")} | ({("", "pods"), ("batch", "jobs")} if asks else set())
        assert binding["subjects"][0]["name"] == "me" and binding["roleRef"]["name"] == role["metadata"]["name"]
        (job_set,) = kinds(objects, "JobSet")
        assert (
            job_set["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["serviceAccountName"] == "me"
        )


def expanded(word, variables):
    """A word of a container's command as Kubernetes hands it on: $(NAME) is a variable, $$ a dollar."""
    return re.sub(r"\$\$|\$\((\w+)\)", lambda m: "$" if m[0] == "$$" else variables.get(m[1], m[0]), word)


@pytest.mark.parametrize("setup", [None, "export TOKEN=$(echo 5)"])
def test_every_word_reaches_rfjax_as_it_was_given(capsys, tmp_path, monkeypatch, setup):
    """Catches words that Kubernetes, YAML or a shell reads, and a config other than the one checked here."""
    monkeypatch.chdir(tmp_path)
    config = write_study(tmp_path, "my study.py")
    options = ["--accelerator=h100x8", "--volume=pvc:c", f"--config.name={WEIRD}", f"--workdir=/rfjax/{WEIRD}"]
    objects = manifests(capsys, *options, *([f"--setup={setup}"] if setup else []), config="my study.py")
    (config_map,) = kinds(objects, "ConfigMap")
    assert config_map["data"] == {"my-study.py": config.read_text()}
    stand_in(tmp_path / "bin", "rfjax", "assert os.environ.get('TOKEN') == %r\n" % (setup and "5"))
    sets, (collect,) = kinds(objects, "JobSet"), kinds(objects, "Job")
    pods = [s["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"] for s in sets]
    pods.append(collect["spec"]["template"]["spec"])
    for pod in pods:
        (container,) = pod["containers"]
        assert {"name": "config", "mountPath": "/etc/rfjax", "readOnly": True} in container["volumeMounts"]
        command = [expanded(word, {"study": "READ", "echo 5": "READ"}) for word in container["command"]]
        subprocess.run(command, env=path_with(tmp_path / "bin"), check=True)
    base = ["rfjax", "study", "--config=/etc/rfjax/my-study.py", f"--config.name={WEIRD}"]
    workdir = f"--workdir=/rfjax/{WEIRD}"
    assert [json.loads(line) for line in (tmp_path / "bin/calls.jsonl").read_text().splitlines()] == [
        [*base, "--point=depth1", workdir],
        [*base, "--point=Depth_2", workdir],
        [*base, workdir, "--collect"],
    ]
    # Catches a collection that is tried twenty times where a damaged run makes its status 1 each time.
    (final,) = collect["spec"]["podFailurePolicy"]["rules"]
    assert final["action"] == "FailJob" and final["onExitCodes"]["values"] == [1, 2]
    assert collect["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # or such a policy is refused
    waits = collect["spec"]["template"]["spec"]["initContainers"][0]["args"]
    assert [word for word in waits if word.startswith("jobset/")] == [f"jobset/{s['metadata']['name']}" for s in sets]


def test_kubectl_is_given_the_manifests(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path)
    stand_in(tmp_path / "bin", "kubectl")
    monkeypatch.setenv("PATH", path_with(tmp_path / "bin")["PATH"])
    options = ["--on=gke", "--image=i", "--accelerator=v6e-8", "--volume=gs://b", "--namespace=n-n", "--out=o o"]
    assert cli.main(["launch", "--config=tiny.py", *options]) == 0
    (call,) = map(json.loads, (tmp_path / "bin/calls.jsonl").read_text().splitlines())
    assert call == ["kubectl", "apply", "--namespace", "n-n", "-f", "o o/tiny.yaml"]
    assert shlex.join(call) in capsys.readouterr().out
    pods = [o for o in yaml.safe_load_all((tmp_path / "o o/tiny.yaml").read_text()) if o["kind"] == "JobSet"]
    assert len(pods) == 2


@pytest.mark.parametrize("name", ["my study.py", "Ünïcode.py", "a$b:c.py", "..x.py", "_.py", "é.py", "a" * 240 + ".py"])
def test_a_config_files_name_is_a_key_that_kubernetes_takes(name):
    """Catches a manifest that is refused after slices were asked for."""
    key = config_key(Path(name))
    assert re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key) and not key.startswith("..") and key.endswith(".py")


@pytest.mark.parametrize(
    "option", ["--namespace=N", "--namespace=a b", "--service-account=-a", "--volume=pvc:My_Claim", "--namespace=a..b"]
)
def test_names_that_kubernetes_refuses_are_refused_here(capsys, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path)
    words = ["--on=gke", "--image=i", "--accelerator=v6e-8", "--volume=gs://b", "--dry-run", option]
    assert cli.main(["launch", "--config=tiny.py", *words]) == 2
    assert "a name of Kubernetes has" in capsys.readouterr().err
