"""`rfjax prepare`: its arguments, the order of its work, and what it says on the way."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path

from rfjax.errors import ConfigError, RfjaxError
from rfjax.prepare.options import add_options
from rfjax.prepare.progress import say

SIZE = 256  # pixels, where neither --size nor --buckets is given
MADE = ("models", "encoders", "latents")  # what recipe.json says of the models and of what they make


def add_arguments(parser) -> None:
    add_options(parser, "source")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="the corpus's folder; the same command goes on where it was"
    )
    parser.add_argument(
        "--models",
        required=True,
        metavar="DIR",
        help="vae, text_encoder, tokenizer, text_encoder_2 ... as diffusers keeps SD3",
    )
    models = parser.add_argument_group("models")
    models.add_argument(
        "--encoders",
        default="",
        metavar="NAME,...",
        help="text encoders: clip_l, clip_g, t5 (default: all that DIR has)",
    )
    models.add_argument(
        "--models-variant", default="", metavar="NAME", help="of the weight files, as fp16 in model.fp16.safetensors"
    )
    models.add_argument(
        "--t5-tokens",
        type=int,
        default=77,
        metavar="N",
        help="diffusers' max_sequence_length (default 77, the paper's)",
    )
    add_options(models, "--batch-size", "--compute-dtype", "--device")
    pictures = parser.add_argument_group("images")
    pictures.add_argument("--size", type=int, metavar="PIXELS", help=f"side of the centred square (default {SIZE})")
    pictures.add_argument(
        "--buckets",
        metavar="HEIGHTxWIDTH,...",
        help="instead of --size: sides in pixels, as 1024x1024,1216x832; an image goes to the nearest aspect",
    )
    pictures.add_argument(
        "--resample", choices=("lanczos", "bicubic"), default="lanczos", help="PIL's filter (default lanczos)"
    )
    add_options(pictures, "--filter", "--drop-keys", "--corrupt-limit")
    captions = parser.add_argument_group("captions")
    add_options(captions, "--caption-column", "--synthetic-column", "--label-column", "--class-names")
    captions.add_argument(
        "--synthetic-captions",
        metavar="PATH",
        help="instead: what rfjax recaption wrote, or a .jsonl or .parquet of key and captions",
    )
    captions.add_argument("--template", default="a photo of a {}", help='default: "a photo of a {}"')
    output = parser.add_argument_group("output")
    output.add_argument(
        "--precision",
        choices=("float16", "float32"),
        default="float16",
        help="of stored latents and text features (default float16)",
    )
    output.add_argument(
        "--pooled-precision",
        choices=("float16", "float32"),
        default="float32",
        help="of stored pooled vectors (default float32)",
    )
    output.add_argument(
        "--latent-scaling",
        default="autoencoder",
        metavar="autoencoder|measured|DIR",
        help="shift and scale: the autoencoder's own, the corpus's mean and deviation, or those of another prepared "
        "corpus (default autoencoder)",
    )
    output.add_argument(
        "--validation-share",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of the images, by a hash of their keys (default 0.01)",
    )
    add_options(parser.add_argument_group("work"), "--shard-size", "--task", "--merge", "--threads")


def run(args, overrides) -> int:
    """Makes the shards that are missing and, unless it is one task of several, the manifest."""
    from rfjax.prepare import part, shard, work
    from rfjax.prepare.reading import Reading, given, open_captioned
    from rfjax.prepare.recipe import Recipe, read_settled

    task = work.parse_task(args.task, args.merge)
    reading = Reading(**given(Reading, args))
    source, columns = open_captioned(reading)
    chosen = {"buckets": _buckets(args), "filters": reading.filters(), "dropped_keys": reading.dropped_keys()}
    ours = Recipe(**given(Recipe, args) | chosen, columns=columns)
    folder = Path(args.out)
    models = None if task.merges_only else _models(args, ours)
    made = read_settled(folder, *MADE) if task.merges_only else _what_they_make(models)
    scaling = _scaling(args, made)  # refused before the folder is claimed
    about = work.about(source)
    if args.synthetic_captions:
        about["synthetic_captions"] = source.captions.facts
    job = work.Job(
        source=source,
        folder=folder,
        facts={"recipe": ours.facts(), "source": about, **made},
        files="shards",
        threads=args.threads,
        finished=functools.partial(part.finished, sizes=shard.sizes),
        make=functools.partial(shard.make_shard, recipe=ours, models=models),
        merge=lambda shards, _: _merge(args, shards, ours, {**about, "location": source.location}, scaling),
    )
    return work.run(job, task)


def _merge(args, shards, ours, source, scaling) -> list[str]:
    """Writes the manifest, and gives the lines that say what the corpus is."""
    from rfjax.data.prepared.manifest import StoredEncoder
    from rfjax.prepare import merge, work
    from rfjax.prepare.recipe import read_settled
    from rfjax.prepare.summary import summary

    _check_met(args, shards, ours, source["location"])
    folder = Path(args.out)
    made = read_settled(folder, *MADE)  # as it stands there, so that the manifest is the same bytes either way
    found = merge.write_manifest(
        folder,
        shards,
        recipe=ours.facts(),
        source=source,
        models={
            "folder": str(Path(args.models).absolute()),
            "variant": args.models_variant,
            "parts": made["models"],
            "made_with": work.made_with(args.device),
        },
        encoders=[StoredEncoder(**encoder) for encoder in made["encoders"]],
        buckets=ours.buckets,
        reduction=made["latents"]["reduction"],
        channels=made["latents"]["channels"],
        **scaling,
    )
    return summary(found)


def _check_met(args, shards, ours, location) -> None:
    """Raises `RfjaxError` where the keys of captions or of images to drop are those of another source."""
    if args.synthetic_captions and not any(unit["synthetic"] for facts in shards for unit in facts["units"]):
        raise RfjaxError(
            f"none of the images has a caption in --synthetic-captions {args.synthetic_captions}: it has no key of "
            f"{location}; give captions of this source, or leave it out"
        )
    if not ours.dropped_keys:
        return
    reasons = set(ours.dropped_keys.values())
    met = sum(facts["dropped"].get(reason, 0) for facts in shards for reason in reasons)
    if not met:
        raise RfjaxError(
            f"none of the {len(ours.dropped_keys):,} keys of --drop-keys {args.drop_keys}, "
            f"{next(iter(ours.dropped_keys))!r} first, is one of {location}; give keys as inspect and the "
            ".dropped.jsonl files have them, or leave it out"
        )
    say(f"{met:,} images were left out by the {len(ours.dropped_keys):,} keys of --drop-keys")


def _scaling(args, made) -> dict:
    """The latents' shift and scale, and what gives them. `ConfigError` for a corpus of another autoencoder."""
    from rfjax.data.prepared import manifest
    from rfjax.prepare.merge import SCALINGS

    if args.latent_scaling in SCALINGS:
        return {name: made["latents"][name] for name in ("shift", "scale")} | {"scaling": args.latent_scaling}
    if not Path(args.latent_scaling).is_dir():
        raise ConfigError(
            f"--latent-scaling is {args.latent_scaling!r}; it must be autoencoder, measured or the folder of a "
            "prepared corpus"
        )
    other = manifest.read(args.latent_scaling)
    theirs, ours = (models["vae"]["sha256"] for models in (other.facts["models"]["parts"], made["models"]))
    if theirs != ours:
        raise ConfigError(
            f"--latent-scaling: the corpus {args.latent_scaling} has latents of another autoencoder (SHA-256 "
            f"{theirs[:12]}, here {ours[:12]}); its shift and scale mean nothing to this one's"
        )
    return {"shift": other.shift, "scale": other.scale, "scaling": f"as {other.folder.resolve().name}"}


