"""The child process of `compiled.py`: reads a request, compiles a step or a sampler, prints its numbers as JSON."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time

from rfjax.plan.gpu_description import DESCRIPTIONS, text_proto


def topology_devices(target):
    """Returns abstract devices that stand for the devices of the target's slices or nodes."""
    from jax.experimental import topologies

    if target.chip.kind == "cuda":
        settings = {"topology": "1x{}x{}".format(*target.shape)}
        settings["target_config"] = text_proto(DESCRIPTIONS[target.chip.name].fields())
        return list(topologies.get_topology_desc("", "cuda", **settings).devices)
    settings = {"num_slices": target.slices}
    if target.chip.core_name:
        settings["chip_config_name"] = target.chip.core_name
    if len(target.shape) == 3:
        settings["chips_per_host_bounds"] = (2, 2, 1)
    elif target.slice_chips == 1:
        settings |= {"chips_per_host_bounds": (1, 1, 1)}
    if any(target.closed):
        settings["wrap"] = (*target.closed, False)[:3]  # libtpu wants three values, even for a 2D slice
    name = f"{target.chip.topology}:{'x'.join(map(str, target.shape))}"
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **settings).devices)


def lower(config, devices, platform: str):
    """Lowers a config's train step on a mesh over `devices`; `platform` is a name in `models/attention.py`."""
    from rfjax.models.backbone import training_backbone
    from rfjax.training.mesh import make_mesh
    from rfjax.training.program import lower_train_step
    from rfjax.training.run import plan_run

    run, mesh = plan_run(config), make_mesh(config.mesh, devices)
    run = run.on_part(run.largest_part)
    backbone = training_backbone(run.config, run.corpus.shapes, platform)
    return lower_train_step(dataclasses.replace(run, backbone=backbone, mesh=mesh))


def lower_sampler(config, devices, platform: str, weights: str, batch: int, latents):
    """Lowers the program by which a config's sampler makes `batch` images, on a mesh over `devices`. Weights are stored
    in the type `weights`; `platform` is a name in `models/attention.py`."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from rfjax.data.batch import Conditions
    from rfjax.evaluation.generate import sampler_rows, sampling_program
    from rfjax.flow.resolution import formulation_at
    from rfjax.models.backbone import training_backbone
    from rfjax.models.quantised import stored_shapes
    from rfjax.training.mesh import BATCH, make_mesh, shardings
    from rfjax.training.run import plan_run

    run, mesh, latents = plan_run(config), make_mesh(config.mesh, devices), tuple(latents)
    shapes = run.corpus.shapes
    backbone = training_backbone(config, shapes, platform)
    abstract = lambda shape, dtype, place: jax.ShapeDtypeStruct(shape, dtype, sharding=place)  # noqa: E731
    stored = stored_shapes(backbone.init, weights)
    params = jax.tree.map(lambda leaf, place: abstract(leaf.shape, leaf.dtype, place), stored, shardings(mesh, stored))
    rows, whole = NamedSharding(mesh, BATCH), NamedSharding(mesh, P())
    features = lambda count, place: Conditions(  # noqa: E731
        abstract((count, *shapes.context), np.float32, place), abstract((count, shapes.pooled), np.float32, place)
    )
    sampler = config.evaluation.sampler
    program = sampling_program(
        backbone.apply, sampler, latents, batch_sharding=rows if mesh.size > 1 else None, path_length=False
    )
    levels = jax.tree.map(
        lambda a: abstract(np.shape(a), np.float32, whole), sampler_rows(formulation_at(config, latents), sampler)
    )
    with jax.set_mesh(mesh), jax.default_matmul_precision(config.train.matmul_precision):
        seed, ids = abstract((), np.uint32, whole), abstract((batch, 2), np.int32, rows)
        return program.lower(params, *levels, seed, ids, features(batch, rows), features(1, whole))


def main() -> None:
    request = json.load(sys.stdin)
    import jax

    from rfjax import config as configs
    from rfjax.plan import hlo
    from rfjax.plan.targets import parse_target

    if request["optimisation"] != "default":
        jax.config.update("jax_optimization_level", request["optimisation"])
    target = parse_target(request["target"]) if request["target"] else None
    devices = topology_devices(target) if target else jax.devices()
    began = time.monotonic()
    config, platform = configs.from_dict(request["config"]), target.platform if target else "cpu"
    if request.get("sampling"):
        lowered = lower_sampler(config, devices, platform, **request["sampling"])
    else:
        lowered = lower(config, devices, platform)
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
            "counts": dataclasses.asdict(hlo.count(compiled.as_text(), len(devices), target.slices if target else 1)),
        }
    answer["seconds"] = time.monotonic() - began
    answer["host_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
