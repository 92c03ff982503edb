"""Which job a process belongs to, from flags and from what clusters put into the environment."""

import pytest

from rfjax.errors import ConfigError
from rfjax.training.processes.cluster import find_job

# As `srun` sets them in the second of two tasks on the second of two nodes, four in all.
SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[007-008]",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_three_flags_make_a_job():
    job = find_job("node001:41234", 4, 3, {})
    assert (job.coordinator, job.processes, job.process_id, job.local_device_ids) == ("node001:41234", 4, 3, None)
    assert find_job("[::1]:41234", 2, 0, SLURM).coordinator == "[::1]:41234"  # flags come first


@pytest.mark.parametrize(
    "flags, told",
    [
        (("node001:1", None, 0), "--coordinator, --process-id given without --processes"),
        ((None, 2, None), "without --coordinator and --process-id"),
        (("node001", 2, 0), "'node001'; it must be HOST:PORT"),
        (("node001:99999", 2, 0), "must be HOST:PORT"),
        (("node001:1", 0, 0), "--processes is 0"),
        (("node001:1", 2, 2), "--process-id is 2; with --processes=2 it must be from 0 to 1"),
    ],
)
def test_flags_that_make_no_job_are_refused(flags, told):
    with pytest.raises(ConfigError) as error:
        find_job(*flags, {})
    assert told in str(error.value)


def test_a_slurm_step_of_many_tasks_is_a_job(monkeypatch):
    for name, value in SLURM.items():  # where JAX looks for the address
        monkeypatch.setenv(name, value)
    job = find_job(environ=SLURM)
    assert (job.processes, job.process_id) == (4, 3)
    assert job.coordinator.startswith("node007:")


@pytest.mark.parametrize(
    "changes, without",
    [
        ({"SLURM_STEP_NUM_TASKS": "1"}, ()),  # an interactive shell, or a step of one task, in a larger allocation
        ({}, ("SLURM_STEP_NUM_TASKS",)),  # the script of a batch job
    ],
)
def test_one_task_of_slurm_waits_for_nobody(changes, without):
    """Catches counting by SLURM_NTASKS, which is the whole job's: such a process would wait for ever."""
    environ = {name: value for name, value in {**SLURM, **changes}.items() if name not in without}
    assert find_job(environ=environ) is None


def test_no_cluster_and_a_lone_pod_are_no_job():
    assert find_job(environ={}) is None
    assert find_job(environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None
    assert find_job("node001:1", 1, 0, {}) is None


@pytest.mark.parametrize(
    "tasks, gpus, local, expected",
    [
        ("1(x2)", "0,1,2,3,4,5,6,7", "0", (0, 1, 2, 3, 4, 5, 6, 7)),  # one task a node has all its GPUs
        ("8(x2)", "0,1,2,3,4,5,6,7", "5", (5,)),
        ("2(x2)", "0,1,2,3,4,5,6,7", "1", (4, 5, 6, 7)),
        ("8(x2)", "3", "5", (0,)),  # bound to one by --gpus-per-task
        ("8(x2)", "", "5", None),
    ],
)
def test_slurm_tasks_share_their_nodes_gpus(monkeypatch, tasks, gpus, local, expected):
    """Catches JAX's rule, the GPU of the task's own number: one task on a node of eight would use one."""
    environ = SLURM | {"SLURM_STEP_TASKS_PER_NODE": tasks, "CUDA_VISIBLE_DEVICES": gpus, "SLURM_LOCALID": local}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert find_job(environ=environ).local_device_ids == expected


def test_ranks_of_mpirun_inside_a_slurm_job_are_not_counted_by_slurm(monkeypatch):
    """Catches two ranks of one number, and ranks that each train alone."""
    ranks = SLURM | {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}
    monkeypatch.delenv("OMPI_MCA_orte_hnp_uri", raising=False)
    with pytest.raises(ConfigError, match="mpirun started 4 processes inside the SLURM job 4097.*srun"):
        find_job(environ=ranks)
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911")
    for name, value in {"SIZE": "4", "RANK": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    job = find_job(environ=ranks)
    assert (job.origin, job.processes, job.process_id) == ("ompi", 4, 2)
    assert job.coordinator.startswith("10.96.0.1:")


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"])
def test_a_variable_that_is_no_number_is_named(monkeypatch, name):
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node7")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with pytest.raises(ConfigError, match=f"{name} is 'z', which is no whole number"):
        find_job(environ=SLURM | {"CUDA_VISIBLE_DEVICES": "0,1", name: "z"})
