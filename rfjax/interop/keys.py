"""Finds the network among a file's tensors: the network's raw and averaged weights, under any prefix. The file may hold
other models, too.

Tools wrap a network before they save it, so its tensors are named `model.diffusion_model.x`, `_orig_mod.x`, `module.x`
and so on. A prefix is a network's if the file has, under this prefix, a layout's positions and its patch embedding.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rfjax.errors import ConfigError
from rfjax.interop.layouts import DIFFUSERS, LAYOUTS, SD3, SUFFIX, Layout
from rfjax.interop.safetensors_files import READABLE, Tensor

SHOWN = 8  # names in an error message
# What torch.compile, FSDP and activation checkpointing insert anywhere into a name.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGE = re.compile(r"(^|[._])ema([._]|$)")  # model_ema.x, ema.x, ema_model.x
_FLAT = "model_ema."  # prefix of latent-diffusion's averages; their names have no dots after it
_FLAT_PREFIX = re.compile(r"^(_orig_mod|module|diffusion_model|transformer|model)")
_COUNTERS = ("decay", "num_updates", "initted", "step")  # scalars that tools store beside averaged weights
_BLOCKS = 128  # more than any network's depth
# Name prefixes of other parts in the file of a network that has no prefix.
_BESIDE = re.compile(
    r"^(first_stage_model|vae|autoencoder|text_encoders?|text_encoder_\d|text_model|cond_stage_model|conditioner|clip_[lgh]"
    r"|t5xxl|model_ema|ema|ema_model|optimizer|optim|lr_scheduler|denoiser|logvar|model_sampling|epoch|step|global_step)"
    r"(\.|$)"
)
_WORDS = {
    "first_stage_model": "autoencoder",
    "vae": "autoencoder",
    "autoencoder": "autoencoder",
    "text_encoders": "text encoders",
    "text_encoder": "text encoder",
    "cond_stage_model": "text encoder",
    "conditioner": "text encoders",
    "optimizer": "optimizer's state",
    "optim": "optimizer's state",
}


class Kind(NamedTuple):
    """A kind of weights that rfjax cannot import: the pattern of its tensors' names, what it is, and the remedy."""

    pattern: re.Pattern
    what: str
    remedy: str


_NOT_QUANTISED = "get the same weights in bfloat16, float16 or float32"
_LORA = Kind(
    re.compile(
        r"(^|\.)(lora_|lokr_|hada_w|dora_scale|oft_|base_layer\.)|\.lora|lora_(A|B|up|down|magnitude)|^lycoris_|^lora_"
    ),
    "a LoRA's factors",
    "import it beside the run that it adapts, with --base RUN; or merge it into its network first (in diffusers: "
    "load_lora_weights, fuse_lora, save_pretrained), and import that",
)
_CONTROL = Kind(
    re.compile(r"(^|\.)(controlnet|control_model|controlnet_blocks|control_)|zero_conv|(^|\.)input_hint"),
    "a ControlNet's weights",
    "import the network that it steers; rfjax has no ControlNets",
)
_SCALED = Kind(
    re.compile(r"(\.|^)(scale_weight|weight_scale(_2|_inv)?|scaled_fp8|input_scale|scale_input|comfy_quant)$"),
    "float8 weights with scales",
    _NOT_QUANTISED,
)
_BITS = Kind(
    re.compile(r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)$|\.quant_state\."),
    "weights quantised by bitsandbytes (nf4, fp4 or int8)",
    _NOT_QUANTISED,
)
_QUANTS = Kind(
    re.compile(r"\.(qweight|qzeros|g_idx|wscales|wzeros|smooth_factor|_scale|_data|_packed)$"),
    "quantised weights",
    _NOT_QUANTISED,
)
_EMBEDDING = Kind(
    re.compile(r"^(emb_params|string_to_param.*|<.*>|clip_[lgh]|t5xxl)$"),
    "a textual inversion (one word's embedding)",
    "give the network's own checkpoint",
)
_STATE = Kind(
    re.compile(r"(^|\.)(exp_avg(_sq)?|momentum_buffer|max_exp_avg_sq|param_groups)(\.|$)|^(optimizer|optim|state)\."),
    "an optimizer's state",
    "give the file of the network's weights that the tool wrote beside it",
)
_IN_NETWORK = (_LORA, _CONTROL, _SCALED, _BITS, _QUANTS)
_ALONE = (*_IN_NETWORK, _STATE, _EMBEDDING)
_TYPES = {
    "F8_E4M3": "float8",
    "F8_E5M2": "float8",
    "U8": "bytes of quantised weights",
    "I8": "bytes of quantised weights",
}


