"""`rfjax compare`: makes a study of human preference between runs, or any folders of images."""

from __future__ import annotations

from rfjax.inputs.paths import as_path
from rfjax.inputs.text import split_names

OVERRIDES = "the sampler can be set for all runs: --config.evaluation.sampler.guidance_scale=3"


def add_arguments(parser) -> None:
    sides = "runs to sample from, or folders of images: two or more (docs/compare.md has the layouts)"
    parser.add_argument("sides", metavar="RUN", nargs="+", type=as_path("RUN"), help=sides)
    prompts = "PartiPrompts.tsv, JSON lines with prompt, or a text with one prompt in each line"
    parser.add_argument("--prompts", metavar="FILE", required=True, type=as_path("--prompts"), help=prompts)
    out = "folder for the study; raters get what is in DIR/pages"
    parser.add_argument("--out", metavar="DIR", required=True, type=as_path("--out"), help=out)
    choose = "use only N of the prompts, so that each challenge and category keeps its share"
    parser.add_argument("--choose", type=int, metavar="N", help=choose)
    group = parser.add_argument_group("the design")
    group.add_argument("--raters", type=int, default=5, metavar="N", help="pages for N raters (default 5)")
    pairs = "pairs for each rater, without checks (default: all, at most 100)"
    group.add_argument("--pairs", type=int, metavar="N", help=pairs)
    checks = "number of checks to add, as a share of a rater's pairs: half repeat a pair, half show an image of noise"
    group.add_argument("--checks", type=float, default=0.1, metavar="SHARE", help=f"{checks} (default 0.1)")
    questions = "some of aesthetics,prompt,typography (default: all; typography where the prompt asks for text)"
    group.add_argument("--questions", metavar="NAMES", help=questions)
    seed = "seed of the noise of samples, of the order of pairs, and of which image is on the left (default 0)"
    group.add_argument("--seed", type=int, default=0, help=seed)
    group = parser.add_argument_group("the pages")
    quality = "quality of WebP, 1 to 100; images below 256 pixels are lossless (default 90)"
    group.add_argument("--quality", type=int, default=90, metavar="Q", help=quality)
    page_mb = "largest page in MB; more is split into numbered pages (default 40)"
    group.add_argument("--page-mb", type=float, default=40, metavar="MB", help=page_mb)
    group.add_argument("--folder", action="store_true", help="put the images beside the pages, under blind names")
    group = parser.add_argument_group("samples of runs")
    group.add_argument("--step", type=int, metavar="N", help="checkpoint (default: the newest)")
    group.add_argument("--weights", choices=("ema", "raw"), default="ema", help="default: ema")


def run(args, overrides) -> int:
    """Samples what is missing, writes the study, and prints what it holds and what to do with it."""
    from rfjax.compare.making import Request, make
    from rfjax.console import printable_lines

    request = Request(
        sides=tuple(args.sides),
        prompts=args.prompts,
        out=args.out,
        choose=args.choose,
        raters=args.raters,
        pairs=args.pairs,
        checks=args.checks,
        questions=split_names(args.questions, "--questions"),
        seed=args.seed,
        quality=args.quality,
        page_bytes=int(args.page_mb * 1e6),
        beside=args.folder,
        step=args.step,
        weights=args.weights,
    )
    for line in make(request, overrides):
        print(printable_lines(line))
    return 0
