"""`rfjax prepare`: its arguments, the order of its work, and what it says on the way."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rfjax.errors import ConfigError, RfjaxError
from rfjax.prepare import work
from rfjax.prepare.progress import say
from rfjax.prepare.summary import summary

SIZE = 256  # pixels, where neither --size nor --buckets is given


def add_arguments(parser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder of images, .tar files, .parquet files, or tfds:NAME; KIND:WHERE names its kind",
    )
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
    models.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="images and captions encoded at once (default 32)"
    )
    models.add_argument(
        "--compute-dtype", choices=work.COMPUTE_DTYPES, default="float32", help="of the models (default float32)"
    )
    models.add_argument(
        "--device", default="", help="PyTorch's name of it (default: cuda where there is one, else cpu)"
    )
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
    pictures.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="COMPARISON",
        help="keep what holds, as 'aesthetic>=5' or 'short_side>=256'; may be given several times",
    )
    pictures.add_argument(
        "--drop-keys", metavar="FILE", help="keys of images to leave out, one a line, and after a tab perhaps why"
    )
    pictures.add_argument(
        "--corrupt-limit",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="of a shard's images, beyond which it stops (default 0.1)",
    )
    captions = parser.add_argument_group("captions")
    captions.add_argument("--caption-column", metavar="NAME", help="default: caption, or for tfds what it has")
    captions.add_argument(
        "--synthetic-column", metavar="NAME", help="captions made by a model, mixed with the others in training"
    )
    captions.add_argument(
        "--synthetic-captions",
        metavar="PATH",
        help="instead: what rfjax recaption wrote, or a .jsonl or .parquet of key and captions",
    )
    captions.add_argument(
        "--label-column", metavar="NAME", help="a class to make captions of; `folder` for images sorted by class"
    )
    captions.add_argument(
        "--class-names", metavar="FILE", help="names of each class, as LOC_synset_mapping.txt or JSON"
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
    output.add_argument(
        "--shard-size",
        type=int,
        default=1024,
        metavar="N",
        help="images a shard; a tar is a shard of its own (default 1024)",
    )
    tasks = parser.add_argument_group("work")
    tasks.add_argument(
        "--task",
        metavar="I/N",
        help="make only every Nth shard, from the Ith (0 to N-1), and no manifest: for N processes or hosts",
    )
    tasks.add_argument(
        "--merge", action="store_true", help="make no shard; write the manifest of those that the tasks made"
    )
    tasks.add_argument("--threads", type=int, default=0, metavar="N", help="that decode images (default: one a core)")


def run(args) -> int:
    """Makes the shards that are missing and, unless it is one task of several, the manifest."""
    from rfjax.data.prepared import frozen
    from rfjax.data.prepared.manifest import StoredEncoder
    from rfjax.prepare import merge, recipe, shard

    own = work.parse_task(args.task)
    if args.task and args.merge:
        raise ConfigError("--task makes shards and --merge the manifest of them all; give one of the two")
    source, ours = plan(args)
    folder, parts = Path(args.out), len(source.sizes)
    models = None if args.merge else _models(frozen, args, ours)
    made = recipe.read_models(folder) if args.merge else _what_they_make(models)
    scaling = _scaling(args, made)  # refused before the folder is claimed
    about = work.about(source)
    if args.synthetic_captions:
        about["synthetic_captions"] = source.captions.facts
    recipe_hash = recipe.settle(folder, {"recipe": ours.facts(), "source": about, **made})
    made = recipe.read_models(folder)  # as it stands there, so that the manifest is the same bytes either way
    names = [shard.shard_name(part, parts) for part in range(parts)]
    done = {name: shard.finished(folder, name, recipe_hash) for name in names}
    to_make = [] if args.merge else [part for part in range(own[0], parts, own[1]) if done[names[part]] is None]

    def make(part, tell):
        with work.in_device_memory("the models do"):
            return shard.make_shard(
                source,
                part,
                folder,
                recipe=ours,
                recipe_hash=recipe_hash,
                models=models,
                threads=work.threads(args.threads),
                tell=tell,
            )

    done |= work.make_missing(source, names, to_make, make)
    if args.task:
        say(f"task {args.task} is done; when all are: the same command with --merge instead of --task")
        return 0
    missing = [name for name, facts in done.items() if facts is None]
    if missing:
        raise RfjaxError(
            f"{len(missing)} of {parts} shards are not there, {missing[0]} first; give the command without --merge "
            "to make them"
        )
    if args.synthetic_captions and not any(unit["synthetic"] for facts in done.values() for unit in facts["units"]):
        raise RfjaxError(
            f"none of the images has a caption in --synthetic-captions {args.synthetic_captions}: it has no key of "
            f"{source.location}; give captions of this source, or leave it out"
        )
    if ours.dropped_keys:
        reasons = set(ours.dropped_keys.values())
        met = sum(facts["dropped"].get(reason, 0) for facts in done.values() for reason in reasons)
        if not met:
            raise RfjaxError(
                f"none of the {len(ours.dropped_keys):,} keys of --drop-keys {args.drop_keys}, "
                f"{next(iter(ours.dropped_keys))!r} first, is one of "
                f"{source.location}; give keys as inspect and the .dropped.jsonl files have them, or leave it out"
            )
        say(f"{met:,} images were left out by the {len(ours.dropped_keys):,} keys of --drop-keys")
    found = merge.write_manifest(
        folder,
        list(done.values()),
        recipe=ours.facts(),
        source={**about, "location": source.location},
        models={
            "folder": str(Path(args.models).absolute()),
            "variant": args.models_variant,
            "parts": made["models"],
            "made_with": work.made_with(args.device, work.LIBRARIES),
        },
        encoders=[StoredEncoder(**encoder) for encoder in made["encoders"]],
        buckets=ours.buckets,
        reduction=made["latents"]["reduction"],
        channels=made["latents"]["channels"],
        **scaling,
    )
    print("\n".join(summary(found)))
    return 0


def _scaling(args, made) -> dict:
    """The latents' shift and scale, and what gives them. `ConfigError` for a corpus of another autoencoder."""
    from rfjax.data.prepared import manifest

    if args.latent_scaling in ("autoencoder", "measured"):
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
            f"{theirs[:12]}, "
            f"here {ours[:12]}); its shift and scale mean nothing to this one's"
        )
    return {"shift": other.shift, "scale": other.scale, "scaling": f"as {other.folder.resolve().name}"}