class Networks(NamedTuple):
    """The network in a file. Its weights are mappings {name in the layout, without prefix: name in the file}."""

    layout: Layout
    raw: Mapping[str, str]
    average: Mapping[str, str] | None  # None: the file has only one set of weights
    same_as: Mapping[str, str]  # a second copy of `raw` under another prefix; its numbers must be the same
    beside: Mapping[str, int]  # first part of the name -> number of tensors left out
    notes: tuple[str, ...]


def find_networks(tensors: Mapping[str, Tensor]) -> Networks:
    """Finds the network among a foreign checkpoint's tensors.

    Raises `ConfigError` if the tensors are in no known layout (the message says what they are, if that is known), if
    the network is quantised, if the file holds a LoRA or a ControlNet, and if it holds more sets of the network's
    weights than two raw ones and one average.
    """
    plain = _without_wrappers(tensors)
    layout, prefixes = _anchors(plain)
    averages = [prefix for prefix in prefixes if _AVERAGE.search(prefix)]
    raws = [prefix for prefix in prefixes if prefix not in averages]
    flat = _flattened(plain, layout)
    if layout is None and flat:
        layout = LAYOUTS[next(iter(flat))]
    if layout is None:
        raise ConfigError(_what_it_is(tensors))
    inside = {prefix: _under(plain, prefix, layout, prefixes) for prefix in prefixes}
    notes = [f"the network's tensors are under {prefix}" for prefix in raws if prefix not in ("", layout.prefix)]
    if len(averages) > 1 or len(raws) > 2:
        raise ConfigError(f"the file holds {len(prefixes)} networks, under {_some(prefixes)}; give a file with one")
    raw = inside[raws[0]] if raws else None
    average = inside[averages[0]] if averages else flat.get(layout.name)
    same = inside[raws[1]] if len(raws) > 1 else {}
    if average is not None and averages == [] and raw is not None:  # LitEma averages no buffers
        average |= {name: raw[name] for name in (layout.positions,) if name in raw and name not in average}
    if raw is None:
        notes.append("the file holds the average (EMA) alone: it was taken as raw weights too")
        raw, average = average, None
    elif average is not None:
        notes.append("the file holds raw weights and their average (EMA): both were taken")
    used = set(raw.values()) | set((average or {}).values()) | set(same.values())
    for name in used:
        _refuse_inside(name, tensors[name])
    for name in set(tensors) - used:
        _refuse_loose(name)
    left = [name for name in tensors if name not in used]
    return Networks(layout, raw, average, same, groups_of(left), tuple(notes))


def describe_groups(groups: Mapping[str, int]) -> str:
    """Describes `groups` (first part of the tensors' names -> number of tensors) in words, such as "48
    first_stage_model (autoencoder), 2 model_ema"."""
    named = [f"{count} {name}" + (f" ({_WORDS[name]})" if name in _WORDS else "") for name, count in groups.items()]
    rest = f" and {len(named) - SHOWN} more groups" if len(named) > SHOWN else ""
    return ", ".join(named[:SHOWN]) + rest


def _without_wrappers(tensors) -> dict[str, str]:
    """Returns {name without wrappers: name in the file}. Raises `ConfigError` if two tensors get the same name."""
    plain: dict[str, str] = {}
    for name in tensors:
        short = _WRAPPERS.sub("", name)
        if short in plain:
            raise ConfigError(f"{plain[short]} and {name} name the same tensor of the network; remove the wrong one")
        plain[short] = name
    return plain


def _anchors(plain) -> tuple[Layout | None, list[str]]:
    """Returns the layout of the tensors' names, and every prefix under which the file has this layout's positions and
    patch embedding; (None, []) if the file has no known layout."""
    for layout in (DIFFUSERS, SD3):
        first, second = layout.positions, f"{layout.outside['patch_embed'].names[0]}.weight"
        ends = [name.removesuffix(first) for name in plain if name == first or name.endswith("." + first)]
        prefixes = [prefix for prefix in ends if prefix + second in plain]
        if prefixes:
            return layout, sorted(prefixes, key=lambda prefix: (prefix != layout.prefix, len(prefix), prefix))
    return None, []


def _under(plain, prefix, layout, prefixes) -> dict[str, str]:
    """Returns {name without `prefix`: name in the file} of the tensors whose longest prefix among `prefixes` is
    `prefix`.

    An average's counters are left out. If `prefix` is empty, tensors of other models, such as an autoencoder's, are
    left out, too.
    """
    longer = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
    names = {
        name.removeprefix(prefix): kept
        for name, kept in plain.items()
        if name.startswith(prefix) and not name.startswith(longer)
    }
    if _AVERAGE.search(prefix):
        return {name: kept for name, kept in names.items() if name not in _COUNTERS}
    if prefix:
        return names
    inner = {layout.positions.split(".")[0], layout.block.split(".")[0]}
    inner |= {row.names[0].split(".")[0] for row in layout.outside.values()}
    other = [name for name in names if _is_wrapped(name, inner)]
    return {name: kept for name, kept in names.items() if not _BESIDE.match(name) and name not in other}


