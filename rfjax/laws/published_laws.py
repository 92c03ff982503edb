"""The compute-optimal laws that papers have published, as data: size, tokens and loss as powers of compute.

    N*(C) = g C^a     D*(C) = h C^b     L(C) = k C^-c + E

C, N and D are counted as each paper counts them. `COUNTS` lists the ways to count C, and `PublishedLaw.tokens_are` says
what a paper's tokens are. Two laws that count C differently give different N* at the same C, so their values cannot be
compared. Exponents suffer less: two counts of C that differ by a constant factor give the same exponents.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from rfjax.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Count:
    """A way to count training FLOPs. `six_nd` is whether C is proportional to N D, so that D can be computed from C and
    N."""

    words: str
    six_nd: bool
    in_flops: bool = True  # False where the unit of C is not known in FLOPs


COUNTS = MappingProxyType(
    {
        "6ND": Count(words="C = 6 N D, D with the text's tokens", six_nd=True),
        "own FLOPs": Count(words="the paper's own FLOPs; 6 N* D* of image tokens is 0.68 C", six_nd=False),
        "PFLOP": Count(words="given in PFLOP; 6 N* D* of its laws is 1.01 to 1.08 C, so close to 6 N D", six_nd=True),
        "own unit": Count(words="a unit of its own, so the slope alone compares", six_nd=True, in_flops=False),
        "second-hand": Count(words="known from other papers alone, which give slopes", six_nd=True, in_flops=False),
    }
)


@dataclass(frozen=True, kw_only=True)
class Power:
    """A power law of compute: coefficient * (C / unit)^exponent * scale, with C in FLOPs."""

    exponent: float
    coefficient: float | None = None  # None where the paper gives none
    unit: float = 1.0  # FLOPs in the paper's unit of C
    scale: float = 1.0  # parameters or tokens in the paper's unit of N or D

    def at(self, flops: float | Float[np.ndarray, " n"]) -> float | Float[np.ndarray, " n"]:
        """Returns the quantity (size, tokens or loss) that this power law gives for a compute budget in FLOPs. Raises
        `ConfigError` if the paper gives the exponent but no coefficient."""
        if self.coefficient is None:
            raise ConfigError("of this published law the slope alone is known; it has no value for a compute budget")
        with np.errstate(over="ignore"):
            return self.scale * self.coefficient * (np.asarray(flops, float) / self.unit) ** self.exponent


@dataclass(frozen=True, kw_only=True)
class PublishedLaw:
    """A published law of the compute-optimal runs. A field is None if the paper does not give its value."""

    name: str
    arxiv: str
    setting: str
    count: str  # a key of COUNTS
    tokens_are: str = ""  # what the paper's D counts
    params: Power
    tokens: Power | None = None
    loss: Power | None = None  # its exponent is negative
    offset: float | None = None  # E of the loss
    metrics: tuple[tuple[str, Power], ...] = ()  # the paper's laws of other metrics, as (name, power of compute)
    flops: tuple[float, float] | None = None  # the least and most FLOPs of the runs that the law was fitted to
    sizes: tuple[float, float] | None = None  # the least and most parameters of these runs
    note: str = ""

    @property
    def source(self) -> str:
        return f"{self.name}, arXiv {self.arxiv}"

    @property
    def range(self) -> tuple[float, float] | None:
        """The range of FLOPs in which the law was found: the range of its runs, or else the FLOPs at which N* is
        within the sizes that were trained. None if neither range is known in FLOPs."""
        if self.flops is not None or self.sizes is None or self.params.coefficient is None:
            return self.flops
        if not COUNTS[self.count].in_flops:
            return None
        power = self.params
        ends = ((size / power.scale / power.coefficient) ** (1 / power.exponent) * power.unit for size in self.sizes)
        return tuple(ends)

    def tokens_per_param(self, flops: float) -> float | None:
        """Returns D* / N* for a compute budget in FLOPs; None if the law gives no value of D* or of N*."""
        known = self.tokens is not None and self.tokens.coefficient is not None and self.params.coefficient is not None
        return float(self.tokens.at(flops) / self.params.at(flops)) if known else None


_PFLOP, _BILLION = 1e15, 1e9
LIANG = PublishedLaw(
    name="Liang et al., in-context",
    arxiv="2410.08184",
    setting="rectified flow, DiT with the text in the sequence, 256 px, 108 M images, training loss of the EMA weights",
    count="6ND",
    tokens_are="image and text tokens",
    params=Power(coefficient=0.0009, exponent=0.5681),
    tokens=Power(coefficient=186.8535, exponent=0.4319),
    loss=Power(coefficient=2.3943, exponent=-0.0273),
    offset=0.0,
    metrics=(("FID (CLIP-L features)", Power(coefficient=2.2566e6, exponent=-0.234)),),
    flops=(1e17, 6e18),
    sizes=(1e6, 1e9),
    note="a model of 958.3 M at 1.5e21 FLOP met the law's loss",
)
LIANG_CROSS = PublishedLaw(
    name="Liang et al., cross-attention",
    arxiv="2410.08184",
    setting="as the in-context law, with the text in cross-attention",
    count="6ND",
    tokens_are="image and text tokens",
    params=Power(exponent=0.54),
    tokens=Power(exponent=0.46),
    loss=Power(exponent=-0.0385),
    offset=0.0,
    flops=(1e17, 6e18),
    sizes=(1e6, 1e9),
)
ABRA = PublishedLaw(
    name="Abra",
    arxiv="2608.17286",
    setting="flow matching, two streams, 512 px, Qwen3-4B text, CompleteP, constant rate",
    count="own FLOPs",
    tokens_are="image tokens",
    params=Power(coefficient=0.0301, exponent=0.4951),
    tokens=Power(coefficient=3.776, exponent=0.5049),
    loss=Power(coefficient=1.2, exponent=-0.0140),
    offset=0.0052,
    metrics=(("KID", Power(exponent=-0.11)),),
    flops=(1e19, 1e22),
    sizes=(60e6, 2e9),
)
HUNYUAN_IMAGE = PublishedLaw(
    name="HunyuanVideo, images",
    arxiv="2412.03603",
    setting="DiT for images, velocity prediction, 256 px, lower envelope (section 4.4)",
    count="PFLOP",
    tokens_are="tokens",
    params=Power(coefficient=5.48e-4, exponent=0.5634, unit=_PFLOP, scale=_BILLION),
    tokens=Power(coefficient=0.324, exponent=0.4325, unit=_PFLOP, scale=_BILLION),
    sizes=(92e6, 6.6e9),
)
HUNYUAN_VIDEO = PublishedLaw(
    name="HunyuanVideo, video",
    arxiv="2412.03603",
    setting="video, from the optimal image models (section 4.4); 13 B was chosen",
    count="PFLOP",
    tokens_are="tokens",
    params=Power(coefficient=0.0189, exponent=0.3618, unit=_PFLOP, scale=_BILLION),
    tokens=Power(coefficient=0.0108, exponent=0.6289, unit=_PFLOP, scale=_BILLION),
    sizes=(92e6, 6.6e9),
)
YIN = PublishedLaw(
    name="Yin et al.",
    arxiv="2411.17470",
    setting="video DiT, 2 to 12 B tokens, learning rate and batch fitted",
    count="own unit",
    params=Power(coefficient=1.5787, exponent=0.4146),
    sizes=(17e6, 260e6),
    note="predicted the loss of 1.07 B to 0.5 %",
)
CHIMERA = PublishedLaw(
    name="Chimera",
    arxiv="2607.28611",
    setting="images; alpha about 0.315, beta 0.34 to 0.39, held-out error 0.22 %",
    count="second-hand",
    params=Power(exponent=0.5),
    tokens=Power(exponent=0.5),
    note="rounded, and from other papers that cite it",
)
PUBLISHED = (LIANG, LIANG_CROSS, ABRA, HUNYUAN_IMAGE, HUNYUAN_VIDEO, YIN, CHIMERA)
# Papers whose claims are tested: short name -> the words that cite the paper.
SOURCES = MappingProxyType(
    {
        "Abra": ABRA.source,
        "Yin": YIN.source,
        "Mei": "Mei et al., arXiv 2404.01367 (U-Net of 39 M to 5 B, 500 k steps)",
        "Esser": "Esser et al., arXiv 2403.03206 (MM-DiT of depth 15 to 38, 500 k steps of 4,096)",
    }
)
