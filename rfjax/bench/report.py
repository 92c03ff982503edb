"""Computes a benchmark's numbers from its times: rates, shares of the measured peak, and phases. No JAX here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

COLLECTIVES_ALONE = "one device exchanges nothing"
COLLECTIVES_UNKNOWN = "the compiler overlaps exchanges with computation, so their time is not measured; see --profile"


def summary(
    *,
    batch_size: int,
    flops_per_image: int,
    recomputed_per_image: int,
    devices: int,
    peak: float,
    datasheet_peak: float | None,
    loop: Mapping[str, list[float]],
    loader: float,
    parts: Mapping[str, float | str],
    optimizer: str = "AdamW",
    optimizer_flops: int = 0,
) -> dict:
    """Returns the numbers of a benchmark. Times are in seconds, peaks in FLOP/s. Peaks and the returned rates are those
    of all devices together.

    `loop` has the fields of `phases.Loop`; `loader` and `parts` are what `phases.loader_seconds` and
    `phases.part_seconds` return. In the result, `achieved_flops_per_second` counts the model's own operations (three
    forward passes, `models/flops.py`), without recomputation. `floor_seconds` is the time that the network's
    operations, recomputed ones included, would take at the measured peak; the optimiser's operations are not counted.
    """
    step = statistics.median(loop["step"])
    flops, repeated = batch_size * flops_per_image, batch_size * recomputed_per_image

    def phase(seconds, what, **more):
        return {"seconds": seconds, **more, "what": what}

    def part(name, what):
        return phase(parts[name], what) if isinstance(parts[name], float) else phase(None, parts[name])

    both = part("forward_backward", "forward and backward less forward")
    forward = part("forward", "compiled alone")
    optimiser = part("optimiser", f"compiled alone: clipping, {optimizer}, average")
    waiting, share = statistics.median(loop["waiting_for_data"]), sum(loop["waiting_for_data"]) / sum(loop["step"])
    rest = "the step less forward, backward and optimiser: what compiling them as one gains or costs, and the host"
    return {
        "step_seconds": step,
        "step_seconds_all": list(loop["step"]),
        "images_per_second": batch_size / step,
        "flops_per_step": flops,
        "recomputed_flops_per_step": repeated,
        "optimizer_flops_per_step": optimizer_flops,
        "achieved_flops_per_second": flops / step,
        "share_of_measured_peak": flops / step / peak,
        "share_of_datasheet_peak": flops / step / datasheet_peak if datasheet_peak else None,
        "floor_seconds": (flops + repeated) / peak,
        "phases": {
            "data": phase(loader, "the loader's time for a batch, on its own"),
            "waiting_for_data": phase(waiting, "in the loop, until the loader has a batch", share_of_loop=share),
            "placing": phase(statistics.median(loop["placing"]), "in the loop, a batch onto the devices"),
            "forward": forward,
            "backward": both | {"seconds": _minus(both["seconds"], forward["seconds"])},
            "optimiser": optimiser,
            "collectives": phase(0.0, COLLECTIVES_ALONE) if devices == 1 else phase(None, COLLECTIVES_UNKNOWN),
            "remainder": phase(_minus(step, both["seconds"], optimiser["seconds"]), rest),
        },
    }


def _minus(first: float | None, *others: float | None) -> float | None:
    """Returns `first` minus all `others`; None if any of the numbers is None."""
    for other in others:
        first = None if first is None or other is None else first - other
    return first


def _optimizer_line(record: Mapping) -> list[str]:
    """Returns the line on the optimiser's matrix products and state; no line for an optimiser without matrix
    products."""
    if not record["optimizer_flops_per_step"]:
        return []
    share = record["optimizer_flops_per_step"] / record["flops_per_step"]
    count = (
        f"{record['optimizer_flops_per_step']:.4g} operations a step ({share:.1%} of the network's, not counted there)"
    )
    return [f"optimiser   {record['optimizer']}: {count}, state of {record['optimizer_bytes'] / 2**20:,.1f} MiB"]


def flag_lines(record: Mapping) -> list[str]:
    """Formats the XLA flags that were in force: a line for the flags that rfjax set, and a line for the user's own."""
    who = {"rfjax": "set by rfjax; --no-xla-flags sets none", "user": "from the environment"}
    shown = {key: " ".join(record["xla_flags"][key]) for key in who}
    return [f"XLA flags   {shown[key]} ({said})" for key, said in who.items() if shown[key]]


def lines(record: Mapping) -> list[str]:
    """Formats the record as a table for the console."""
    step, peak = record["step_seconds"], record["peak"]
    rows = [("phase", "ms", "of step", "")]
    for name, phase in record["phases"].items():
        seconds = phase["seconds"]
        cells = ("-", "-") if seconds is None else (f"{1e3 * seconds:,.2f}", f"{seconds / step:.1%}")
        rows.append((name.replace("_", " "), *cells, phase["what"]))
    name, time, share = (max(len(row[i]) for row in rows) for i in range(3))
    table = [f"{row[0]:<{name}}  {row[1]:>{time}}  {row[2]:>{share}}  {row[3]}".rstrip() for row in rows]
    sheet, hardware = record["share_of_datasheet_peak"], record["hardware"]
    datasheet = (
        f", {sheet:.1%} of the datasheet's for bfloat16" if sheet else "; this device's datasheet peak is not known"
    )
    measured = f"{record['share_of_measured_peak']:.1%} of the measured peak{datasheet}"
    images, repeated = record["images_per_second"], record["recomputed_flops_per_step"]
    return [
        f"{hardware['devices']} x {hardware['device_kind']}, {record['params']:,} parameters, batch "
        f"{record['batch_size']}, {record['compute_dtype']}, attention {record['attention']}, remat {record['remat']}, "
        f"{record['unroll'] or 'all'} blocks an iteration of the scan",
        f"step        {1e3 * step:,.2f} ms (median of {len(record['step_seconds_all'])}), {images:,.2f} images/s",
        f"achieved    {record['achieved_flops_per_second'] / 1e12:,.4g} TFLOP/s, {measured}",
        f"peak        {peak['flops_per_second'] / 1e12:,.4g} TFLOP/s, square {peak['dtype']} products on the same "
        "devices in this run",
        *_optimizer_line(record),
        f"floor       {1e3 * record['floor_seconds']:,.2f} ms: {record['flops_per_step']:.4g} operations, and "
        f"{repeated:.4g} computed again, at the measured peak",
        "",
        *table,
    ]
