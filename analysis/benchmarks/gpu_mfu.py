"""MFU of the train step on a GPU, beside PyTorch diffusers' SD3Transformer2DModel in the same run.

    python analysis/benchmarks/gpu_mfu.py --out gpu_mfu.json          # depths 12, 18 and 24; an hour or so
    python analysis/benchmarks/gpu_mfu.py --tiny                      # its control flow, on any machine

Needs `pip install 'rfjax[torch]'` with CUDA builds of JAX and PyTorch. 256^2: latents of 32x32x16, 154
text tokens of 4096. Both sides do forward, backward and AdamW; rfjax also clips and averages. The
batch doubles until memory is full, and the fastest counts. Both are held against one peak: square
bfloat16 products, measured by JAX in this run.

Each setting runs in a process of its own, one after the other, so that neither framework holds the
other's memory. PyTorch is compiled and tried with every attention kernel it has, with float32
weights under autocast (what rfjax computes) and with weights in bfloat16 altogether.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

PAPER = dict(
    head_size=64, latent=32, channels=16, tokens=154, context=4096, pooled=2048, grid=192, largest=4096, steps=10
)
TINY = dict(head_size=8, latent=8, channels=4, tokens=6, context=16, pooled=8, grid=8, largest=4, steps=2)
REMAT = ("none", "attention", "full")  # each is tried; less memory buys a larger batch
TORCH_WEIGHTS = ("autocast", "bfloat16")
TORCH_ATTENTION = ("cudnn", "flash", "efficient")


def rfjax_config(depth, batch, remat, shape):
    from rfjax.config import from_dict

    return from_dict(
        {
            "model": {
                "depth": depth,
                "width_per_depth": shape["head_size"],
                "head_size": shape["head_size"],
                "position_grid": shape["grid"],
            },
            "data": {
                "corpus": "random",
                "image_size": shape["latent"],
                "channels": shape["channels"],
                "context_tokens": shape["tokens"],
                "context_size": shape["context"],
                "pooled_size": shape["pooled"],
            },
            "train": {"batch_size": batch, "compute_dtype": "bfloat16", "remat": remat},
        }
    )


def rfjax_step(depth, batch, remat, shape):
    """(a function that takes a step, one that waits, parameters, attention)."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding

    from rfjax.models.attention import choose, platform_of
    from rfjax.training.loss import run_keys
    from rfjax.training.mesh import BATCH, make_mesh
    from rfjax.training.optimizer import make_optimizer
    from rfjax.training.program import lower_train_step
    from rfjax.training.run import make_run
    from rfjax.training.state import init_state

    config = rfjax_config(depth, batch, remat, shape)
    run = replace(make_run(config), mesh=make_mesh(config.mesh, jax.devices()[:1]))
    attention = choose("auto", platform_of(jax.devices()[0]), dtype="bfloat16", head_size=shape["head_size"])
    with jax.set_mesh(run.mesh):
        step = lower_train_step(run).compile()
        state = jax.jit(lambda key: init_state(run.backbone.init, make_optimizer(config.train), key))(run_keys(0)[0])
    example = run.corpus.examples(np.arange(1, dtype=np.uint64), "train")
    places = NamedSharding(run.mesh, BATCH)
    held = [state, jax.device_put(jax.tree.map(lambda a: np.repeat(a, batch, axis=0), example), places)]

    def take():
        held[0], _ = step(*held)

    return take, lambda: jax.block_until_ready(held[0]), run.parameter_count, attention


