"""What was measured, put together: rates, shares of the measured peak, phases. No JAX here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

COLLECTIVES_ALONE = "one device exchanges nothing"
COLLECTIVES_UNKNOWN = (
    "the compiler overlaps exchanges with computation, so no difference of times is theirs; see --profile"
)


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
) -> dict:
    """The numbers of a benchmark, from times in seconds and operations per image of all devices together.

    `achieved` counts a model's own operations (three forward passes, `models/flops.py`), not those
    that are computed again. The floor is the time of all operations, those included, at the peak.
    """
    step = statistics.median(loop["step"])
    flops = batch_size * flops_per_image
    number = lambda name: parts[name] if isinstance(parts.get(name), float) else None  # noqa: E731
    forward, both, optimiser = (number(name) for name in ("forward", "forward_backward", "optimiser"))
    backward = None if forward is None or both is None else both - forward
    total = sum(loop["step"])
    return {
        "step_seconds": step,
        "step_seconds_all": list(loop["step"]),
        "images_per_second": batch_size / step,
        "flops_per_step": flops,
        "recomputed_flops_per_step": batch_size * recomputed_per_image,
        "achieved_flops_per_second": flops / step,
        "share_of_measured_peak": flops / step / peak,
        "share_of_datasheet_peak": flops / step / datasheet_peak if datasheet_peak else None,
        "floor_seconds": (flops + batch_size * recomputed_per_image) / peak,
        "phases": {
            "data": {"seconds": loader, "what": "the loader's time for a batch, on its own"},
            "waiting_for_data": {
                "seconds": statistics.median(loop["waiting_for_data"]),
                "share_of_loop": sum(loop["waiting_for_data"]) / total,
                "what": "in the loop, until the loader has a batch",
            },
            "placing": {"seconds": statistics.median(loop["placing"]), "what": "in the loop, a batch onto the devices"},
            "forward": {"seconds": forward, "what": _what(parts, "forward", "compiled alone")},
            "backward": {
                "seconds": backward,
                "what": _what(parts, "forward_backward", "forward and backward less forward"),
            },
            "optimiser": {
                "seconds": optimiser,
                "what": _what(parts, "optimiser", "compiled alone: clipping, AdamW, average"),
            },
            "collectives": {
                "seconds": 0.0 if devices == 1 else None,
                "what": COLLECTIVES_ALONE if devices == 1 else COLLECTIVES_UNKNOWN,
            },
            "remainder": {
                "seconds": None if both is None or optimiser is None else step - both - optimiser,
                "what": "the step less forward, backward and optimiser: what compiling them as one gains or costs, "
                "and the host",
            },
        },
    }


def _what(parts, name, otherwise):
    return parts[name] if isinstance(parts.get(name), str) else otherwise


def lines(record: Mapping) -> list[str]:
    """The record as a table for the console."""
    step, peak = record["step_seconds"], record["peak"]
    rows = [("phase", "ms", "of step", "")]
    for name, phase in record["phases"].items():
        seconds = phase["seconds"]
        cells = ("-", "-") if seconds is None else (f"{1e3 * seconds:,.2f}", f"{seconds / step:.1%}")
        rows.append((name.replace("_", " "), *cells, phase["what"]))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    table = [
        "  ".join((row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2]), row[3])).rstrip()
        for row in rows
    ]
    sheet = record["share_of_datasheet_peak"]
    return [
        f"{record['hardware']['devices']} x {record['hardware']['device_kind']}, {record['params']:,} "
        "parameters, batch "
        f"{record['batch_size']}, {record['compute_dtype']}, attention {record['attention']}, remat {record['remat']}",
        f"step        {1e3 * step:,.2f} ms (median of {len(record['step_seconds_all'])}), "
        f"{record['images_per_second']:,.2f} images/s",
        f"achieved    {record['achieved_flops_per_second'] / 1e12:,.4g} TFLOP/s, "
        f"{record['share_of_measured_peak']:.1%} of the measured peak"
        + (f", {sheet:.1%} of the datasheet's" if sheet else "; this device's datasheet peak is not known"),
        f"peak        {peak['flops_per_second'] / 1e12:,.4g} TFLOP/s, square {peak['dtype']} products on the same "
        "devices in this run",
        f"floor       {1e3 * record['floor_seconds']:,.2f} ms: {record['flops_per_step']:.4g} operations, and "
        f"{record['recomputed_flops_per_step']:.4g} computed again, at the measured peak",
        "",
        *table,
    ]
