"""A run small enough to train in seconds: a toy backbone with the real one's parameter paths.

As a script it trains in a process of its own, for tests that kill it:
`python training_tiny.py WORKDIR '{"overrides": {...}, "bad_steps": [...], "pause": 0.0}'`;
"file_limit" is the size in bytes beyond which no file can grow; "job" [port, processes, process
id] makes it one of many; "order" [2, 0, ...] are the devices of its mesh; with "copy_to" it only
writes what it restores to another folder.
"""

import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from helpers import child_process
from rfjax.config import apply_overrides, from_dict
from rfjax.data.corpus import load_corpus
from rfjax.data.random import RandomCorpus
from rfjax.errors import RfjaxError
from rfjax.models.backbone import Backbone
from rfjax.trackers import feeding
from rfjax.training import checkpoint
from rfjax.training.loop import train
from rfjax.training.mesh import make_mesh
from rfjax.training.processes import distributed
from rfjax.training.processes.cluster import Job
from rfjax.training.program import abstract_state
from rfjax.training.run import Run, Trunk
from rfjax.training.state import TrainState

BASE = {
    "model": {"depth": 2, "hidden": 16, "head_size": 8},
    "data": {"corpus": "random", "image_size": 4, "context_tokens": 2, "context_size": 8, "pooled_size": 8},
    "train": {
        "steps": 30,
        "batch_size": 8,
        "warmup_steps": 4,
        "learning_rate": 1e-2,
        "ema_every": 3,
        "log_every": 4,
        "checkpoint_every": 6,
        "keep_last": 2,
        "max_skipped_in_row": 3,
    },
}


def tiny_config(overrides=None):
    return apply_overrides(from_dict(BASE), overrides or {})


def tiny_backbone(config):
    """An MLP over flattened latents, with t and text added; its layers are stacked and scanned."""
    data, hidden, layers = config.data, config.model.width, config.model.depth
    values = data.image_size**2 * data.channels

    def init(key):
        keys = iter(jax.random.split(key, 4))

        def kernel(*shape):
            return 0.3 * jax.random.normal(next(keys), shape)

        image = {
            "mlp_in": {"kernel": kernel(layers, hidden, 2 * hidden)},
            "mlp_out": {"kernel": kernel(layers, 2 * hidden, hidden), "bias": jnp.zeros((layers, hidden))},
        }
        if config.model.qk_norm:
            image["query_norm"] = {"scale": jnp.full((layers, hidden), 1.0)}
        return {
            "patch_embed": {"kernel": kernel(values, hidden)},
            "blocks": {"image": image},
            "final": {"linear": {"kernel": kernel(hidden, values), "bias": jnp.zeros(values)}},
        }

    def apply(params, z, t, context, pooled):
        x = z.reshape(z.shape[0], -1) @ params["patch_embed"]["kernel"]
        x = x + (t + pooled.mean(axis=1) + context.mean(axis=(1, 2)))[:, None]

        def block(x, layer):
            y = jnp.tanh(x * layer["query_norm"]["scale"] if "query_norm" in layer else x)
            y = jax.nn.gelu(y @ layer["mlp_in"]["kernel"])
            return x + y @ layer["mlp_out"]["kernel"] + layer["mlp_out"]["bias"], None

        x, _ = jax.lax.scan(block, x, params["blocks"]["image"])
        out = x @ params["final"]["linear"]["kernel"] + params["final"]["linear"]["bias"]
        return out.reshape(z.shape)

    return Backbone(init, apply)


@dataclass(frozen=True, kw_only=True)
class PoisonedCorpus(RandomCorpus):
    """A corpus whose batches of `bad_steps` are not finite from one place on, which takes `pause` seconds
    each, and which in process `damaged[0]` cannot be read from step `damaged[1]` on."""

    batch_size: int
    bad_steps: Collection[int]
    bad_from: int
    pause: float
    damaged: tuple[int, int] | None

    def examples(self, indices, split):
        time.sleep(self.pause)
        batch = super().examples(indices, split)
        step, place = np.divmod(np.asarray(indices).astype(int), self.batch_size)
        if self.damaged and jax.process_index() == self.damaged[0] and step.max() >= self.damaged[1]:
            raise RfjaxError("shard 3 is damaged; fetch it again")
        bad = np.isin(step, list(self.bad_steps)) & (place >= self.bad_from)
        latents = batch.latents.copy()
        latents[bad] = np.nan
        return batch._replace(latents=latents)