def torch_step(depth, batch, variant, shape, tiny):
    import torch
    from diffusers import SD3Transformer2DModel
    from torch.nn.attention import SDPBackend, sdpa_kernel

    weights, attention = variant.split("/")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kernels = {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    kernel = kernels[attention] if device == "cuda" else SDPBackend.MATH
    dtype = torch.bfloat16 if weights == "bfloat16" else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = True
    model = SD3Transformer2DModel(
        sample_size=shape["latent"],
        patch_size=2,
        in_channels=shape["channels"],
        num_layers=depth,
        attention_head_dim=shape["head_size"],
        num_attention_heads=depth,
        joint_attention_dim=shape["context"],
        caption_projection_dim=depth * shape["head_size"],
        pooled_projection_dim=shape["pooled"],
        out_channels=shape["channels"],
        pos_embed_max_size=shape["grid"],
    ).to(device, dtype)
    params = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
    compiled = torch.compile(model, backend="eager" if tiny else "inductor")
    z = torch.randn(batch, shape["channels"], shape["latent"], shape["latent"], device=device, dtype=dtype)
    context = torch.randn(batch, shape["tokens"], shape["context"], device=device, dtype=dtype)
    pooled = torch.randn(batch, shape["pooled"], device=device, dtype=dtype)
    t, target = torch.rand(batch, device=device) * 1000, torch.randn_like(z)

    def take():
        with sdpa_kernel(kernel), torch.autocast(device, torch.bfloat16, enabled=weights == "autocast"):
            out = compiled(
                hidden_states=z, encoder_hidden_states=context, pooled_projections=pooled, timestep=t, return_dict=False
            )[0]
            loss = torch.nn.functional.mse_loss(out.float(), target.float())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return take, lambda: torch.cuda.synchronize() if device == "cuda" else None, params, attention


def is_out_of_memory(error: Exception) -> bool:
    text = f"{type(error).__name__} {error}".lower()
    return any(word in text for word in ("resource_exhausted", "out of memory", "outofmemory"))


def search(make, shape) -> dict:
    """Doubles the batch until memory is full or the step no longer gains; the rates of each, and the fastest."""
    tried, batch, params, attention, reason = {}, 1, None, None, "largest batch reached"
    while batch <= shape["largest"]:
        try:
            take, wait, params, attention = make(batch)
            for _ in range(3):
                take()
            wait()
            began = time.perf_counter()
            for _ in range(shape["steps"]):
                take()
            wait()
            seconds = (time.perf_counter() - began) / shape["steps"]
        except Exception as error:  # each framework has its own, and some wrap them
            reason = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {str(error)[:300]}"
            break
        finally:
            take = wait = None
        tried[batch] = {"seconds": seconds, "images_per_second": batch / seconds}
        print(f"  batch {batch}: {batch / seconds:.1f} images/s", file=sys.stderr, flush=True)
        batch *= 2
    best = max(tried, key=lambda b: tried[b]["images_per_second"], default=None)
    return {
        "batches": tried,
        "best_batch": best,
        "params": params,
        "attention": attention,
        "stopped": reason,
        "images_per_second": tried[best]["images_per_second"] if best else None,
    }


def work(args, shape) -> dict:
    if args.worker == "peak":
        import jax

        from rfjax.bench.peak import matmul_flops_per_second

        device = jax.devices()[0]
        return matmul_flops_per_second([device], "bfloat16", (128,) if args.tiny else None) | {
            "device": device.device_kind,
            "jax": jax.__version__,
        }
    if args.worker == "rfjax":
        return search(lambda batch: rfjax_step(args.depth, batch, args.variant, shape), shape)
    import torch

    return search(lambda batch: torch_step(args.depth, batch, args.variant, shape, args.tiny), shape) | {
        "torch": torch.__version__
    }


def child(worker, args, depth=0, variant="") -> dict:
    command = [
        sys.executable,
        __file__,
        f"--worker={worker}",
        f"--depth={depth}",
        f"--variant={variant}",
        *(["--tiny"] if args.tiny else []),
    ]
    print(f"{worker} depth {depth} {variant}", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    if done.returncode:  # a crash of one setting must not lose the others
        return {"images_per_second": None, "stopped": f"exit status {done.returncode}", "params": None}
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=None, help="default: 12 18 24")
    parser.add_argument("--tiny", action="store_true", help="a few tokens and channels, for trying the script itself")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--worker", choices=("peak", "rfjax", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--depth", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = TINY if args.tiny else PAPER
    if args.worker:
        return print(json.dumps(work(args, shape)))

    from rfjax.data.batch import BatchShapes
    from rfjax.files import write_whole
    from rfjax.models.flops import training_flops

    remat, variants = REMAT, [f"{w}/{a}" for w, a in itertools.product(TORCH_WEIGHTS, TORCH_ATTENTION)]
    if args.tiny:
        remat, variants = REMAT[:1], variants[:1]
    peak = child("peak", args)
    rows = []
    for depth in args.depths or ((2,) if args.tiny else (12, 18, 24)):
        ours = {name: child("rfjax", args, depth, name) for name in remat}
        theirs = {name: child("torch", args, depth, name) for name in variants}
        counts = {found["params"] for found in (*ours.values(), *theirs.values())} - {None}
        assert len(counts) == 1, f"the models differ in parameters: {counts}"
        shapes = BatchShapes(
            (shape["latent"], shape["latent"], shape["channels"]),
            (shape["tokens"], shape["context"]),
            shape["pooled"],
            (),
        )
        flops = training_flops(rfjax_config(depth, 1, "none", shape).model, shapes)
        best = {
            side: max((f["images_per_second"] or 0.0) for f in found.values())
            for side, found in (("rfjax", ours), ("torch", theirs))
        }
        row = {
            "depth": depth,
            "params": counts.pop(),
            "flops_per_image": flops,
            "images_per_second": best,
            "share_of_measured_peak": {side: rate * flops / peak["flops_per_second"] for side, rate in best.items()},
            "rfjax_over_torch": best["rfjax"] / best["torch"] if best["torch"] else None,
            "rfjax": ours,
            "torch": theirs,
        }
        rows.append(row)
        shares = ", ".join(
            f"{side} {best[side]:.1f} images/s, {share:.1%} of the peak"
            for side, share in row["share_of_measured_peak"].items()
        )
        print(f"depth {depth}: {shares}; ratio {row['rfjax_over_torch'] or float('nan'):.2f}", flush=True)
    record = {
        "schema": 1,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "shape": shape,
        "tiny": args.tiny,
        "peak": peak,
        "depths": rows,
    }
    if args.out:
        write_whole({args.out: json.dumps(record, indent=1, allow_nan=False) + "\n"})


if __name__ == "__main__":
    main()
