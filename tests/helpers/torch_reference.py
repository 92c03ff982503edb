"""Our velocity, and those of diffusers and of plain exports, from the same arrays, in float32 on the CPU."""

import importlib.util

import numpy as np
import torch
from diffusers import SD3Transformer2DModel
from diffusers.utils import logging

logging.set_verbosity_error()
torch.set_num_threads(2)


def their_velocity(model, arrays):
    z, t, context, pooled = map(torch.from_numpy, arrays)
    out = model(
        hidden_states=z.permute(0, 3, 1, 2), encoder_hidden_states=context, pooled_projections=pooled, timestep=1000 * t
    )[0]
    return out.permute(0, 2, 3, 1)


def random_module(seed=0, **config):
    """A SD3Transformer2DModel of `conftest.MODEL`'s sizes whose modulations are not zero."""
    torch.manual_seed(seed)
    settings = dict(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=128,
        pooled_projection_dim=20,
        pos_embed_max_size=12,
    )
    model = SD3Transformer2DModel(**(settings | config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim > 1:  # gains that leave the velocity at unit scale
                gain = 0.8 if name.startswith("proj_out") else 1.0
                parameter.copy_(gain / np.sqrt(parameter[0].numel()) * noise)
            else:
                parameter.copy_(1.0 + 0.2 * noise if "attn" in name and "norm" in name else 0.1 * noise)
    return model


def load_plain(folder):
    """The network of a plain export, by the PyTorch module that stands beside its weights."""
    spec = importlib.util.spec_from_file_location("exported_mmdit", folder / "mmdit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(folder)
