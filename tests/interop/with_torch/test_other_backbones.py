"""`dit_class` against diffusers' DiTTransformer2DModel, and `crossdit` against its PixArtTransformer2DModel.

Diffusers' DiT embeds t as the original does not: the frequencies end at 1/10000 (a shift of 1), and every
block has embedders of its own. Its first difference is removed by asking for the original's shift, the second
by giving all blocks one embedder's weights; the rest of the network is compared as it is. The
positions, too: a grid of the image's own size is our formula's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.utils import logging

from rfjax.config import ModelConfig
from rfjax.data.batch import BatchShapes
from rfjax.models.backbone import make_backbone

logging.set_verbosity_error()
torch.set_num_threads(2)

SHAPES = BatchShapes(latents=(8, 8, 4), context=(6, 24), pooled=10, encoders=())
SIDE, HEADS, HEAD, DEPTH, WIDTH = 4, 3, 16, 3, 48
SIZES = dict(
    num_attention_heads=HEADS,
    attention_head_dim=HEAD,
    in_channels=4,
    out_channels=4,
    num_layers=DEPTH,
    sample_size=8,
    patch_size=2,
    norm_eps=1e-6,
)


def ours(backbone):
    model = ModelConfig(
        backbone=backbone,
        depth=DEPTH,
        hidden=WIDTH,
        head_size=HEAD,
        position_grid=SIDE,
        position_tokens=SIDE,
        position_span=float(SIDE),
    )
    return make_backbone(model, SHAPES)


def randomised(model, seed=0):
    """Every parameter drawn, gates and biases too, with gains that keep the output at unit scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim > 1 and "table" not in name else 1
            parameter.copy_(noise / np.sqrt(fan_in) if fan_in > 1 else 0.3 * noise)
    return model.eval()


def array(parameter):
    return jnp.asarray(parameter.detach().numpy())


def linear(module, source=None, target=None):
    """Our kernel and bias of a torch Linear (or of several, stacked after the inputs)."""
    modules = module if isinstance(module, list) else [module]
    kernels = [
        array(m.weight).T.reshape(*(source or (m.in_features,)), *(target or (m.out_features,))) for m in modules
    ]
    biases = [array(m.bias).reshape(*(target or (m.out_features,))) for m in modules]
    if isinstance(module, list):
        return {"kernel": jnp.stack(kernels, axis=1), "bias": jnp.stack(biases)}
    return {"kernel": kernels[0], "bias": biases[0]}


def patches(convolution):
    kernel = (
        array(convolution.weight).transpose(2, 3, 1, 0).reshape(-1, WIDTH)
    )  # (row, column, channel), channel fastest
    return {"kernel": kernel, "bias": array(convolution.bias)}


def embedder(module):
    return {"in": linear(module.linear_1), "out": linear(module.linear_2)}


def attention(module):
    heads = (HEADS, HEAD)
    return {
        "qkv": linear([module.to_q, module.to_k, module.to_v], target=heads),
        "proj": linear(module.to_out[0], source=heads),
    }


def feed_forward(module):
    return {"mlp_in": linear(module.net[0].proj), "mlp_out": linear(module.net[2])}


def stack(blocks):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def dit_params(model):
    def block(b):
        modulation = linear(b.norm1.linear, target=(6, WIDTH))
        return {"tokens": {"modulation": modulation, **attention(b.attn1), **feed_forward(b.ff)}}

    shared = model.transformer_blocks[0].norm1.emb
    table = array(shared.class_embedder.embedding_table.weight)  # the null class is the last row
    return {
        "patch_embed": patches(model.pos_embed.proj),
        "time_embed": embedder(shared.timestep_embedder),
        "class_embed": {"kernel": table[:-1] - table[-1], "bias": table[-1]},
        "blocks": stack([block(b) for b in model.transformer_blocks]),
        "final": {"modulation": linear(model.proj_out_1, target=(2, WIDTH)), "linear": linear(model.proj_out_2)},
    }