def _is_wrapped(name, inner) -> bool:
    """Whether a name belongs to a second network, whose names have a prefix, as in model.diffusion_model.x. `inner` are
    the first parts of the network's names without a prefix."""
    first, *rest = name.split(".")
    return first not in inner and any(part in inner for part in rest)


@functools.cache
def _flat_names(layout_name: str) -> dict[str, str]:
    """Returns {name without dots: name} of every tensor that a layout can have."""
    layout = LAYOUTS[layout_name]
    modules = [name for row in layout.outside.values() for name in row.names]
    rows = [*layout.blocks.values(), *layout.last.values()]
    inner = dict.fromkeys(name for row in rows for name in row.names)
    modules += [layout.block.format(number) + name for number in range(_BLOCKS) for name in inner]
    names = [layout.positions, *(module + end for module in modules for end in dict.fromkeys(SUFFIX.values()))]
    return {name.replace(".", ""): name for name in names}


def _flattened(plain, layout) -> dict[str, dict[str, str]]:
    """Finds the average that latent-diffusion's LitEma saves. LitEma removes the dots from the tensors' names, as in
    `model_ema.diffusion_modelpos_embed`.

    Returns {name of a layout: {tensor's name in the layout: its name in the file}}, for each layout that has more than
    half of the names. If `layout` is given, only that layout is tried.
    """
    flat = {name[len(_FLAT) :]: kept for name, kept in plain.items() if name.startswith(_FLAT)}
    flat = {name: kept for name, kept in flat.items() if "." not in name and name not in _COUNTERS}
    if not flat:
        return {}
    found = {}
    for each in (layout,) if layout else (SD3, DIFFUSERS):
        known, names = _flat_names(each.name), {}
        for name, kept in flat.items():
            short = name
            while short not in known and _FLAT_PREFIX.match(short):
                short = _FLAT_PREFIX.sub("", short, count=1)
            names[known.get(short, name)] = kept
        if len(set(names) & set(known.values())) > len(names) / 2:
            found[each.name] = names
    return found


def _refuse_inside(name: str, tensor: Tensor) -> None:
    """Raises `ConfigError` if one of the network's tensors shows that the network is quantised, or that it is a LoRA or
    a ControlNet."""
    for kind in _IN_NETWORK:
        if kind.pattern.search(name):
            raise ConfigError(f"{tensor.file} holds {kind.what} ({name}): {kind.remedy}")
    if tensor.dtype in _TYPES:
        what = f"{name} is of type {tensor.dtype} ({_TYPES[tensor.dtype]}), and rfjax reads {', '.join(READABLE)}"
        raise ConfigError(f"{tensor.file}: {what}; {_NOT_QUANTISED}")


def _refuse_loose(name: str) -> None:
    """Raises `ConfigError` if a tensor beside the network is a LoRA's or a ControlNet's, or marks the network's weights
    as scaled float8, because the network alone would compute something else."""
    for kind in (_LORA, _CONTROL):
        if kind.pattern.search(name) and not _BESIDE.match(name):
            raise ConfigError(f"the file holds {kind.what} beside the network ({name}): {kind.remedy}")
    if name == "scaled_fp8":
        raise ConfigError(f"the file holds {_SCALED.what} ({name}): {_SCALED.remedy}")


def _what_it_is(tensors) -> str:
    """Returns the message that refuses tensors of no known layout: what they are, and the remedy."""
    if not tensors:
        return "the file holds no tensors; give a whole checkpoint"
    for kind in _ALONE:
        found = [name for name in tensors if kind.pattern.search(name)]
        if found:
            return f"the file holds {kind.what} ({len(found)} tensors, such as {found[0]}): {kind.remedy}"
    return (
        f"no layout known here has such tensors: {_some(tensors)}; give diffusers' SD3Transformer2DModel, the single "
        "file of SD3 or SD3.5, or an export of `rfjax export`"
    )


def groups_of(names: Iterable[str]) -> dict[str, int]:
    """Counts tensors by the first part of their names."""
    return dict(sorted(Counter(name.split(".")[0] for name in names).items()))


def _some(names: Iterable[str]) -> str:
    names = sorted(name or "no prefix" for name in names)
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
