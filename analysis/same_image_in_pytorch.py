"""Samples the same images with `rfjax sample`'s sampler and with diffusers, and shows them side by side.

    pip install torch==2.13.0 diffusers==0.42.1
    python analysis/same_image_in_pytorch.py runs/shapes/depth4-seed0-steps2000 --out docs/pictures/same_image.png

It exports the run, loads it with diffusers, and samples from the same noise with diffusers' flow-match Euler scheduler.
The upper row is by rfjax, the lower by diffusers. The largest difference of a pixel is printed, for pixels in [0, 1].
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from rfjax.config import SamplerConfig
from rfjax.evaluation.generate import make_generator, noise_for, prompt_ids
from rfjax.evaluation.pictures import png_bytes, strip
from rfjax.files import write_whole
from rfjax.interop.exporting import export_run
from rfjax.training.checkpoint import restore_params
from rfjax.training.run import open_run

PROMPTS = [
    "a photo of a red ring",
    "a photo of a blue cross",
    "a photo of two green rings",
    "a photo of a yellow square",
]


def draw_in_pytorch(folder, noise, context, pooled, steps, guidance):
    """Samples by diffusers: returns latents [n, 1, height, width, channels], from noise of that shape."""
    model = SD3Transformer2DModel.from_pretrained(folder)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder)
    scheduler.set_timesteps(steps)
    z = torch.from_numpy(noise[:, 0]).permute(0, 3, 1, 2)
    text, pooled = (torch.cat([torch.from_numpy(x), torch.zeros(x.shape)]) for x in (context, pooled))  # null: zeros
    with torch.no_grad():
        for t in scheduler.timesteps:
            positive, null = model(torch.cat([z, z]), text, pooled, t.expand(2 * len(z)))[0].chunk(2)
            z = scheduler.step(null + guidance * (positive - null), t, z)[0]
    return z.permute(0, 2, 3, 1).numpy()[:, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("same_image.png"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    args = parser.parse_args()

    run = open_run(args.run, {})
    params, facts = restore_params(run.workdir)
    ids = prompt_ids(len(PROMPTS), 2)
    conditions = run.corpus.encode(PROMPTS).rows(ids[:, 0])
    sampler = SamplerConfig(steps=args.steps, guidance_scale=args.guidance, sigmas="diffusers")
    generate = make_generator(
        run.backbone.apply, sampler, run.formulation, run.corpus.shapes.latents, batch_size=len(ids)
    )
    with jax.default_matmul_precision("highest"):
        ours = run.corpus.to_images(generate(params, 0, ids, conditions))
    noise = np.array(noise_for(0, jax.numpy.asarray(ids), run.corpus.shapes.latents))
    with tempfile.TemporaryDirectory() as folder:
        exported = export_run(run.workdir, layout="diffusers", out=Path(folder) / "exported")
        theirs = run.corpus.to_images(draw_in_pytorch(exported, noise, *conditions, args.steps, args.guidance))
    rows = [strip(images, gap=2)[0] for images in (ours, theirs)]
    write_whole(
        {args.out: png_bytes(np.concatenate([np.pad(rows[0], ((0, 8), (0, 0), (0, 0)), constant_values=1.0), rows[1]]))}
    )
    print(f"{args.run} step {facts['step']}: largest difference of a pixel {np.abs(ours - theirs).max():.2e}")
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
