"""The child of `compiled.py`: reads a request, compiles the step, prints what it found as JSON."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time


def topology_devices(target):
    """The devices of a slice that is not there."""
    from jax.experimental import topologies

    settings = {"num_slices": 1}
    if len(target.shape) == 3:
        settings |= {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
    elif target.chips == 1:
        settings |= {"chips_per_host_bounds": (1, 1, 1)}
    if any(target.closed):
        settings["wrap"] = (*target.closed, False)[:3]  # three are asked for, of a flat slice too
    name = f"{target.chip.topology}:{'x'.join(map(str, target.shape))}"
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **settings).devices)


def lower(config, devices):
    """The lowered train step of a config on a mesh over `devices`, exactly as the trainer makes it."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding

    from rfjax.data.corpus import load_corpus
    from rfjax.models import make_backbone
    from rfjax.training.loss import make_loss, run_keys
    from rfjax.training.mesh import BATCH, make_mesh, shardings
    from rfjax.training.optimizer import make_optimizer
    from rfjax.training.state import init_state
    from rfjax.training.step import make_train_step

    mesh = make_mesh(config.mesh, devices)
    corpus = load_corpus(config.data, config.seed)
    train = config.train
    backbone = make_backbone(config.model, corpus.shapes, compute_dtype=train.compute_dtype, remat=train.remat)
    optimizer = make_optimizer(train)
    state = jax.eval_shape(lambda key: init_state(backbone.init, optimizer, key), run_keys(config.seed)[0])
    state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, shardings(mesh, state)
    )
    example = corpus.examples(np.arange(1, dtype=np.uint64), "train")
    place = NamedSharding(mesh, BATCH)
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((train.batch_size, *a.shape[1:]), a.dtype, sharding=place), example)
    with jax.set_mesh(mesh), jax.default_matmul_precision(train.matmul_precision):
        step = make_train_step(
            make_loss(config, backbone.apply, corpus.shapes.encoders), optimizer, train, mesh, state
        )  # fmt: skip
        return step.lower(state, batch)


def main() -> None:
    request = json.load(sys.stdin)
    import jax

    from rfjax import config as configs
    from rfjax.scaling.plan import hlo
    from rfjax.scaling.plan.chips import parse_target

    if request["optimisation"] != "default":
        jax.config.update("jax_optimization_level", request["optimisation"])
    devices = topology_devices(parse_target(request["target"])) if request["target"] else jax.devices()
    began = time.monotonic()
    lowered = lower(configs.from_dict(request["config"]), devices)
    answer = {}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        answer["too_large"] = str(error)[:2000]
    else:
        memory = compiled.memory_analysis()
        answer |= {
            "peak": memory.peak_memory_in_bytes,
            "arguments": memory.argument_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "counts": dataclasses.asdict(hlo.count(compiled.as_text(), len(devices))),
        }
    answer["seconds"] = time.monotonic() - began
    answer["host_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