def pixart_params(model):
    def block(b):
        heads = (HEADS, HEAD)
        return {
            "modulation_table": array(b.scale_shift_table),
            **attention(b.attn1),
            "cross_q": linear(b.attn2.to_q, target=heads),
            "cross_kv": linear([b.attn2.to_k, b.attn2.to_v], target=heads),
            "cross_proj": linear(b.attn2.to_out[0], source=heads),
            **feed_forward(b.ff),
        }

    nothing = lambda rows: {"kernel": jnp.zeros((rows, WIDTH)), "bias": jnp.zeros(WIDTH)}  # noqa: E731
    return {
        "patch_embed": patches(model.pos_embed.proj),
        "time_embed": embedder(model.adaln_single.emb.timestep_embedder),
        "pooled_embed": {"in": nothing(SHAPES.pooled), "out": nothing(WIDTH)},  # the pooled text says nothing
        "context_embed": embedder(model.caption_projection),
        "modulation": linear(model.adaln_single.linear, target=(6, WIDTH)),
        "blocks": stack([block(b) for b in model.transformer_blocks]),
        "final": {"modulation_table": array(model.scale_shift_table), "linear": linear(model.proj_out)},
    }


def batch():
    rng = np.random.default_rng(1)
    z = rng.standard_normal((4, *SHAPES.latents)).astype(np.float32)
    context = rng.standard_normal((4, *SHAPES.context)).astype(np.float32)
    return z, np.array([0.0, 0.25, 0.5, 0.999], np.float32), context, np.array([0, 3, 9, 10])


def agree(backbone, params, pooled, theirs):
    z, t, context, _ = batch()
    wanted = jax.eval_shape(backbone.init, jax.random.key(0))
    assert jax.tree.map(lambda a: a.shape, params) == jax.tree.map(lambda a: a.shape, wanted)
    with jax.default_matmul_precision("highest"), torch.no_grad():
        got = np.asarray(jax.jit(backbone.apply)(params, z, t, context, jnp.asarray(pooled)))
        image = torch.from_numpy(z[:, 0]).permute(0, 3, 1, 2)
        want = theirs(image, 1000 * torch.from_numpy(t)).permute(0, 2, 3, 1).numpy()[:, None]
    scale = want.std()
    assert 0.3 < scale < 3
    assert np.abs(got - want).max() <= 2e-5 * max(1.0, scale)
    return np.abs(got - want).max() / scale


@pytest.fixture
def original_frequencies(monkeypatch):
    """Diffusers' DiT with the original's timestep frequencies."""
    from diffusers.models import embeddings

    def unshifted(timesteps, dim, **settings):
        assert settings.pop("downscale_freq_shift") == 1  # or the test no longer takes a difference away
        return get_timestep_embedding(timesteps, dim, downscale_freq_shift=0, **settings)

    monkeypatch.setattr(embeddings, "get_timestep_embedding", unshifted)


def test_dit_class_is_diffusers_dit(original_frequencies):
    """All classes and the null class, t from 0 to 1. Catches a chunk in another order, another approximation of
    GELU, a patch that is transposed, and a final layer whose shift and scale are exchanged."""
    model = randomised(DiTTransformer2DModel(num_embeds_ada_norm=10, **SIZES))
    shared = model.transformer_blocks[0].norm1.emb
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(shared.state_dict())
    labels = batch()[3]
    pooled = np.eye(11, 10, dtype=np.float32)[labels]  # the null class is zeros
    agree(
        ours("dit_class"),
        dit_params(model),
        pooled,
        lambda z, t: model(z, timestep=t, class_labels=torch.from_numpy(labels)).sample,
    )


def test_crossdit_is_diffusers_pixart():
    """As above, and attention to the text; with the pooled text's embedder zero, whatever the pooled text."""
    model = randomised(
        PixArtTransformer2DModel(
            cross_attention_dim=WIDTH,
            caption_channels=SHAPES.context[1],
            interpolation_scale=1,
            use_additional_conditions=False,
            **SIZES,
        )
    )
    context = torch.from_numpy(batch()[2])
    agree(
        ours("crossdit"),
        pixart_params(model),
        np.ones((4, SHAPES.pooled), np.float32),
        lambda z, t: model(z, encoder_hidden_states=context, timestep=t).sample,
    )
