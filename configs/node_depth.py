"""A study that one node of eight H100s affords: seven depths on 10 million images at 256^2, in an estimated half a day.

It is to be trained on a prepared corpus of 10 million images (32 x 32 latents of 16 channels, 154 text tokens):
--config.data.corpus=prepared --config.data.prepared.path=FOLDER. Random latents of the same shapes stand in for it, so
that plans and dry runs need no corpus. Nothing here has been trained: docs/plan.md says what to expect.

No run sees an image more than four times: 39,000 steps of 1,024 images are 3.99 epochs. Each trunk has three or four
branches, longer ones for larger networks. The two smallest depths have two seeds, so that the noise between trunks can
be estimated.
"""

from ml_collections import ConfigDict

# depth -> (lengths of the branches in steps, microbatches a step, seeds)
TRUNKS = {
    6: ((2400, 4800, 9700, 19500), 1, (0, 1)),
    8: ((2400, 4800, 9700, 19500), 1, (0, 1)),
    10: ((4800, 9700, 19500, 39000), 1, (0,)),
    12: ((4800, 9700, 19500, 39000), 2, (0,)),
    15: ((4800, 9700, 19500, 39000), 2, (0,)),
    18: ((9700, 19500, 39000), 4, (0,)),
    21: ((9700, 19500, 39000), 4, (0,)),
}


def get_config():
    return ConfigDict(
        {
            "name": "node_depth",
            "formulation": "rf/lognorm(0.00,1.00)",
            "model": {
                "depth": 21,
                "patch_size": 2,
                "position_tokens": 16,
                "position_grid": 192,
                "qk_norm": True,  # bfloat16, and rates above the paper's
                # One rate for all depths: that of hidden kernels at the smallest width. It is the paper's 1e-4 at depth
                # 24. Sweep it first (docs/rates.md), then set it to "from:FOLDER".
                "parametrization": "mup",
                "base_width": 384,
            },
            "data": {
                "corpus": "random",
                "image_size": 32,
                "channels": 16,
                "context_tokens": 154,
                "context_size": 4096,
                "pooled_size": 2048,
            },
            "train": {
                "steps": 39_000,
                "batch_size": 1024,
                "learning_rate": 4e-4,
                "schedule": "wsd",
                "decay_fraction": 0.2,
                "decay_shape": "1-sqrt",
                "warmup_steps": 1000,
                "compute_dtype": "bfloat16",
                "unroll": 0,  # 1.39 times as fast as a scan on a GPU, with less memory (docs/speed.md)
                "condition_dropout": 0.464,
                "checkpoint_every": 1000,
            },
            "mesh": {"data": -1, "fsdp": 8},
            "evaluation": {
                "sampler": {"steps": 50, "guidance_scale": 5.0},
                "validation": {"examples": 4096, "batch_size": 1024},
                "geneval": {"prompts_per_task": 0},  # random latents have no prompts
            },
        }
    )


def points(trunks=TRUNKS):
    return {
        f"depth{depth}-seed{seed}": {
            "model.depth": depth,
            "train.accumulate": microbatches,
            "train.steps": lengths[-1],
            "train.branches": lengths,
            "seed": seed,
        }
        for depth, (lengths, microbatches, seeds) in trunks.items()
        for seed in seeds
    }