def _models(args, ours):
    """The frozen models; `ConfigError` for sides in pixels that the autoencoder cannot reduce to whole latents."""
    from rfjax.data.prepared import frozen

    models = frozen.load(
        args.models,
        encoders=[name for name in args.encoders.split(",") if name],
        t5_tokens=ours.t5_tokens,
        compute_dtype=ours.compute_dtype,
        device=args.device,
        variant=args.models_variant,
        say=say,
    )
    for height, width in ours.buckets:
        if height % models.reduction or width % models.reduction:
            given = f"--buckets has {height}x{width}; both sides" if args.buckets else f"--size is {height}; it"
            raise ConfigError(f"{given} must be divisible by {models.reduction}, the autoencoder's reduction")
    return models


def _what_they_make(models) -> dict:
    """What recipe.json says under MADE."""
    latents = {
        "reduction": models.reduction,
        "channels": models.latent_channels,
        "shift": models.shift,
        "scale": models.scale,
    }
    return {"models": models.facts, "encoders": [asdict(encoder) for encoder in models.encoders], "latents": latents}


def _buckets(args):
    from rfjax.prepare.recipe import parse_buckets

    if args.buckets is None:
        side = SIZE if args.size is None else args.size
        return ((side, side),)
    if args.size is not None:
        raise ConfigError(
            f"--size={args.size} and --buckets={args.buckets} both say what an image becomes; a square is a bucket "
            "too: leave out --size"
        )
    return parse_buckets(args.buckets)
