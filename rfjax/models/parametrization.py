"""Parametrisations: how each parameter's initial value, rate, decay and epsilon move with width and depth.

Under `standard` all parameters have one learning rate, and the best rate falls with width. Under `mup` (Yang et al.
2022, arXiv 2203.03466, table 3; for diffusion transformers Zheng et al. 2025, arXiv 2505.15270) and `completep` (Dey et
al. 2025, arXiv 2505.01618, table 1) the best rate does not depend on width, so it is found once, on the smallest
network.

There are two tables. `LEAVES` gives each parameter its kind, by the end of its path; `KINDS` gives each kind its powers
of

    v = width / balanced_width  and, under completep,  L = depth / base_depth.

At the balanced width (and the base depth) all powers are 1, and the network is the standard one. The base width sets
the unit of the rate alone: at the base width, hidden kernels have the rate `train.learning_rate` under Adam, and
(base width / balanced width)^(1/2) times this rate under Muon.

A forward multiplier m of a leaf W is folded into the leaf, as W' = m W. Under Adam, W' then stays equal to m W if W'
has m times the initial value, m times the rate and 1/m times the epsilon. (Only clipping by the global norm differs: it
sees the gradient of W'.) So networks, exports and FLOPs are the same under every parametrisation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax

from rfjax.config import ModelConfig
from rfjax.errors import ConfigError
from rfjax.models.positions import POSITIONS
from rfjax.models.sharding import path_name

# name -> whether (width, depth) scale the leaves
PARAMETRIZATIONS: dict[str, tuple[bool, bool]] = {
    "standard": (False, False),
    "mup": (True, False),
    "completep": (True, True),
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The factors of one kind of leaf, as exponents of the relative width v, or of the relative depth L in
    `forward_depth`."""

    rate: float = 0.0  # of Adam's rate, before the forward multiplier
    muon_rate: float = 0.0  # of Muon's rate, for updates scaled to the root mean square of Adam's (optimizer.py)
    decay: float = 0.0  # of the weight decay; `rate` + `decay` = 0, so rate times decay is the same at every width
    epsilon: float = -1.0  # of Adam's epsilon: gradients shrink with width
    forward: float = 0.0  # of the forward multiplier
    forward_depth: float = 0.0  # of the forward multiplier, as a power of L: for maps whose output joins the stream


# Muon's update is orthogonal. Scaled to the root mean square of Adam's update, its largest singular value grows as
# v^(1/2). It must not grow (Yang, Simon and Bernstein 2023, arXiv 2310.17813), so Muon's rate falls as v^(-1/2).
KINDS: dict[str, Kind] = {
    "input": Kind(),
    "hidden": Kind(rate=-1.0, muon_rate=-0.5, decay=1.0),
    "branch": Kind(rate=-1.0, muon_rate=-0.5, decay=1.0, forward_depth=-1.0),  # hidden, and the last of a branch
    "output": Kind(forward=-1.0),
    "vector": Kind(),
    "branch_vector": Kind(forward_depth=-1.0),
}


# Factors on a leaf's standard initial value, from the leaf's shape and v. After multiplication, the standard deviation
# of a hidden kernel falls as v^(-1/2), and that of every other leaf does not depend on the width.
def _as_wanted(shape, v):
    """Returns 1: the standard deviation of the initial value already moves with the width as it should."""
    return 1.0


def _xavier_input(shape, v):
    """Returns the factor on the initial value of the kernel of a network input. The factor replaces the width in
    Glorot's variance, 2 / (inputs + outputs), by the balanced width."""
    source, target = shape[-2:]
    return math.sqrt((source + target) / (source + target / v))


def _fixed_hidden(shape, v):
    """Returns v^(-1/2), for hidden kernels whose standard initial value is normal(0.02) at every width."""
    return v**-0.5


def _falling_table(shape, v):
    """Returns v^(1/2), for tables whose standard initial value, normal(1 / sqrt(width)), falls as v^(-1/2)."""
    return v**0.5


