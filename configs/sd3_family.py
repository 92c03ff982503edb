"""SD3's family by name at 1024^2, to plan and time what sampling and training take: 0.8B to 8B, and SD3.5's two sizes.

`rfjax plan --sample --config=sd3_family --point=8b --target=rtx4090x1` says what sampling an image takes. Depth and
width are the released ones; text features are the paper's 154 tokens. The sampler is that of the paper: 50 Euler steps,
guidance 5, and the timestep shift 3 for 1024^2.
"""

from ml_collections import ConfigDict

# point -> its fields. The released sizes of SD3.5 have QK-norm; SD3.5 Medium has a second attention in 13 blocks.
FAMILY = {
    "800m": {"model.depth": 18},
    "2b": {"model.depth": 24},  # SD3 Medium
    "4b": {"model.depth": 30},
    "8b": {"model.depth": 38},
    "3.5-medium": {
        "model.depth": 24,
        "model.qk_norm": True,
        "model.dual_attention_blocks": 13,
        "model.position_grid": 384,
    },
    "3.5-large": {"model.depth": 38, "model.qk_norm": True},
}


def get_config():
    return ConfigDict(
        {
            "name": "sd3_family",
            "formulation": "rf/lognorm(0.00,1.00)",
            "timestep_shift": 3.0,
            "model": {"patch_size": 2, "position_tokens": 64, "position_grid": 192},
            "data": {
                "corpus": "random",  # a prepared corpus of 16-channel latents takes its place
                "image_size": 128,
                "channels": 16,
                "context_tokens": 154,
                "context_size": 4096,
                "pooled_size": 2048,
            },
            "train": {
                "steps": 500_000,
                "batch_size": 1024,
                "warmup_steps": 1000,
                "compute_dtype": "bfloat16",
                "remat": "full",
                "ema_every": 100,
            },
            "evaluation": {"sampler": {"steps": 50, "guidance_scale": 5.0}},
        }
    )


def points():
    return FAMILY
