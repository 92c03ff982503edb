"""Random sets of tensors' names, as tools write them: the network is found whole, or the file is refused by name.

In each, the tensors that came in are those of the network, of its average or copy, and those that are named as left
out.
"""

import random
from pathlib import Path

import pytest

from rfjax.errors import ConfigError
from rfjax.interop.keys import find_networks
from rfjax.interop.safetensors_files import Tensor

SD3 = ("pos_embed", "x_embedder.proj.weight", "joint_blocks.0.x_block.attn.qkv.weight", "final_layer.linear.bias")
DIFFUSERS = ("pos_embed.pos_embed", "pos_embed.proj.weight", "transformer_blocks.0.attn.to_q.weight", "proj_out.bias")
LAYOUTS = {"sd3": SD3, "diffusers": DIFFUSERS}
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "model.", "transformer.", "module.", "net.", "unet.")
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
AVERAGES = ("model_ema.", "ema.", "ema_model.", "model.ema.")
BESIDE = (
    "first_stage_model.decoder.conv_in.weight",
    "vae.encoder.conv.weight",
    "text_encoders.clip_l.transformer.text_model.x.weight",
    "conditioner.embedders.0.x",
    "model_ema.decay",
    "optimizer.state.0.x",
    "global_step",
)
REFUSED = {
    "transformer_blocks.0.attn.to_q.lora_A.weight": "LoRA",
    "lora_unet_joint_blocks_0_x_block.lora_up.weight": "LoRA",
    "controlnet_blocks.0.weight": "ControlNet",
}


def wrapped(rng, name):
    """A name with a wrapper put into it, as torch.compile and FSDP do."""
    parts = name.split(".")
    place = rng.randrange(len(parts))
    return ".".join([*parts[:place], rng.choice(WRAPPERS).rstrip("."), *parts[place:]])


def check(seed):
    rng = random.Random(seed)
    layout = rng.choice(list(LAYOUTS))
    prefix = rng.choice(PREFIXES)
    names = {name: prefix + name for name in LAYOUTS[layout]}
    if rng.random() < 0.3:
        names = {name: wrapped(rng, given) for name, given in names.items()}
    average = {}
    if rng.random() < 0.4:
        # An average is under a name of its own; without a prefix for the network itself it stands beside it.
        average = {name: rng.choice(AVERAGES[:1]) + name for name in LAYOUTS[layout]}
    beside = rng.sample(BESIDE, rng.randrange(len(BESIDE)))
    refused = rng.choice(list(REFUSED)) if rng.random() < 0.15 else None
    fp8 = refused is None and rng.random() < 0.1
    everything = [*names.values(), *average.values(), *beside, *([refused] if refused else [])]
    rng.shuffle(everything)
    tensors = {name: Tensor(Path("x.safetensors"), (1,), "F32") for name in everything}
    if fp8:
        given = rng.choice(list(names.values()))
        tensors[given] = Tensor(Path("x.safetensors"), (1,), "F8_E4M3")
    if refused or fp8:
        with pytest.raises(ConfigError, match=REFUSED[refused] if refused else "float8") as told:
            find_networks(tensors)
        assert "\n" not in str(told.value)
        return
    found = find_networks(tensors)
    assert found.layout.name == layout and dict(found.raw) == names
    assert dict(found.average or {}) == average
    used = {*found.raw.values(), *(found.average or {}).values(), *found.same_as.values()}
    assert len(used) + sum(found.beside.values()) == len(tensors), "a tensor is neither used nor named"


@pytest.mark.parametrize("seed", range(40))
def test_every_tensor_is_of_the_network_or_named(seed):
    check(seed)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(40, 340))
def test_every_tensor_is_of_the_network_or_named_in_hundreds(seed):
    check(seed)