def run_in(workdir, config, corpus=None, backbone=None, devices=None, **place):
    """The run of a config in a folder; by default on its own corpus, with the toy backbone, on all devices. `place` is
    what it is to its point: role and trunk."""
    return Run(
        config=config,
        corpus=corpus or load_corpus(config.data, config.seed),
        backbone=backbone or tiny_backbone(config),
        mesh=make_mesh(config.mesh, devices),
        name=Path(workdir).name,
        workdir=Path(workdir),
        **place,
    )


def tiny_train(
    workdir,
    overrides=None,
    *,
    bad_steps=(),
    bad_from=0,
    pause=0.0,
    damaged=None,
    devices=None,
    trunk=None,
    look=None,
    last=60.0,
    **arguments,
):
    """Trains the toy; `trunk` is [folder, name, step] of what a branch leaves. With `look`, trackers are fed, and look
    at the folder every so many seconds; at the end training waits `last` seconds for them."""
    config = tiny_config(overrides)
    plain = load_corpus(config.data, config.seed)
    poison = {
        "batch_size": config.train.batch_size,
        "bad_steps": bad_steps,
        "bad_from": bad_from,
        "pause": pause,
        "damaged": damaged,
    }
    corpus = PoisonedCorpus(plain.seed, plain.shapes, **poison)
    place = {"role": "branch", "trunk": Trunk(*trunk)} if trunk else {}
    run = run_in(workdir, config, corpus, devices=devices, **place)
    if look is None:
        return train(run, **arguments)
    feeding.LOOK_SECONDS, feeding.LAST_SECONDS = look, last
    with feeding.follow([run]):
        return train(run, **arguments)


def rows(workdir):
    """The metrics rows, without what depends on the clock."""
    timed = {"train_seconds", "steps_per_second", "images_per_second", "flops_per_second", "mfu"}
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in timed} for line in lines]


def start_processes(workdir, count, devices=1, **arguments):
    """The run in `count` processes of so many simulated devices each; what each says is in its .said file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for index in range(count):
        mine = arguments | ({"job": [port, count, index]} if count > 1 else {})
        command = [sys.executable, __file__, str(workdir), json.dumps(mine)]
        said = Path(f"{workdir}.{index}.said").open("w+")
        more = child_process.quick_environment(devices)
        process = subprocess.Popen(command, env=more, stdout=said, stderr=said)
        process.said = said
        started.append(process)
    return started


def ended(started, timeout=300):
    """[(exit status, what it said)] of processes that end by themselves; kills them after an error."""
    try:
        statuses = [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(status, Path(process.said.name).read_text()) for status, process in zip(statuses, started, strict=True)]


def copy(workdir, target, overrides):
    """Restores the newest checkpoint on this process's mesh, and saves it again elsewhere."""
    run = run_in(workdir, tiny_config(overrides))
    with jax.set_mesh(run.mesh):
        restored = checkpoint.restore_newest(run.workdir, abstract_state(run)._asdict())
        with checkpoint.Checkpoints(Path(target), keep_last=1, kept=lambda step: False) as checkpoints:
            checkpoints.save(TrainState(**restored.tree), restored.step, restored.facts)


def main():
    arguments = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    limit = arguments.pop("file_limit", None)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    job = arguments.pop("job", None)
    status = 0
    try:
        if job:
            port, processes, process_id = job
            distributed.join(Job("the test", processes, process_id, f"127.0.0.1:{port}"), heartbeat_seconds=10)
        if "order" in arguments:
            arguments["devices"] = [jax.devices()[index] for index in arguments.pop("order")]
        if "copy_to" in arguments:
            copy(sys.argv[1], arguments["copy_to"], arguments.get("overrides"))
        else:
            tiny_train(sys.argv[1], log_seconds=0.0, **arguments)
    except RfjaxError as error:
        print(error, file=sys.stderr)
        status = error.exit_status
    return distributed.leave(status, alone=bool(status))


if __name__ == "__main__":
    sys.exit(main())
