"""`rfjax sample`: images of captions, as one picture or as a folder for `rfjax score`."""

from __future__ import annotations

from pathlib import Path

from rfjax.cli.arguments import add_checkpoint
from rfjax.cli.processes import say
from rfjax.errors import ConfigError


def add_arguments(parser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--prompt", action="append", help="a caption; may be given several times")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="instead: GenEval's metadata, or T2I-CompBench's prompts; makes a folder for `rfjax score`",
    )
    parser.add_argument(
        "--layout", choices=("geneval", "compbench"), default="geneval", help="of that folder (default geneval)"
    )
    parser.add_argument(
        "--negative", metavar="TEXT", help='encoded negative prompt, "" too (default: the null condition, zeros)'
    )
    parser.add_argument(
        "--sigmas",
        choices=("uniform", "diffusers"),
        help="the times of the steps: equal ones, or those of diffusers' FlowMatchEulerDiscreteScheduler "
        "(default: config.evaluation.sampler.sigmas)",
    )
    parser.add_argument(
        "--encoders",
        metavar="NAMES",
        help="of a run on a prepared corpus: encode prompts with these alone, as clip_l,clip_g for want of T5; the "
        "others are zero",
    )
    parser.add_argument(
        "--latent-size",
        metavar="HxW",
        help="of the images, in latent pixels, as 40x24; any that the positions reach (default: what was trained on, "
        "of aspect buckets the first)",
    )
    parser.add_argument("--samples", type=int, default=4, metavar="N", help="images per prompt (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="a PNG with one row per prompt (default samples.png), or that folder (default: samples)",
    )


def run(args, overrides) -> int:
    """Makes the images, and says where they are."""
    from rfjax.evaluation.samples.folder import sample_folder
    from rfjax.evaluation.samples.picture import sample_picture
    from rfjax.evaluation.samples.request import Wanted

    if bool(args.prompt) == bool(args.prompts):
        raise ConfigError("rfjax sample needs captions: give --prompt TEXT, once or more, or --prompts FILE")
    if args.sigmas:
        overrides = {**overrides, "evaluation.sampler.sigmas": args.sigmas}
    wanted = Wanted(
        step=args.step,
        weights=args.weights,
        samples=args.samples,
        negative=args.negative,
        seed=args.seed,
        latent_size=_latent_size(args.latent_size),
        encoders=tuple(name for name in (args.encoders or "").split(",") if name),
    )
    run = Path(args.run)
    if args.prompt:
        path = sample_picture(run, overrides, wanted, prompts=args.prompt, out=Path(args.out or "samples.png"))
        say(f"samples: {path}")
        return 0
    path = sample_folder(
        run, overrides, wanted, prompts_file=Path(args.prompts), layout=args.layout, out=Path(args.out or "samples")
    )
    say(f"samples: {path}\nscore them with: rfjax score {path} --metric={args.layout} --run={args.run}")
    return 0


def _latent_size(text):
    """(height, width) of HxW, None of nothing."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise ConfigError(f"--latent-size is {text!r}; it must be height x width in latent pixels, as 40x24")
    return int(sides[0]), int(sides[1])
