"""A sampler's name: the settings by which images were sampled, as text in a record's key. No JAX here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rfjax.config import Config, SamplerConfig
from rfjax.evaluation.guide_names import guide_label
from rfjax.limits import CHOICES

_NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"
_SIZE = r"\d+x\d+"
_NAME = re.compile(
    rf"(?P<method>[a-z]+)-(?P<steps>\d+)-(cfg|auto\((?P<guide>[^()]+)\))(?P<guidance_scale>{_NUMBER})"
    rf"(-in(?P<guidance_from>{_NUMBER})\.\.(?P<guidance_to>{_NUMBER}))?-shift(?P<timestep_shift>{_NUMBER})"
    rf"(?P<by_area>-by-area)?(-by-frames(?P<by_frames>{_NUMBER}))?"
    rf"(-(?P<sigmas>{'|'.join(CHOICES['evaluation.sampler.sigmas'])}))?"
    rf"(-(?!of\d+$)(?P<encoders>[A-Za-z][^-]*))?"
    rf"(-(?P<latent_size>{_SIZE})(?=-{_SIZE}))?(-(?P<images>{_SIZE}))?(-of(?P<reference>\d+))?"
)


@dataclass(frozen=True, kw_only=True)
class SamplerName:
    """A sampler's settings.

    Written as text, such as `euler-50-cfg5-shift3-40x4`, they are a field of a record's key. So scores under different
    settings have different records.
    """

    method: str
    steps: int
    guidance_scale: float
    timestep_shift: float
    guide: str = ""  # label of the weaker checkpoint that guidance leads away from (`guide_label`); "": null condition
    guidance_from: float = 0.0  # the interval of t with guidance
    guidance_to: float = 1.0
    by_area: bool = False  # the shift holds at config.data.image_size, and changes with the area of the latents
    by_frames: float = 0.0  # the exponent e: the shift is for one latent frame; f frames have f^e times this shift
    sigmas: str = "uniform"
    encoders: tuple[str, ...] = ()  # text encoders of the prompts; empty: the run's
    latent_size: tuple[int, int] | None = None  # height, width; None: the corpus's
    images: tuple[int, int] | None = None  # prompts (of each task, where there are tasks), images of each prompt
    reference: int | None = None  # number of steps of the samples with which these samples are compared

    @classmethod
    def of(cls, config: Config, sampler: SamplerConfig, **more) -> SamplerName:
        """Makes the name of a run's `sampler`, with the timestep shift of the run's config. `more` are the fields of
        the name that no config holds, such as the numbers of images."""
        shift = {
            "timestep_shift": config.timestep_shift,
            "by_area": config.timestep_shift_by_area,
            "by_frames": config.timestep_shift_frames,
        }
        return cls(**vars(sampler) | {"guide": guide_label(sampler.guide)}, **shift, **more)

    @classmethod
    def parse(cls, text: str) -> SamplerName | None:
        """Parses a sampler's name, as `format` writes it. Returns None for any other text, since a user may give any
        text to `rfjax score --sampler`.

        If the name has only one part AxB, it is read as `images`, not as a latent size: names with only a latent size
        are written beside pictures, but never into a record's key.
        """
        match = _NAME.fullmatch(text)
        if match is None:
            return None
        name = cls(
            method=match["method"],
            steps=int(match["steps"]),
            guidance_scale=float(match["guidance_scale"]),
            guide=match["guide"] or "",
            guidance_from=float(match["guidance_from"] or 0.0),
            guidance_to=float(match["guidance_to"] or 1.0),
            timestep_shift=float(match["timestep_shift"]),
            by_area=match["by_area"] is not None,
            by_frames=float(match["by_frames"] or 0.0),
            sigmas=match["sigmas"] or "uniform",
            encoders=tuple(match["encoders"].split("+")) if match["encoders"] else (),
            latent_size=_parse_size(match["latent_size"]),
            images=_parse_size(match["images"]),
            reference=int(match["reference"]) if match["reference"] else None,
        )
        return name if name.format() == text else None

    def format(self) -> str:
        """The text in a record's key."""
        return self._join(str(self.steps), "" if self.reference is None else f"of{self.reference}")

    @property
    def settings(self) -> str:
        """The name's text without the numbers of steps. It is equal for samples that differ only in their steps."""
        return self._join("", "")

    def _join(self, steps, reference):
        interval = self.guidance_from, self.guidance_to
        parts = (
            self.method,
            steps,
            f"auto({self.guide}){self.guidance_scale:g}" if self.guide else f"cfg{self.guidance_scale:g}",
            "" if interval == (0.0, 1.0) else f"in{interval[0]:g}..{interval[1]:g}",
            f"shift{self.timestep_shift:g}",
            "by-area" if self.by_area else "",
            f"by-frames{self.by_frames:g}" if self.by_frames else "",
            "" if self.sigmas == "uniform" else self.sigmas,
            "+".join(self.encoders),
            _format_size(self.latent_size),
            _format_size(self.images),
            reference,
        )
        return "-".join(filter(None, parts))


def ground_truth_name(images: tuple[int, int]) -> str:
    """The text that replaces a sampler's name if pictures are drawn, not sampled. `images` is as in `SamplerName`."""
    return f"ground truth-{_format_size(images)}"


def ground_truth_prompts(text: str) -> int | None:
    """The number of prompts of each task in a name that `ground_truth_name` made; None for any other text."""
    match = re.fullmatch(r"ground truth-(\d+)x\d+", text)
    return int(match[1]) if match else None


def _format_size(size):
    return "" if size is None else f"{size[0]}x{size[1]}"


def _parse_size(text):
    return None if text is None else tuple(int(number) for number in text.split("x"))
