"""Compares the speed of a training step on the CPU with PyTorch diffusers' SD3Transformer2DModel.

    python analysis/benchmarks/train_step_cpu.py [--forward] [--rounds 6] [--out FILE.json]

With --forward only the forward pass is timed, which is what sampling an image without guidance computes in each step.
It needs torch and diffusers beside rfjax (`pip install torch==2.13.0 diffusers==0.42.1`). Both networks have the same
shapes and number of parameters, and run forward and backward in float32 on two threads. Rounds of both alternate in one
run, and the result is the ratio of the medians. Run it on a quiet machine: under load PyTorch's OpenMP slows down more
than XLA, and the ratio means nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

THREADS = 2
# 33 million parameters: 6 layers of 6 heads of 64, 256 image and 154 text tokens.
SHAPE = dict(depth=6, heads=6, head_size=64, latent=32, channels=16, tokens=154, context=4096, pooled=2048, batch=4)


def torch_worker(forward_only):
    import torch
    from diffusers import SD3Transformer2DModel

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    s = SHAPE
    model = SD3Transformer2DModel(
        sample_size=s["latent"],
        patch_size=2,
        in_channels=s["channels"],
        num_layers=s["depth"],
        attention_head_dim=s["head_size"],
        num_attention_heads=s["heads"],
        joint_attention_dim=s["context"],
        caption_projection_dim=s["heads"] * s["head_size"],
        pooled_projection_dim=s["pooled"],
        out_channels=s["channels"],
        pos_embed_max_size=64,
        qk_norm="rms_norm",
    )
    z = torch.randn(s["batch"], s["channels"], s["latent"], s["latent"])
    context, pooled = torch.randn(s["batch"], s["tokens"], s["context"]), torch.randn(s["batch"], s["pooled"])
    t, target = torch.rand(s["batch"]) * 1000, torch.randn_like(z)

    @torch.inference_mode()
    def forward():
        out = model(hidden_states=z, encoder_hidden_states=context, pooled_projections=pooled, timestep=t)[0]
        return torch.nn.functional.mse_loss(out, target).item()

    def step():
        model.zero_grad(set_to_none=True)
        out = model(hidden_states=z, encoder_hidden_states=context, pooled_projections=pooled, timestep=t)[0]
        loss = torch.nn.functional.mse_loss(out, target)
        loss.backward()
        return loss.item()

    return forward if forward_only else step, sum(p.numel() for p in model.parameters())


def jax_worker(forward_only):
    import jax
    import jax.numpy as jnp

    from rfjax.config import ModelConfig
    from rfjax.data.batch import BatchShapes
    from rfjax.models.backbone import make_backbone, parameter_count

    s = SHAPE
    shapes = BatchShapes((s["latent"], s["latent"], s["channels"]), (s["tokens"], s["context"]), s["pooled"], ())
    config = ModelConfig(
        depth=s["depth"], hidden=s["heads"] * s["head_size"], head_size=s["head_size"], qk_norm=True, position_grid=64
    )
    backbone = make_backbone(config, shapes)
    keys = jax.random.split(jax.random.key(0), 6)
    params = backbone.init(keys[0])
    # adaLN-zero would let the compiler see nothing, but be fair: no zeros in the modulation
    params = jax.tree.map(lambda p: p + 0.02, params)
    z, target = jax.random.normal(keys[1], (2, s["batch"], *shapes.latents))
    context = jax.random.normal(keys[2], (s["batch"], *shapes.context))
    pooled, t = jax.random.normal(keys[3], (s["batch"], s["pooled"])), jax.random.uniform(keys[4], (s["batch"],))

    def loss_of(params):
        return jnp.mean(jnp.square(backbone.apply(params, z, t, context, pooled) - target))

    forward, gradient = jax.jit(loss_of), jax.jit(jax.value_and_grad(loss_of))

    def step():
        loss, gradients = gradient(params)
        jax.block_until_ready(gradients)
        return float(loss)

    return (lambda: float(forward(params))) if forward_only else step, parameter_count(backbone)


WORKERS = {"torch": torch_worker, "jax": jax_worker}


def work(name, steps, forward_only):
    """A worker process: warms up, then does `steps` timed steps for every line it is sent."""
    step, params = WORKERS[name](forward_only)
    loss = [step() for _ in range(2)][-1]
    print(json.dumps({"params": params, "loss": loss}), flush=True)
    for _ in sys.stdin:
        times = []
        for _ in range(steps):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
        print(json.dumps(times), flush=True)


# name -> (worker, environment): with huge pages, as the rfjax command runs, and without
VARIANTS = {
    "torch": ("torch", {}),
    "torch, huge pages": ("torch", {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
    "rfjax": ("jax", {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
    "rfjax, default allocator": ("jax", {}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=5, help="steps a round")
    parser.add_argument("--forward", action="store_true", help="time the forward pass alone")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker, args.steps, args.forward)

    started = {}
    for name, (worker, environment) in VARIANTS.items():
        command = [sys.executable, __file__, "--worker", worker, "--steps", str(args.steps)]
        command += ["--forward"] if args.forward else []
        clean = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
        env = {**clean, "OMP_NUM_THREADS": str(THREADS), "JAX_PLATFORMS": "cpu", **environment}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        started[name] = process, json.loads(process.stdout.readline())
        print(f"{name}: {started[name][1]['params']:,} parameters", flush=True)
    counts = {facts["params"] for _, facts in started.values()}
    assert len(counts) == 1, f"the models differ in parameters: {counts}"

    rounds = {name: [] for name in VARIANTS}
    for number in range(args.rounds):
        for name, (process, _) in started.items():
            print("go", file=process.stdin, flush=True)
            times = json.loads(process.stdout.readline())
            rounds[name].append(times)
        print(
            f"round {number + 1}: " + ", ".join(f"{n} {statistics.median(r[-1]):.3f} s" for n, r in rounds.items()),
            flush=True,
        )
    for process, _ in started.values():
        process.stdin.close()
        process.wait()

    medians = {name: statistics.median([statistics.median(r) for r in times]) for name, times in rounds.items()}
    base = min(medians["torch"], medians["torch, huge pages"])
    record = {
        "shape": SHAPE,
        "what": "forward" if args.forward else "forward and backward",
        "threads": THREADS,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "seconds_per_step": medians,
        "rounds": rounds,
        "ratio_to_the_faster_torch": {name: value / base for name, value in medians.items()},
        "load_average_at_end": os.getloadavg(),
    }
    print("\nmedian seconds a step, and the ratio to the faster PyTorch:")
    for name, value in medians.items():
        print(f"  {name:<28}{value:.3f}  {value / base:.2f}")
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