# (end of the parameter's path, its kind, what its standard initial value is multiplied by). The first match counts.
Leaf = tuple[str, str, Callable]
LEAVES: tuple[Leaf, ...] = (
    (r"/(patch_embed|context_embed|stem)/kernel$", "input", _xavier_input),
    (r"/pooled_embed/in/kernel$", "input", _xavier_input),
    (r"/((time|context)_embed/in|class_embed)/kernel$", "input", _as_wanted),  # normal(0.02)
    (r"/(time|context)_embed/out/kernel$", "hidden", _fixed_hidden),  # normal(0.02)
    (r"^/modulation/kernel$", "hidden", _fixed_hidden),  # crossdit's, of all blocks: normal(0.02)
    (r"/modulation_table$", "vector", _falling_table),  # normal(1 / sqrt(width))
    (r"/(pooled_embed/out|modulation|qkv2?|cross_q|cross_kv|mlp_in)/kernel$", "hidden", _as_wanted),
    (r"/(conv_in|conv_out|(down|up)\d+_linear)/kernel$", "hidden", _as_wanted),
    (r"/(proj2?|cross_proj|mlp_out)/kernel$", "branch", _as_wanted),
    (r"/(proj2?|cross_proj|mlp_out)/bias$", "branch_vector", _as_wanted),
    (r"/(final/linear|head)/kernel$", "output", _as_wanted),  # zero
    (rf"/(bias|scale|{POSITIONS})$", "vector", _as_wanted),
)
IN_BLOCKS = re.compile(r"^/((dual_)?blocks|last_block)/")


class Factors(NamedTuple):
    """The factors on one leaf: on its standard initial value, on its learning rate under Adam and under Muon, on the
    product of learning rate and weight decay, and on Adam's epsilon."""

    initial: float
    rate: float
    muon_rate: float
    decay: float
    epsilon: float


def leaf_rule(path: str, use: str) -> Leaf:
    """Returns the row of `LEAVES` for a parameter's path. Raises `ConfigError` for a parameter without a row; the
    message begins with `use`, the setting that needs the row."""
    for row in LEAVES:
        if re.search(row[0], "/" + path):
            return row
    raise ConfigError(
        f"{use} has no rule for the parameter {path}; give it a row of LEAVES in rfjax/models/parametrization.py, "
        "or use config.model.parametrization=standard and config.train.optimizer=adamw"
    )


def leaf_factors(model: ModelConfig, path: str, shape: tuple[int, ...]) -> Factors:
    """The factors of one parameter; all 1 under `standard`. Raises `ConfigError` for a parameter without a rule."""
    by_width, by_depth = PARAMETRIZATIONS[model.parametrization]
    if not by_width:
        return Factors(1.0, 1.0, 1.0, 1.0, 1.0)
    _, name, initial = leaf_rule(path, f"config.model.parametrization={model.parametrization}")
    kind, v = KINDS[name], model.width / model.balanced_width
    depth = model.depth / model.base_depth if by_depth else 1.0
    unit = model.base_width / model.balanced_width  # the rate of a hidden kernel at the base width is then 1
    forward = v**kind.forward * depth**kind.forward_depth
    epsilon = v**kind.epsilon / (depth if IN_BLOCKS.search("/" + path) else 1.0)
    return Factors(
        initial=initial(shape, v) * depth**kind.forward_depth,
        rate=unit * v**kind.rate * forward,
        muon_rate=unit * v**kind.muon_rate * forward,
        decay=unit * v ** (kind.rate + kind.decay),
        epsilon=epsilon / forward,
    )


def factors(model: ModelConfig, params):
    """A tree of `Factors` for a tree of parameters or shapes."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf_factors(model, path_name(path), leaf.shape), params)


def scaled_init(model: ModelConfig, init: Callable) -> Callable:
    """Returns a function that calls `init` and multiplies each leaf by its factor `initial`. Returns `init` itself
    under `standard`."""
    if model.parametrization == "standard":
        return init

    def scaled(key):
        params = init(key)
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * leaf_factors(model, path_name(path), leaf.shape).initial, params
        )

    return scaled
