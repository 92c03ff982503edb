"""The parts of gpu_session.sh: each measures one thing on a GPU and writes its record, DIR/PART.json, as it goes.

    python analysis/benchmarks/gpu_parts.py PART --out DIR [--seconds 60] [--tiny]
    python analysis/benchmarks/gpu_parts.py --summary --out DIR

256^2 means the paper's latents of 32x32x16 and 154 text tokens of size 4096; 1024^2 means latents of 128x128x16. Peaks
are the rates of square bfloat16 products, measured in the same process. The plan's formulas choose the batch size and
the rematerialisation of a step for the device's memory; the record holds both the planned and the used memory.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import importlib.metadata
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

PAPER = {"head_size": 64, "latent": 32, "channels": 16, "tokens": 154, "context": 4096, "pooled": 2048, "grid": 192}
TINY = {"head_size": 8, "latent": 8, "channels": 4, "tokens": 6, "context": 16, "pooled": 8, "grid": 8}
SHARE_OF_MEMORY = 0.8  # that a planned step may take, since the plan's memory is an estimate
SMALLEST_BATCH = 64  # below it, the next rematerialisation is taken: smaller products leave the device idle
LARGEST_BATCH = 512


@dataclasses.dataclass
class Session:
    """What a part is given: how long it may take, how large it may be, and where its record goes."""

    part: str
    out: Path
    seconds: float
    tiny: bool
    changes: dict = dataclasses.field(default_factory=dict)  # fields of a step's config that --set changes
    began: float = dataclasses.field(default_factory=time.monotonic)
    record: dict = dataclasses.field(default_factory=dict)

    @property
    def shape(self) -> dict:
        return TINY if self.tiny else PAPER

    def left(self) -> float:
        """Seconds that are left of the part's time."""
        return self.seconds - (time.monotonic() - self.began)

    def note(self, **found) -> None:
        """Adds to the record and writes it: what is written stays, whatever ends the part."""
        self.record |= found
        about = {"schema": 1, "part": self.part, "tiny": self.tiny, "when": datetime.now(UTC).isoformat("T", "seconds")}
        took = {"seconds": round(time.monotonic() - self.began, 1)}
        path = self.out / f"{self.part}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(about | took | self.record, indent=1) + "\n")
        temporary.replace(path)

    def time(self, take: Callable, wait: Callable, most: int = 20) -> float:
        """Median seconds of a call, waited for, after two that warm up; as many calls as the time left allows."""
        for _ in range(2):
            take()
        wait()
        times = []
        while len(times) < (2 if self.tiny else most) and (self.left() > 3 or len(times) < 3):
            began = time.perf_counter()
            take()
            wait()
            times.append(time.perf_counter() - began)
        return statistics.median(times)


def versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def jax_device():
    """The device, with its name and versions for the record."""
    import jax

    device = jax.devices()[0]
    return device, {"device": device.device_kind, "platform": device.platform, "versions": versions("jax", "jaxlib")}


def make_config(shape: dict, depth: int, batch: int = 1, remat: str = "none", latent: int | None = None):
    from rfjax.config import from_dict

    model = {
        "depth": depth,
        "width_per_depth": shape["head_size"],
        "head_size": shape["head_size"],
        "position_grid": shape["grid"],
    }
    data = {
        "corpus": "random",
        "image_size": latent or shape["latent"],
        "channels": shape["channels"],
        "context_tokens": shape["tokens"],
        "context_size": shape["context"],
        "pooled_size": shape["pooled"],
    }
    train = {"compute_dtype": "bfloat16", "unroll": 0, "batch_size": batch, "remat": remat}
    return from_dict({"model": model, "data": data, "train": train})


def measured_peak(session: Session, device) -> float:
    """FLOP/s of square bfloat16 products; two sides are enough to see that the larger gains nothing."""
    from rfjax.bench.peak import matmul_flops_per_second

    peak = matmul_flops_per_second([device], "bfloat16", (64, 128) if session.tiny else (8192, 12288))
    session.note(peak=peak)
    return peak["flops_per_second"]