def _models(frozen, args, ours):
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
    latents = {
        "reduction": models.reduction,
        "channels": models.latent_channels,
        "shift": models.shift,
        "scale": models.scale,
    }
    return {"models": models.facts, "encoders": [asdict(encoder) for encoder in models.encoders], "latents": latents}


def plan(args):
    """The source and the recipe of a command line, checked before anything is loaded."""
    from rfjax.prepare import captions
    from rfjax.prepare.filters import parse_filter
    from rfjax.prepare.recipe import Recipe
    from rfjax.prepare.sources import open_source

    if args.shard_size < 1:
        raise ConfigError(f"--shard-size is {args.shard_size}; it must be at least 1")
    if args.template.count("{}") != 1:
        raise ConfigError(f"--template is {args.template!r}; it needs one {{}} where the class's name goes")
    source = open_source(args.source, shard_size=args.shard_size, caption_column=args.caption_column)
    label = args.label_column or source.label
    if args.class_names and label is None:
        raise ConfigError("--class-names names classes, and no column holds one; name it with --label-column")
    given = captions.read_class_names(args.class_names) if args.class_names else {}
    names = given
    if source.class_names and label == source.label:  # the data set's classes are numbers
        names = {str(number): given.get(name, (name,)) for number, name in enumerate(source.class_names)}
    default = "caption"
    if source.kind == "tfds":
        from rfjax.prepare.sources.tfds import CAPTIONS

        default = next((name for name in CAPTIONS if name in source.columns), default)
        if (
            label is None
            and default not in source.columns
            and not (args.caption_column or args.synthetic_column or args.synthetic_captions)
        ):
            raise ConfigError(
                f"{args.source} has neither a caption ({', '.join(CAPTIONS)}) nor a class; name the column with "
                "--caption-column, or give --synthetic-captions"
            )
    synthetic = args.synthetic_column
    if args.synthetic_captions:
        from rfjax.prepare import joined_captions

        if synthetic:
            raise ConfigError(
                "--synthetic-column and --synthetic-captions both give synthetic captions; give one of the two"
            )
        source, synthetic = (
            joined_captions.JoinedSource(source, joined_captions.open_captions(args.synthetic_captions)),
            joined_captions.COLUMN,
        )
    columns = captions.CaptionColumns(
        original=args.caption_column or default,
        synthetic=synthetic,
        label=label,
        class_names=names,
        template=args.template,
    )
    return source, Recipe(
        buckets=_buckets(args),
        resample=args.resample,
        precision=args.precision,
        pooled_precision=args.pooled_precision,
        t5_tokens=args.t5_tokens,
        batch_size=args.batch_size,
        compute_dtype=args.compute_dtype,
        shard_size=args.shard_size,
        validation_share=args.validation_share,
        corrupt_limit=args.corrupt_limit,
        columns=columns,
        filters=tuple(parse_filter(text) for text in args.filter),
        dropped_keys=work.read_dropped_keys(args.drop_keys) if args.drop_keys else {},
    )


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
