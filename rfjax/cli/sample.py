"""`rfjax sample`: samples images or clips from captions, into one file, or images into a folder for `rfjax score`."""

from __future__ import annotations

from pathlib import Path

from rfjax.cli.arguments import add_checkpoint
from rfjax.cli.processes import say
from rfjax.errors import ConfigError
from rfjax.inputs.paths import as_path
from rfjax.inputs.text import split_names
from rfjax.option_limits import parse_latent_size

METRICS = {"geneval": "geneval", "compbench": "compbench", "numbered": "clip-score"}  # layout -> metric that reads it


def add_arguments(parser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--prompt", action="append", help="a caption; may be repeated")
    prompts = "instead: GenEval's metadata, or (other layouts) a prompt a line; makes a folder for `rfjax score`"
    parser.add_argument("--prompts", metavar="FILE", type=as_path("--prompts"), help=prompts)
    layout = "layout of that folder (default geneval); numbered: 00000-0.png with its caption in 00000-0.txt"
    parser.add_argument("--layout", choices=tuple(METRICS), default="geneval", help=layout)
    negative = 'negative prompt to encode; "" is one, too (default: the null condition, zeros)'
    parser.add_argument("--negative", metavar="TEXT", help=negative)
    sigmas = (
        "times of the steps: evenly spaced, or as in diffusers' Euler scheduler (default: "
        "config.evaluation.sampler.sigmas)"
    )
    parser.add_argument("--sigmas", choices=("uniform", "diffusers"), help=sigmas)
    encoders = "for a prepared corpus: encode prompts with these alone, such as clip_l,clip_g; the others give zeros"
    parser.add_argument("--encoders", metavar="NAMES", help=encoders)
    size = "height and width of images in latent pixels, such as 40x24, for stills (default: training's first shape)"
    parser.add_argument("--latent-size", metavar="HxW", help=size)
    parser.add_argument("--samples", type=int, default=4, metavar="N", help="images or clips per prompt (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")
    out = "a .png, .npy, .webp or .mp4 with a row per prompt (default samples.png), or that folder (default samples)"
    parser.add_argument("--out", metavar="PATH", type=as_path("--out"), help=out)


def run(args, overrides) -> int:
    """Makes the images, and prints where they are."""
    from rfjax.evaluation.samples.folder import sample_folder
    from rfjax.evaluation.samples.picture import sample_picture
    from rfjax.evaluation.samples.request import Wanted

    if (args.prompt is None) == (args.prompts is None):
        raise ConfigError("rfjax sample needs captions: give --prompt TEXT, once or more, or --prompts FILE")
    if args.sigmas is not None:
        overrides = {**overrides, "evaluation.sampler.sigmas": args.sigmas}
    wanted = Wanted(
        step=args.step,
        weights=args.weights,
        samples=args.samples,
        negative=args.negative,
        seed=args.seed,
        latent_size=parse_latent_size(args.latent_size),
        encoders=split_names(args.encoders, "--encoders"),
    )
    run = args.run
    if args.prompt is not None:
        out = Path("samples.png") if args.out is None else args.out
        path = sample_picture(run, overrides, wanted, prompts=args.prompt, out=out)
        say(f"samples: {path}")
        return 0
    out = Path("samples") if args.out is None else args.out
    path = sample_folder(run, overrides, wanted, prompts_file=args.prompts, layout=args.layout, out=out)
    say(f"samples: {path}\nscore them with: rfjax score {path} --metric={METRICS[args.layout]} --run={args.run}")
    return 0
