"""`rfjax prepare`: its arguments, the order of its work, and its messages."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path

from rfjax.console import printable
from rfjax.errors import ConfigError, RfjaxError
from rfjax.inputs.paths import as_path, as_text
from rfjax.inputs.text import split_names
from rfjax.prepare.options import FLOATS, TEXT_PRECISIONS, add_options, check_range, source_paths
from rfjax.prepare.progress import say

SIZE = 256  # pixels a side, if neither --size nor --buckets is given
MADE = ("models", "encoders", "latents")  # keys of recipe.json about the frozen models and their outputs


def add_arguments(parser) -> None:
    add_options(parser, "source")
    out, pipeline = "the corpus; the same command resumes its work", "a folder laid out as diffusers' SD3 pipeline"
    parser.add_argument("--out", required=True, metavar="DIR", type=as_path("--out"), help=out)
    parser.add_argument("--models", required=True, metavar="DIR", type=as_path("--models"), help=pipeline)
    models = parser.add_argument_group("models")
    models.add_argument("--encoders", metavar="NAME,...", help="text encoders: clip_l,clip_g,t5 (default: all)")
    pixels = "identity stores pixels, and needs no autoencoder (default: the one in vae)"
    models.add_argument("--autoencoder", choices=("vae", "identity"), default="vae", help=pixels)
    settings = "a setting of an encoder in text_encoder_NAME, such as minilm.tokens=32; may be repeated"
    models.add_argument("--text-setting", action="append", default=[], metavar="NAME.FIELD=VALUE", help=settings)
    models.add_argument("--models-variant", metavar="NAME", help="fp16, if files are *.fp16.safetensors")
    models.add_argument("--t5-tokens", type=int, default=77, metavar="N", help="T5's tokens for a caption (default 77)")
    add_options(models, "--batch-size", "--compute-dtype", "--device")
    pictures = parser.add_argument_group("images")
    pictures.add_argument("--size", type=int, metavar="PIXELS", help=f"side of the centred square (default {SIZE})")
    pictures.add_argument("--buckets", metavar="HEIGHTxWIDTH,...", help="instead of --size, as 1024x1024,1216x832")
    filters = ("lanczos", "bicubic")
    pictures.add_argument("--resample", choices=filters, default="lanczos", help="PIL's filter (default lanczos)")
    add_options(pictures, "--filter", "--drop-keys", "--corrupt-limit")
    add_options(parser.add_argument_group("clips"), "--frames", "--fps", "--clips")
    captions = parser.add_argument_group("captions")
    add_options(captions, "--caption-column", "--synthetic-column", "--label-column", "--class-names")
    joined = "synthetic captions: what rfjax recaption wrote, or a .jsonl or .parquet of key and captions"
    captions.add_argument("--synthetic-captions", metavar="PATH", type=as_path("--synthetic-captions"), help=joined)
    captions.add_argument(
        "--template", default="a photo of a {}", help='caption of a class (default "a photo of a {}")'
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--precision", choices=FLOATS, default="float16", help="type of stored latents and contexts (default float16)"
    )
    text = "type of stored contexts; int8 has a scale for each token (default: --precision)"
    output.add_argument("--text-precision", choices=TEXT_PRECISIONS, help=text)
    output.add_argument(
        "--pooled-precision", choices=FLOATS, default="float32", help="type of stored pooled vectors (default float32)"
    )
    kinds = "autoencoder|measured|DIR"
    whose = "shift and scale: the autoencoder's (default), the training latents', or those of another corpus"
    scaling = as_text("--latent-scaling")
    output.add_argument("--latent-scaling", default="autoencoder", metavar=kinds, type=scaling, help=whose)
    share = "share of the images for validation, chosen by a hash of their keys (default 0.01)"
    output.add_argument("--validation-share", type=float, default=0.01, metavar="SHARE", help=share)
    keys = "keys of the validation images, one a line; instead of a share"
    output.add_argument("--validation-keys", metavar="FILE", type=as_path("--validation-keys"), help=keys)
    work = parser.add_argument_group("work")
    add_options(work, "--shard-size", "--task", "--merge", "--threads")
    work.add_argument("--estimate", action="store_true", help="say what the corpus takes on disk, and make nothing")


def run(args, overrides) -> int:
    """Makes the missing shards and then, unless the command is one task of several, the manifest. With `--estimate`,
    only prints what the corpus takes on disk. Returns the exit status."""
    from rfjax.data.prepared.text_encoders import parse_settings
    from rfjax.prepare import given_keys, part, shard, storage, work
    from rfjax.prepare.reading import Reading, fields_given, open_captioned, read_keys
    from rfjax.prepare.recipe import Recipe, read_recipe

    check_range(args, ("threads",), 0)
    reads = [*source_paths(args.source), args.models]
    work.check_folder(args.out, reads, own="manifest.json")
    task = work.parse_task(args.task, args.merge)
    if args.estimate and task.merges_only:
        raise ConfigError("--estimate is for work to come, and --merge is the last step of it; give one of the two")
    reading = Reading(**fields_given(Reading, args))
    rule = reading.clip_rule()
    if not task.merges_only:
        reading.require_video()
    source, columns = open_captioned(reading)
    chosen = {"buckets": _buckets(args), "filters": reading.filters(), "dropped_keys": reading.dropped_keys()}
    chosen |= {"validation_keys": read_keys(args.validation_keys, "--validation-keys")}
    chosen |= {"text_settings": parse_settings(args.text_setting)}
    chosen |= {"autoencoder": "" if args.autoencoder == "vae" else args.autoencoder}
    chosen |= {"text_precision": "" if args.text_precision in (None, args.precision) else args.text_precision}
    chosen |= {"clips": rule}
    ours = Recipe(**fields_given(Recipe, args) | chosen, columns=columns)
    folder = args.out
    unmet = given_keys.known_before(source, given := _given_keys(args, source, ours), rule)
    if not task.merges_only:
        _check_keys(args, source, given, unmet)
    source = given_keys.noticing(source, unmet)
    models = None if task.merges_only else _load_models(args, ours)
    made = read_recipe(folder, *MADE) if models is None else _models_facts(models)
    scaling = _scaling(args, made)  # raises before the folder is claimed
    if models is not None:
        form = {name: getattr(models, name) for name in ("reduction", "time_reduction")}
        form["channels"] = models.latent_channels
        takes = storage.storage_lines(source, ours, models.encoders, **form, out=folder)
        if args.estimate:
            print("\n".join(map(printable, takes)))
            return 0
        for line in takes:
            say(line)
    _check_scaled_alike(folder, scaling)
    about = work.source_facts(source)
    if columns.label == "folder" and source.kind == "folder" and any("/" not in key for key in source.keys):
        about["class_of_root"] = source.root_name  # the class of images that are in no subfolder
    if args.synthetic_captions is not None:
        about["synthetic_captions"] = source.captions.facts

    def merge(shards, _):
        late = given_keys.known_after(source, folder, [facts["name"] for facts in shards], ours.dropped_keys, rule)
        given_keys.say_unmet({"--drop-keys": late, "--synthetic-captions": given_keys.captions_known_after(source)})
        noticed = given_keys.noticing(source, {"--drop-keys": late})
        return _merge(args, shards, ours, work.located(about, noticed), scaling)

    job = work.Job(
        source=source,
        folder=folder,
        facts={"recipe": ours.facts(), "source": about, **made},
        files="shards",
        threads=args.threads,
        finished=functools.partial(part.read_finished, shape=shard.ShardJson, sizes=shard.sizes),
        make=functools.partial(shard.make_shard, recipe=ours, models=models),
        merge=merge,
    )
    return work.run(job, task)


def _merge(args, shards, ours, source, scaling) -> list[str]:
    """Writes the manifest; returns the lines that describe the corpus."""
    from rfjax.data.prepared.manifest import StoredEncoder
    from rfjax.prepare import libraries, merge
    from rfjax.prepare.recipe import read_recipe
    from rfjax.prepare.summary import summary

    _check_keys_known(args, shards, ours, source["location"])
    folder = args.out
    made = read_recipe(folder, *MADE)  # read back, so that the manifest is byte-identical with and without --merge
    models = {
        "folder": str(args.models.absolute()),
        "variant": args.models_variant or "",
        "parts": made["models"],
        "made_with": libraries.surroundings(args.device or "", ("av",) if ours.clips else ()),
    }
    found = merge.write_manifest(
        folder,
        shards,
        recipe=ours.facts(),
        source=source,
        models=models,
        encoders=[StoredEncoder(**encoder) for encoder in made["encoders"]],
        buckets=ours.shapes,
        time_reduction=made["latents"].get("time_reduction", 1),
        reduction=made["latents"]["reduction"],
        channels=made["latents"]["channels"],
        **scaling,
    )
    return summary(found)


def _given_keys(args, source, ours) -> dict:
    """Returns {option: keys that the user gave with it}, to be compared with the source's keys.

    Leaves out the keys of captions if the source does not know its keys before it is read, or if the captions were
    written for exactly this source.
    """
    given = {"--drop-keys": ours.dropped_keys} if ours.dropped_keys else {}
    if ours.validation_keys:
        given["--validation-keys"] = sorted(ours.validation_keys)
    if args.synthetic_captions is not None and source.keys is not None and source.captions.listing != source.listing:
        given["--synthetic-captions"] = source.captions.all
    return given


def _check_keys(args, source, given, unmet) -> None:
    """Raises `ConfigError`, before any work, if the source knows its keys and has none of the keys that the user gave
    with an option. `unmet` has the keys of each option that the source lacks."""
    messages = {
        "--drop-keys": _no_key_to_drop,
        "--validation-keys": _no_key_to_validate,
        "--synthetic-captions": _no_key_of_captions,
    }
    for option, keys in given.items():
        if len(unmet.get(option, ())) == len(keys):
            raise ConfigError(messages[option](args, keys, source.location))


def _no_key_to_drop(args, dropped, location):
    keys = f"the {len(dropped):,} keys of --drop-keys {args.drop_keys}, {next(iter(dropped))!r}"
    return f"none of {keys} first, is in {location}; {_OTHER_KEYS} --drop-keys"


def _no_key_to_validate(args, keys, location):
    given = f"the {len(keys):,} keys of --validation-keys {args.validation_keys}, {min(keys)!r} first"
    whose = "is an image" if args.frames is None else "names a file (its key without #NUMBER)"
    return f"none of {given}, {whose} of {location} that is kept; {_OTHER_KEYS} --validation-keys"


def _no_key_of_captions(args, _, location):
    lack = f"no image has a caption in --synthetic-captions {args.synthetic_captions}: it has no key of {location}"
    return f"{lack}; {_OTHER_KEYS} --synthetic-captions"


_OTHER_KEYS = "give keys as rfjax inspect shows them, and another --out if shards were made, or leave out"


def _check_keys_known(args, shards, ours, location) -> None:
    """Raises `RfjaxError` if the shards have no caption of --synthetic-captions or no image of --validation-keys, or if
    --drop-keys left out no image. Prints how many images --drop-keys left out, and notes a --synthetic-column without a
    caption and a --drop-keys without keys."""
    from rfjax.prepare.part import listed

    if args.synthetic_captions is not None and not any(
        unit["synthetic"] for facts in shards for unit in facts["units"]
    ):
        raise RfjaxError(_no_key_of_captions(args, None, location))
    if args.synthetic_column is not None and not any(unit["synthetic"] for facts in shards for unit in facts["units"]):
        say(f"no image of {location} has a caption in --synthetic-column {args.synthetic_column!r}")
    if ours.validation_keys and not any(unit["split"] == "validation" for facts in shards for unit in facts["units"]):
        raise RfjaxError(_no_key_to_validate(args, ours.validation_keys, location))
    if not ours.dropped_keys:
        if args.drop_keys is not None:
            say(f"--drop-keys {args.drop_keys} has no keys")
        return
    reasons = set(map(listed, ours.dropped_keys.values()))
    met = sum(facts["dropped"].get(reason, 0) for facts in shards for reason in reasons)
    if not met:
        raise RfjaxError(_no_key_to_drop(args, ours.dropped_keys, location))
    left = f"{met:,} image was" if met == 1 else f"{met:,} images were"
    say(f"{left} left out by the {len(ours.dropped_keys):,} keys of --drop-keys")


def _scaling(args, made) -> dict:
    """Returns the latents' `shift` and `scale`, and `scaling`, which names their origin.

    Raises `ConfigError` if --latent-scaling names no folder, or a corpus of another autoencoder.
    """
    from rfjax.data.prepared import manifest
    from rfjax.prepare.merge import SCALINGS

    if args.latent_scaling in SCALINGS:
        return {name: made["latents"][name] for name in ("shift", "scale")} | {"scaling": args.latent_scaling}
    if not Path(args.latent_scaling).is_dir():
        choices = "autoencoder, measured or the folder of a prepared corpus"
        raise ConfigError(f"--latent-scaling is {args.latent_scaling!r}; it must be {choices}")
    other = manifest.read(args.latent_scaling)
    theirs, ours = (models["vae"]["sha256"] for models in (other.facts["models"]["parts"], made["models"]))
    if theirs != ours:
        raise ConfigError(
            f"--latent-scaling is {args.latent_scaling}, a corpus with latents of another autoencoder (SHA-256 "
            f"{theirs[:12]}, here {ours[:12]}); give a corpus of this autoencoder"
        )
    return {"shift": other.shift, "scale": other.scale, "scaling": f"as {other.folder.resolve().name}"}


def _check_scaled_alike(folder, scaling) -> None:
    """Raises `ConfigError` if the folder is a finished corpus with another scaling: runs may already have used it."""
    from rfjax.data.prepared import manifest_facts

    path = folder / manifest_facts.NAME
    there = manifest_facts.read(path)["latents"] if path.is_file() else {}
    changed = [name for name in ("scaling", "shift", "scale") if there and there[name] != scaling[name]]
    if "scaling" in changed or (changed and scaling["scaling"] not in ("measured", "autoencoder")):
        given = f"{folder} is finished, with latents scaled by --latent-scaling {there['scaling']}"
        remedy = f"give another --out, or remove {path}: runs that saw it then refuse to go on"
        raise ConfigError(f"{given}, which is now {scaling['scaling']}; {remedy}")


def _load_models(args, ours):
    """Loads the frozen models.

    Raises `ConfigError` for sides in pixels that the autoencoder's reduction does not divide, for a number of frames
    that the autoencoder would cut or pad, and for CLIP encoders of different lengths.
    """
    from rfjax.data.prepared import frozen, manifest

    models = frozen.load(
        args.models,
        encoders=split_names(args.encoders, "--encoders"),
        autoencoder=ours.autoencoder or frozen.AUTOENCODER,
        t5_tokens=ours.t5_tokens,
        text_settings=ours.text_settings,
        compute_dtype=ours.compute_dtype,
        device=args.device or "",
        variant=args.models_variant or "",
        say=say,
    )
    manifest.layout(models.encoders)  # raises if no network could take these encoders side by side
    for height, width in ours.buckets:
        if height % models.reduction or width % models.reduction:
            given = (
                f"--buckets has {height}x{width}; both sides" if args.buckets is not None else f"--size is {height}; it"
            )
            raise ConfigError(f"{given} must be divisible by {models.reduction}, the autoencoder's reduction")
    if ours.clips is not None and (rest := (ours.clips.frames - 1) % models.time_reduction):
        fewer, more = ours.clips.frames - rest, ours.clips.frames - rest + models.time_reduction
        counts = f"1 + {models.time_reduction}k frames, and would cut or pad others"
        good = " or ".join(str(count) for count in (fewer, more) if count > 1)
        raise ConfigError(f"--frames is {ours.clips.frames}; the autoencoder takes {counts}: give {good}")
    return models


def _models_facts(models) -> dict:
    """Returns what recipe.json stores about the frozen models: identity, text encoders, form of the latents."""
    latents = {"reduction": models.reduction, "channels": models.latent_channels}
    latents |= {"shift": models.shift, "scale": models.scale}
    if models.time_reduction > 1:
        latents["time_reduction"] = models.time_reduction
    return {"models": models.facts, "encoders": [asdict(encoder) for encoder in models.encoders], "latents": latents}


def _buckets(args):
    from rfjax.prepare.recipe import parse_buckets

    if args.buckets is None:
        side = SIZE if args.size is None else args.size
        return ((side, side),)
    if args.size is not None:
        both = f"--size={args.size} and --buckets={args.buckets} both say what an image becomes"
        raise ConfigError(f"{both}; leave out --size: a square is a bucket, too")
    return parse_buckets(args.buckets)
