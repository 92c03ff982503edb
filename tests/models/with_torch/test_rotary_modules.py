"""diffusers' rotary modules of Wan and HunyuanVideo as the referees of ours."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoRotaryPosEmbed
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

from rfjax.config import ModelConfig
from rfjax.models.rotary import make_rotation, rotate

GRID = (5, 8, 13)
CASES = {
    "wan": (WanRotaryPosEmbed(128, (1, 2, 2), 1024), {}),
    "hunyuan": (
        HunyuanVideoRotaryPosEmbed(2, 1, [16, 56, 56], 256.0),
        {"rotary_channels": (16, 56, 56), "rotary_theta": 256.0},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rotated_queries_are_theirs(name):
    """Catches another share of the channels, other frequencies, another pairing, and tokens in another order."""
    module, fields = CASES[name]
    latents = torch.zeros(1, 16, GRID[0], 2 * GRID[1], 2 * GRID[2])
    cos, sin = (part.reshape(-1, 128) for part in module(latents))
    model = ModelConfig(hidden=256, head_size=128, positions="rotary", **fields)
    ours = make_rotation(model, GRID)
    for got, want in ((ours.cos, cos), (ours.sin, sin)):
        np.testing.assert_allclose(got, want[:, ::2].numpy(), rtol=0, atol=2e-6)
    q = np.random.default_rng(0).uniform(-1, 1, (2, len(cos), 2, 128)).astype(np.float32)
    theirs = apply_rotary_emb(torch.from_numpy(q), (cos.float(), sin.float()), sequence_dim=1)
    np.testing.assert_allclose(rotate(jnp.asarray(q), ours), theirs.numpy(), rtol=0, atol=4e-6)