def memory_limit(device) -> int:
    """Bytes that JAX may use on the device; 16 GiB where it does not say."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", 16 << 30)


def planned(session: Session, depth: int, memory: int):
    """(config, the plan's estimate of its peak bytes): the least recomputation that leaves a batch worth running."""
    from rfjax.config import apply_overrides
    from rfjax.plan.estimate import estimate
    from rfjax.plan.targets import Target
    from rfjax.training.chips import CHIPS

    target = Target("one GPU", CHIPS["h100"], (1, 1))
    smallest, largest = (1, 2) if session.tiny else (SMALLEST_BATCH, LARGEST_BATCH)
    if session.changes:
        config = apply_overrides(make_config(session.shape, depth, smallest), session.changes)
        return config, estimate(config, target).peak_bytes
    for remat in ("none", "dots", "full"):
        batch = largest
        while batch >= smallest:
            config = make_config(session.shape, depth, batch, remat)
            peak = estimate(config, target).peak_bytes
            if peak <= SHARE_OF_MEMORY * memory:
                return config, peak
            batch //= 2
    raise SystemExit(f"depth {depth}: no batch of {smallest} or more should fit in {memory / 2**30:.1f} GiB")


def compiled_step(config, device):
    """(take one step, wait, bytes that the compiler says a step takes, the run)."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding

    from rfjax.training.loss import run_keys
    from rfjax.training.mesh import BATCH, make_mesh
    from rfjax.training.optimizer import make_optimizer
    from rfjax.training.program import lower_train_step
    from rfjax.training.run import make_run
    from rfjax.training.state import init_state

    run = dataclasses.replace(make_run(config), mesh=make_mesh(config.mesh, [device]))
    with jax.set_mesh(run.mesh):
        step = lower_train_step(run).compile()
        state = jax.jit(lambda key: init_state(run.backbone.init, make_optimizer(config), key))(run_keys(0)[0])
    example = run.corpus.examples(np.arange(1, dtype=np.uint64), "train")
    batch = config.train.batch_size
    places = NamedSharding(run.mesh, BATCH)
    held = [state, jax.device_put(jax.tree.map(lambda a: np.repeat(a, batch, axis=0), example), places)]
    memory = step.memory_analysis()
    if os.environ.get("RFJAX_GPU_PROGRAMS"):
        Path(os.environ["RFJAX_GPU_PROGRAMS"], f"depth{config.model.depth}.hlo").write_text(step.as_text())

    def take():
        held[0], _ = step(*held)

    return take, lambda: jax.block_until_ready(held[0]), memory, run


def measure_step(session: Session, depth: int) -> None:
    """The train step of a depth at 256^2: images a second, share of the measured peak, memory beside the plan's."""
    from rfjax.models.attention import choose, platform_of

    device, about = jax_device()
    depth = 2 if session.tiny else depth
    session.note(**about, depth=depth)
    peak = measured_peak(session, device)
    config, expected = planned(session, depth, memory_limit(device))
    train, shape = config.train, session.shape
    attention = choose("auto", platform_of(device), dtype="bfloat16", head_size=shape["head_size"])
    session.note(batch=train.batch_size, remat=train.remat, unroll=train.unroll, attention=attention)
    session.note(planned_peak_bytes=expected)
    began = time.monotonic()
    take, wait, memory, run = compiled_step(config, device)
    compiled_peak = getattr(memory, "peak_memory_in_bytes", None) if memory else None
    session.note(compile_seconds=time.monotonic() - began, compiled_peak_bytes=compiled_peak)
    seconds = session.time(take, wait, most=15)
    rate = train.batch_size / seconds
    session.note(
        params=run.parameter_count,
        flops_per_image=run.flops_per_image,
        step_seconds=seconds,
        images_per_second=rate,
        share_of_measured_peak=rate * run.flops_per_image / peak,
        used_peak_bytes=(device.memory_stats() or {}).get("peak_bytes_in_use"),
    )
    if session.left() > 5 + 4 * seconds:
        session.note(kernels=kernel_seconds(take, wait))


def kernel_seconds(take: Callable, wait: Callable, most: int = 200) -> dict:
    """Where a step's time goes: seconds of all kernels together, and the longest of them with their calls."""
    import tempfile

    import jax
    from jax.profiler import ProfileData

    steps, found = 2, collections.defaultdict(lambda: {"seconds": 0.0, "calls": 0.0})
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                take()
            wait()
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in ProfileData.from_file(str(path)).planes:
                for line in plane.lines if plane.name.startswith("/device:GPU") else ():
                    for event in line.events if line.name.startswith("Stream") else ():
                        row = found[event.name[:120]]
                        row["seconds"] += event.duration_ns / 1e9 / steps
                        row["calls"] += 1 / steps
    rows = sorted(({"kernel": name, **row} for name, row in found.items()), key=lambda row: -row["seconds"])
    return {"seconds": sum(row["seconds"] for row in rows), "longest": rows[:most]}


def measure_attention(session: Session) -> None:
    """cuDNN's attention beside XLA's in float32: outputs and gradients, at numbers of tokens that are no multiples."""
    import jax
    import jax.numpy as jnp

    from rfjax.models.attention import IMPLEMENTATIONS, choose, platform_of

    def both(name, weight, *qkv):
        """(output, gradients) of an implementation."""

        def total(*qkv):
            return jnp.sum(weight * IMPLEMENTATIONS[name].function(*qkv).astype(jnp.float32))

        return IMPLEMENTATIONS[name].function(*qkv), jax.grad(total, (0, 1, 2))(*qkv)

    def error(got, want):
        return float(jnp.linalg.norm((got.astype(jnp.float32) - want).ravel()) / jnp.linalg.norm(want.ravel()))

    device, about = jax_device()
    heads, size = (2, 16) if session.tiny else (18, 64)
    chosen = choose("auto", platform_of(device), dtype="bfloat16", head_size=size)
    session.note(**about, chosen=chosen)
    rows = {}
    for tokens in (10,) if session.tiny else (410, 1178, 4250):
        batch = 2 if session.tiny else max(1, 16384 // tokens)
        keys = jax.random.split(jax.random.key(tokens), 4)
        *exact, weight = (jax.random.normal(key, (batch, tokens, heads, size)) for key in keys)

        with jax.default_matmul_precision("highest"):
            want = jax.jit(functools.partial(both, "xla"))(weight, *exact)
        low = [x.astype(jnp.bfloat16) for x in exact]
        row = {"batch": batch}
        for name in dict.fromkeys((chosen, "xla")):
            program = jax.jit(functools.partial(both, name)).lower(weight, *low).compile()
            got = program(weight, *low)
            errors = jax.tree.leaves(jax.tree.map(error, got, want))
            seconds = session.time(lambda: jax.block_until_ready(program(weight, *low)), lambda: None)  # noqa: B023
            row[name] = {"errors": dict(zip(("output", "dq", "dk", "dv"), errors, strict=True)), "seconds": seconds}
        rows[str(tokens)] = row
        session.note(tokens=rows)


def measure_memory(session: Session) -> None:
    """The peak that a step of depth 12 uses, beside the compiler's and the plan's, with everything computed again."""
    from rfjax.plan.estimate import estimate
    from rfjax.plan.targets import Target
    from rfjax.training.chips import CHIPS

    device, about = jax_device()
    config = make_config(session.shape, 2 if session.tiny else 12, 2 if session.tiny else 128, "full")
    expected = estimate(config, Target("one GPU", CHIPS["h100"], (1, 1))).peak_bytes
    session.note(**about, batch=config.train.batch_size, remat="full", planned_peak_bytes=expected)
    take, wait, memory, _ = compiled_step(config, device)
    session.note(compiled_peak_bytes=getattr(memory, "peak_memory_in_bytes", None) if memory else None)
    take()
    wait()
    session.note(used_peak_bytes=(device.memory_stats() or {}).get("peak_bytes_in_use"))


def measure_sampling(session: Session) -> None:
    """Sampling at 2B (depth 24) and 1024^2: seconds of an image's step with guidance, one image and four at a time."""
    import jax
    import numpy as np

    from rfjax.config import SamplerConfig
    from rfjax.data.batch import Conditions
    from rfjax.evaluation.generate import generator_of
    from rfjax.training.mesh import make_mesh
    from rfjax.training.run import make_run

    device, about = jax_device()
    shape, steps = session.shape, 2 if session.tiny else 4
    config = make_config(shape, 2 if session.tiny else 24, latent=8 if session.tiny else 128)
    run = dataclasses.replace(make_run(config), mesh=make_mesh(config.mesh, [device]))
    session.note(**about, params=run.parameter_count, sampling_steps=steps, guidance_scale=5.0, weights="float32")
    found = {}
    with jax.set_mesh(run.mesh):
        params = jax.jit(run.backbone.init)(jax.random.key(0))
        for images in (1, 4):
            generate = generator_of(run, SamplerConfig(steps=steps, guidance_scale=5.0), images)
            context = np.zeros((images, shape["tokens"], shape["context"]), np.float32)
            conditions = Conditions(context, np.zeros((images, shape["pooled"]), np.float32))
            ids = np.indices((images, 1)).reshape(2, -1).T
            began = time.monotonic()
            generate(params, 0, ids, conditions)
            first = time.monotonic() - began
            seconds = session.time(lambda: generate(params, 0, ids, conditions), lambda: None, most=5)  # noqa: B023
            found[images] = {"first_call_seconds": first, "seconds_an_image_and_step": seconds / images / steps}
            used = (device.memory_stats() or {}).get("peak_bytes_in_use")
            session.note(images_at_once=found, used_peak_bytes=used)
            if session.left() < 2 * first:
                break


def run_script(session: Session, *command: str, output: str) -> None:
    """Runs a command that writes JSON of its own, and takes that into the record."""
    import subprocess

    path = session.out / f"{session.part}.part"
    done = subprocess.run([sys.executable, *command, output, str(path)], timeout=max(5, session.left()))
    session.note(status=done.returncode, result=json.loads(path.read_text()) if path.exists() else None)
    path.unlink(missing_ok=True)


def measure_together(session: Session) -> None:
    """Eight runs that differ in formulation, trained as one program and one after another."""
    members, rounds = ("2", "1") if session.tiny else ("8", "3")
    script = Path(__file__).with_name("together.py")
    steps = "2" if session.tiny else "20"
    command = (str(script), "--members", members, "--steps", steps, "--rounds", rounds, "--compiled-alone", "1")
    run_script(session, *command, output="--out")


def measure_shapes(session: Session) -> None:
    """The largest point of the default study: step, phases and where the host is waited for."""
    steps = "2" if session.tiny else "100"
    command = ("-m", "rfjax", "bench", "--config=shapes", "--point=depth4-seed0", f"--steps={steps}")
    run_script(session, *command, output="--json")


def measure_torch(session: Session, depth: int) -> None:
    import gpu_torch

    gpu_torch.measure_step(session, depth)


STEPS = {"step18": 18, "step24": 24, "step12": 12}
PARTS: dict[str, Callable[[Session], None]] = {
    "attention": measure_attention,
    "step18": functools.partial(measure_step, depth=18),
    "torch18": functools.partial(measure_torch, depth=18),
    "step24": functools.partial(measure_step, depth=24),
    "torch24": functools.partial(measure_torch, depth=24),
    "sampling": measure_sampling,
    "memory": measure_memory,
    "together": measure_together,
    "shapes": measure_shapes,
    "step12": functools.partial(measure_step, depth=12),
    "torch12": functools.partial(measure_torch, depth=12),
}


def summary(out: Path) -> list[str]:
    """The records of a folder as lines: rfjax beside diffusers, and the headline of each other part."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json")) if path.stem in PARTS}
    lines = []
    for name, depth in STEPS.items():
        ours, theirs = records.get(name, {}), records.get(f"torch{depth}", {})
        rate, other = ours.get("images_per_second"), theirs.get("images_per_second")
        share = ours.get("share_of_measured_peak")
        said = f"{rate:,.1f} images/s, {share:.1%} of the measured peak" if rate else "not measured"
        ratio = f"; {rate / other:.2f} times diffusers' {other:,.1f}" if rate and other else ""
        lines.append(f"depth {depth}: {said}{ratio}")
    for name, row in records.get("attention", {}).get("tokens", {}).items():
        chosen = records["attention"]["chosen"]
        worst = max(row[chosen]["errors"].values())
        gain = row["xla"]["seconds"] / row[chosen]["seconds"]
        lines.append(f"attention at {name} tokens: {chosen}, worst error {worst:.1e}, {gain:.2f} times as fast as xla")
    for images, row in records.get("sampling", {}).get("images_at_once", {}).items():
        lines.append(
            f"sampling at 1024^2, {images} at once: {row['seconds_an_image_and_step']:.3f} s an image and step"
        )
    for name in ("memory", *STEPS):
        row = records.get(name, {})
        if row.get("used_peak_bytes"):
            gib = [f"{(row.get(f'{key}_peak_bytes') or 0) / 2**30:.1f}" for key in ("used", "compiled", "planned")]
            lines.append(f"memory of {name}: {gib[0]} GiB used, {gib[1]} by the compiler, {gib[2]} by the plan")
    missing = [name for name in PARTS if name not in records]
    return [*lines, f"parts without a record: {', '.join(missing) or 'none'}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tiny", action="store_true", help="small networks, for trying the script itself")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="of a step's config: train.remat=dots"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the parts, in their order")
    parser.add_argument("--summary", action="store_true", help="print what the records of --out say")
    args = parser.parse_args()
    if args.list:
        return print("\n".join(PARTS))
    if not args.out:
        parser.error("--out DIR is missing; the records go there")
    if args.summary:
        return print("\n".join(summary(args.out)))
    if not args.part:
        parser.error(f"name a part: {', '.join(PARTS)}")
    from rfjax.cli.environment import leave_out_absent_tpu

    leave_out_absent_tpu(os.environ)
    changes = dict(change.split("=", 1) for change in args.set)
    args.out.mkdir(parents=True, exist_ok=True)
    session = Session(args.part, args.out, args.seconds, args.tiny, changes)
    print(f"{args.part} ...", file=sys.stderr, flush=True)
    try:
        PARTS[args.part](session)
    except Exception as error:  # a part that fails says why in its record, and the next begins
        session.note(failed=f"{type(error).__name__}: {str(error)[:500]}")
        raise
    print(f"{args.part}: {time.monotonic() - session.began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
