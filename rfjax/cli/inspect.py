"""`rfjax inspect`: shows and verifies a prepared corpus."""

from __future__ import annotations

import itertools
import textwrap

from rfjax.console import printable
from rfjax.errors import ConfigError
from rfjax.inputs.paths import as_path


def add_arguments(parser) -> None:
    parser.add_argument("corpus", metavar="DIR", type=as_path("DIR"), help="a folder that rfjax prepare wrote")
    parser.add_argument("--samples", type=int, default=12, metavar="N", help="images shown (default 12)")
    parser.add_argument("--split", choices=("train", "validation"), default="train", help="default: train")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of images (default 0)")
    out = "the picture (default: samples.png in DIR)"
    parser.add_argument("--out", metavar="FILE.png", type=as_path("--out"), help=out)
    models = "frozen models, to decode the latents too, beside the stored thumbnails; needs PyTorch"
    parser.add_argument("--models", metavar="DIR", type=as_path("--models"), help=models)
    parser.add_argument("--no-hashes", action="store_true", help="do not read and check every byte")


def run(args, overrides) -> int:
    """Prints a summary of the corpus and draws samples; returns 1 if a file is damaged or wrong, else 0."""
    import numpy as np

    from rfjax.data.prepared import manifest
    from rfjax.files import write_whole
    from rfjax.outputs import check_output, check_place, holds
    from rfjax.prepare import verify
    from rfjax.prepare.inspect import MADE_BY, picture, samples
    from rfjax.prepare.progress import say
    from rfjax.prepare.summary import summary

    if args.samples < 0:
        raise ConfigError(f"--samples is {args.samples}; it must be at least 0")
    if args.samples:
        if args.out is None:  # rfjax wrote the corpus's folder, and may replace the picture in it
            out = args.corpus / "samples.png"
            check_place(out, "--out")
            if out.is_dir():
                raise ConfigError(f"{out} is a folder; name another picture with --out, or give --samples=0")
        else:
            out = args.out
            check_output(out, "--out", made_here=holds(MADE_BY))
        if args.models is not None and not args.models.is_dir():
            raise ConfigError(
                f"--models is {args.models}, and no folder is there; give the folder that rfjax prepare used"
            )
    found = manifest.read(args.corpus)
    print("\n".join(map(printable, summary(found))))
    bad = [] if args.no_hashes else list(verify.damaged_files(found, say))
    for name in bad:
        remedy = "remove its shard's .json and give the command that prepared it again"
        print(f"damaged: {printable(name)} is not as it was written; {remedy}")
    lines = manifest.wrong_counts(found) if not bad else []  # also with --no-hashes: a wrong count mismatches captions
    if not args.no_hashes and not bad and not lines:
        lines = itertools.chain(verify.strangers(found), verify.contradictions(found, say))
    for line in lines:
        bad.append(line)
        print(f"wrong: {printable(line)}; {manifest.COPY_AGAIN}")
    if not args.no_hashes and not bad:
        print("every file is as it was written")
    split = args.split if found.count(args.split) else "train"
    if args.samples and found.count(split) and not bad:
        rows = samples(found, split, args.samples, args.seed)
        several = len(found.buckets) > 1
        for name, place, facts, captions, _, _ in rows:
            bucket = f"{name} " if several else ""
            print(f"{split} {bucket}{place}: {printable(facts['key'])} ({facts['width']}x{facts['height']})")
            for kind in ("original", "synthetic"):
                for row in facts[kind]:
                    print(f"    {kind}: {printable(textwrap.shorten(captions[row], 160))}")
        decoded = None
        if args.models is not None:
            from rfjax.data.prepared import frozen

            models = frozen.of_corpus(found, args.models, [encoder.name for encoder in found.encoders])
            decoded = [models.images(latents[None].astype(np.float32))[0] for *_, latents in rows]
        write_whole({out: picture(rows, decoded)})
        print(f"picture: {out}")
    return 1 if bad else 0
