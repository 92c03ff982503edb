"""Times sampling a batch of images on this machine, with weights stored in each of several types, and measures the
rounding error of each type."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from rfjax.bench.peak import median_seconds
from rfjax.data.batch import BatchShapes, Conditions, written_shape
from rfjax.evaluation.generate import sampler_rows, sampling_program
from rfjax.flow.resolution import formulation_at
from rfjax.models.flops import forward_flops
from rfjax.models.quantised import store, stored_shapes
from rfjax.plan.sampling import evaluations_of
from rfjax.training.chips import chip_of
from rfjax.training.mesh import shardings, spread
from rfjax.training.run import Run

DRAWN = 0.02  # standard deviation of the noise that `drawn_params` adds to kernels


def drawn_params(init: Callable, key):
    """Returns a fresh network's parameters with noise added to each kernel.

    Without noise the kernels of the modulation and the last layer are zeros, so the network would predict zeros.
    """
    params = init(key)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
    noisy = [a + DRAWN * jax.random.normal(k, a.shape) if a.ndim > 1 else a for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    """Computes ||found - exact|| / ||exact||."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def sample_seconds(run: Run, latents: tuple[int, ...], batch: int, weights: Sequence[str], rounds: int, say) -> list:
    """Samples with weights stored in each of the types `weights`; returns a row of numbers for each type.

    `latents` is the shape of one latent, and `batch` the number of images in a batch. A row has the median seconds of a
    batch over `rounds` batches, a device's bytes of weights, a device's peak bytes (as compiled, and as the device
    reports), and the relative error of the latents. The error is the difference from the latents that weights of the
    first type give with the same noise and conditions.
    """
    config, sampler, shapes = run.config, run.config.evaluation.sampler, run.corpus.shapes
    program = sampling_program(run.backbone.apply, sampler, latents, batch_sharding=run.batch_sharding)
    rows = sampler_rows(formulation_at(config, latents), sampler)
    generator = np.random.default_rng(config.seed)
    draw = lambda *shape: generator.standard_normal(shape, np.float32)  # noqa: E731
    conditions = Conditions(draw(batch, *shapes.context), draw(batch, shapes.pooled))
    ids = np.stack([np.arange(batch), np.zeros(batch)], axis=1).astype(np.int32)
    negative = jax.tree.map(lambda a: np.zeros((1, *a.shape[1:]), np.float32), conditions)
    ids, conditions = spread((ids, conditions), run.batch_sharding)
    found, exact = [], None
    for name in weights:
        say(f"weights in {name}: compiling, then {rounds} batches of {batch}")
        places = shardings(run.mesh, stored_shapes(run.backbone.init, name))
        make = jax.jit(lambda key, name=name: store(drawn_params(run.backbone.init, key), name), out_shardings=places)
        params = make(jax.random.key(config.seed))
        arguments = (params, *rows, np.uint32(config.seed), ids, conditions, negative)
        compiled = program.lower(*arguments).compile()
        seconds = median_seconds(lambda c=compiled, a=arguments: c(*a), rounds)
        made = np.asarray(jax.device_get(compiled(*arguments)), np.float32)
        exact = made if exact is None else exact
        found.append(
            {
                "weights": name,
                "batch_seconds": seconds,
                "weight_bytes": sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params)),
                "compiled_peak_bytes": _peak_bytes(compiled),
                "device_peak_bytes": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
                "error_of_latents": relative_error(made, exact),
            }
        )
        del params, arguments
    return found


def _peak_bytes(compiled) -> int | None:
    memory = compiled.memory_analysis()
    return None if memory is None else int(memory.peak_memory_in_bytes)


def sample_summary(
    measured: Sequence[Mapping],
    *,
    batch: int,
    evaluations: int,
    forward: int,
    devices: int,
    device_kind: str,
    peak: float,
) -> list[dict]:
    """Returns the rows of `sample_seconds`, with rates and shares of the peak added.

    `evaluations` is the number of the network's evaluations for one image, `forward` the FLOPs of one evaluation, and
    `peak` the measured FLOP/s of all devices together.

    `images_per_chip_hour` counts chips: a chip that JAX shows as two devices is one chip. If the kind of chip is
    unknown, each device counts as a chip.
    """
    chip = chip_of(device_kind)
    chips = devices / (chip.devices if chip else 1)
    rows = []
    for row in measured:
        each = row["batch_seconds"] / batch
        flops = batch * evaluations * forward
        rates = {"seconds_per_image": each, "images_per_chip_hour": 3600.0 / (each * chips), "flops": flops}
        rates["share_of_measured_peak"] = flops / row["batch_seconds"] / peak
        sheet = chip and chip.device_flops * devices
        rates["share_of_datasheet_peak"] = flops / row["batch_seconds"] / sheet if sheet else None
        rows.append({**row, **rates})
    return rows


def sample_lines(record: Mapping) -> list[str]:
    """Formats the record as a table for the console."""
    gib = lambda count: "-" if count is None else f"{count / 2**30:.3f}"  # noqa: E731
    rows = [("weights", "s/image", "images/chip-hour", "of peak", "stored", "peak", "on device", "error")]
    for row in record["samples"]:
        memory = (gib(row[name]) for name in ("weight_bytes", "compiled_peak_bytes", "device_peak_bytes"))
        rates = (f"{row['seconds_per_image']:.4g}", f"{row['images_per_chip_hour']:,.0f}")
        share = f"{row['share_of_measured_peak']:.1%}"
        rows.append((row["weights"], *rates, share, *memory, f"{row['error_of_latents']:.2g}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    hardware, sampler = record["hardware"], record["sampler"]
    return [
        f"{hardware['devices']} x {hardware['device_kind']}, {record['params']:,} parameters, batch {record['batch']}, "
        f"latents {'x'.join(map(str, record['latent_size']))}, {sampler['steps']} steps of {sampler['method']}, "
        f"guidance {sampler['guidance_scale']:g}, attention {record['attention']}",
        *("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows),
        "GiB per device: stored weights, the compiled peak, and the device's reported peak since the process began.",
        f"error: relative difference, in norm, of the latents from those by {record['samples'][0]['weights']} weights; "
        "the weights are drawn, not trained.",
    ]


def measure_samples(
    run: Run, shapes: BatchShapes, batch: int | None, weights: Sequence[str], rounds: int, peak: Mapping, say
) -> dict:
    """Measures sampling with the network's weights stored in each of the number types `weights`, such as int8. Returns
    the numbers for a benchmark's record, with a row for each type.

    `batch` is the number of images that are sampled at once, over all devices; None means the fewest that can be split
    over the devices. `peak` is what `matmul_flops_per_second` returns.
    """
    latents, config = shapes.latents, run.config
    batch = run.batch_ways if batch is None else batch
    sampler, devices = config.evaluation.sampler, run.mesh.devices.flatten().tolist()
    evaluations = evaluations_of(config, latents)
    measured = sample_seconds(run, latents, batch, weights, rounds, say)
    samples = sample_summary(
        measured,
        batch=batch,
        evaluations=evaluations,
        forward=forward_flops(config.model, shapes),
        devices=len(devices),
        device_kind=devices[0].device_kind,
        peak=peak["flops_per_second"],
    )
    return {
        "batch": batch,
        "latent_size": list(written_shape(latents)[:-1]),
        "sampler": dataclasses.asdict(sampler),
        "evaluations": evaluations,
        "samples": samples,
    }
