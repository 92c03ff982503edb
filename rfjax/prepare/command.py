"""`rfjax prepare`: its arguments, the order of its work, and what it says on the way."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rfjax.errors import ConfigError, RfjaxError

LIBRARIES = ("rfjax", "numpy", "pillow", "torch", "transformers", "diffusers", "array_record")
SAID_EVERY = 10.0  # seconds


def add_arguments(parser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a folder of images, .tar files, .parquet files, or tfds:NAME; KIND:WHERE names its kind")
    parser.add_argument("--out", required=True, metavar="DIR", help="the corpus's folder; the same command goes on where it was")
    parser.add_argument("--models", required=True, metavar="DIR", help="vae, text_encoder, tokenizer, text_encoder_2 ... as diffusers keeps SD3")
    models = parser.add_argument_group("models")
    models.add_argument("--encoders", default="", metavar="NAME,...", help="text encoders: clip_l, clip_g, t5 (default: all that DIR has)")
    models.add_argument("--models-variant", default="", metavar="NAME", help="of the weight files, as fp16 in model.fp16.safetensors")
    models.add_argument("--t5-tokens", type=int, default=77, metavar="N", help="diffusers' max_sequence_length (default 77, the paper's)")
    models.add_argument("--batch-size", type=int, default=32, metavar="N", help="images and captions encoded at once (default 32)")
    models.add_argument("--compute-dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the models (default float32)")
    models.add_argument("--device", default="", help="PyTorch's name of it (default: cuda where there is one, else cpu)")
    pictures = parser.add_argument_group("images")
    pictures.add_argument("--size", type=int, default=256, metavar="PIXELS", help="side of the centred square (default 256)")
    pictures.add_argument("--resample", choices=("lanczos", "bicubic"), default="lanczos", help="PIL's filter (default lanczos)")
    pictures.add_argument("--filter", action="append", default=[], metavar="COMPARISON", help="keep what holds, as 'aesthetic>=5' or 'short_side>=256'; may be given several times")
    pictures.add_argument("--drop-keys", metavar="FILE", help="keys of images to leave out, one a line")
    pictures.add_argument("--corrupt-limit", type=float, default=0.1, metavar="SHARE", help="of a shard's images, beyond which it stops (default 0.1)")
    captions = parser.add_argument_group("captions")
    captions.add_argument("--caption-column", metavar="NAME", help="default: caption, or for tfds what it has")
    captions.add_argument("--synthetic-column", metavar="NAME", help="captions made by a model, mixed with the others in training")
    captions.add_argument("--label-column", metavar="NAME", help="a class to make captions of; `folder` for images sorted by class")
    captions.add_argument("--class-names", metavar="FILE", help="names of each class, as LOC_synset_mapping.txt or JSON")
    captions.add_argument("--template", default="a photo of a {}", help='default: "a photo of a {}"')
    output = parser.add_argument_group("output")
    output.add_argument("--precision", choices=("float16", "float32"), default="float16", help="of stored latents and text features (default float16)")
    output.add_argument("--pooled-precision", choices=("float16", "float32"), default="float32", help="of stored pooled vectors (default float32)")
    output.add_argument("--latent-scaling", choices=("autoencoder", "measured"), default="autoencoder", help="shift and scale: the autoencoder's own, or the corpus's mean and deviation")
    output.add_argument("--validation-share", type=float, default=0.01, metavar="SHARE", help="of the images, by a hash of their keys (default 0.01)")
    output.add_argument("--shard-size", type=int, default=1024, metavar="N", help="images a shard; a tar is a shard of its own (default 1024)")
    work = parser.add_argument_group("work")
    work.add_argument("--task", metavar="I/N", help="make only every Nth shard, from the Ith (0 to N-1), and no manifest: for N processes or hosts")
    work.add_argument("--merge", action="store_true", help="make no shard; write the manifest of those that the tasks made")
    work.add_argument("--threads", type=int, default=0, metavar="N", help="that decode images (default: one a core)")


def run(args) -> int:
    """Makes the shards that are missing and, unless it is one task of several, the manifest."""
    from rfjax.prepare import frozen, merge, recipe, shard

    own = parse_task(args.task)
    if args.task and args.merge:
        raise ConfigError("--task makes shards and --merge the manifest of them all; give one of the two")
    source, ours = plan(args)
    folder, parts = Path(args.out), len(source.sizes)
    models = frozen.load(
        args.models,
        encoders=[name for name in args.encoders.split(",") if name],
        t5_tokens=ours.t5_tokens,
        compute_dtype=ours.compute_dtype,
        device=args.device,
        variant=args.models_variant,
        say=_say,
    )
    if ours.image_size % models.reduction:
        raise ConfigError(f"--size is {ours.image_size}; it must be divisible by {models.reduction}, the autoencoder's reduction")
    side = ours.image_size // models.reduction
    hashes = {name: facts["sha256"] for name, facts in models.facts.items()}
    about = {"kind": source.kind, "listing": source.listing, "parts": parts}
    decides = {"recipe": ours.facts(), "source": about, "models": hashes}
    recipe_hash = recipe.settle(folder, decides)
    progress = Progress(source.sizes, own)
    done = {}
    for part in range(parts):
        name = shard.shard_name(part, parts)
        facts = shard.finished(folder, name, recipe_hash)
        if facts is None and part % own[1] == own[0] and not args.merge:
            progress.start(part, name)
            facts = _made(shard, source, part, folder, ours, recipe_hash, models, args.threads, progress)
            progress.made(part)
        else:
            progress.skip(part)
        done[name] = facts
    if args.task:
        _say(f"task {args.task} is done; when all are: the same command with --merge instead of --task")
        return 0
    missing = [name for name, facts in done.items() if facts is None]
    if missing:
        raise RfjaxError(f"{len(missing)} of {parts} shards are not there, {missing[0]} first; give the command without --merge to make them")
    found = merge.write_manifest(
        folder,
        list(done.values()),
        recipe=ours.facts(),
        source={**about, "location": source.location},
        models={"folder": str(Path(args.models).absolute()), "variant": args.models_variant, "parts": models.facts, "made_with": made_with(models, args)},
        encoders=models.encoders,
        latent_shape=(side, side, models.latent_channels),
        shift=models.shift,
        scale=models.scale,
        scaling=args.latent_scaling,
    )
    print("\n".join(summary(found)))
    return 0


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
    columns = captions.CaptionColumns(
        original=args.caption_column or default,
        synthetic=args.synthetic_column,
        label=label,
        class_names=names,
        template=args.template,
    )
    try:
        dropped = Path(args.drop_keys).read_text(encoding="utf-8").splitlines() if args.drop_keys else []
    except OSError as error:
        raise ConfigError(f"--drop-keys {args.drop_keys} cannot be read: {error.strerror}") from None
    return source, Recipe(
        image_size=args.size,
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
        dropped_keys=frozenset(key for key in dropped if key),
    )


def parse_task(text: str | None) -> tuple[int, int]:
    """(I, N) of `I/N`; (0, 1) of none."""
    if text is None:
        return 0, 1
    try:
        task, count = map(int, text.split("/"))
        if not 0 <= task < count:
            raise ValueError
    except ValueError:
        raise ConfigError(f"--task is {text!r}; it is I/N with I from 0 to N-1, as 0/8") from None
    return task, count


def _made(shard, source, part, folder, ours, recipe_hash, models, threads, progress):
    try:
        return shard.make_shard(
            source, part, folder, recipe=ours, recipe_hash=recipe_hash, models=models,
            threads=threads or os.cpu_count() or 1, tell=progress.tell,
        )  # fmt: skip
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise RfjaxError(f"the models do not fit in the device's memory: {error}; lower --batch-size, or use --compute-dtype=bfloat16") from None


def made_with(models, args) -> dict:
    """The versions that the manifest names: another PIL or PyTorch may round another way."""
    found = {"python": platform.python_version(), "device": args.device or "default"}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from its source, or not needed
            pass
    return found


class Progress:
    """Says how far it is, how fast, and how long it will take: a line every few seconds."""

    def __init__(self, sizes, own):
        self._sizes = list(sizes)
        self._total = sum(size for part, size in enumerate(sizes) if part % own[1] == own[0])
        self._own, self._began, self._said = own, time.monotonic(), time.monotonic()
        self._skipped = self._done = 0.0  # units of the sizes, before and since the start
        self._kept = self._dropped = 0
        self._part = (0, 0)
        self._name = ""

    def skip(self, part: int) -> None:
        if part % self._own[1] == self._own[0]:
            self._total -= self._sizes[part]

    def start(self, part: int, name: str) -> None:
        self._name, self._part = name, (0, 0)

    def tell(self, done: float | int, kept: int, dropped: int) -> None:
        self._part = (kept, dropped)
        if time.monotonic() - self._said >= SAID_EVERY:
            self._line(done)

    def made(self, part: int) -> None:
        kept, dropped = self._part
        self._kept, self._dropped, self._done = self._kept + kept, self._dropped + dropped, self._done + self._sizes[part]
        self._part = (0, 0)
        self._line(0.0)

    def _line(self, done):
        self._said = time.monotonic()
        seconds = self._said - self._began
        kept, dropped = self._kept + self._part[0], self._dropped + self._part[1]
        through = (self._done + done) / self._total if self._total else 1.0
        left = f", {_duration(seconds * (1 - through) / through)} left" if 0 < through < 1 else ""
        _say(f"{self._name}: {kept:,} images kept, {dropped:,} dropped, {(kept + dropped) / max(seconds, 1e-9):.3g} images/s, {100 * through:.0f} %{left}")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"


def _say(text: str) -> None:
    print(f"rfjax: {text}", file=sys.stderr, flush=True)


def summary(found) -> list[str]:
    """What a prepared corpus holds, for a console; the last lines are the config that trains on it."""
    from rfjax.data import manifest

    facts = found.facts
    (tokens, size), pooled, slots = manifest.layout(found.encoders)
    height, width, channels = found.latent_shape
    stored = sum(file["bytes"] for shard in facts["shards"] for split in shard["splits"].values() for file in split["files"].values())
    train, validation = (facts["splits"][split] for split in ("train", "validation"))
    statistics = facts["latents"]["statistics"]
    lines = [
        f"{found.folder}: {train['images']:,} training and {validation['images']:,} validation images, "
        f"{train['captions'] + validation['captions']:,} captions stored ({facts['captions']['original']:,} original, "
        f"{facts['captions']['synthetic']:,} synthetic in use), {len(facts['shards'])} shards, {stored / 1e9:.3g} GB",
        f"source: {facts['source']['kind']} {facts['source']['location']}",
        f"latents: {height}x{width}x{channels}, shift {found.shift!r}, scale {found.scale!r} ({facts['latents']['scaling']})",
    ]
    for split, about in statistics.items():
        mean, std = about["all"]["mean"], about["all"]["std"]
        lines.append(f"  {split}: mean {mean:.4f}, deviation {std:.4f} as encoded; a network sees {(mean - found.shift) * found.scale:.4f} and {std * found.scale:.4f}")
    for encoder in facts["text"]["encoders"]:
        model = facts["models"]["parts"][encoder["name"]]
        cut = facts["truncated"].get(encoder["name"], 0)
        lines.append(f"{encoder['name']}: {model['class']} {model['sha256'][:12]}, {encoder['tokens']} tokens of {encoder['channels']}, pooled {encoder['pooled'] or 'none'}; {cut:,} captions cut off")
    for title in ("dropped", "converted"):
        if facts[title]:
            lines.append(f"{title}: " + ", ".join(f"{count:,} {reason}" for reason, count in sorted(facts[title].items(), key=lambda item: -item[1])))
    lines += [
        "to train on it: --config.data.corpus=prepared "
        f"--config.data.prepared.path={found.folder} --config.data.image_size={height} --config.data.channels={channels} "
        f"--config.data.context_tokens={tokens} --config.data.context_size={size} --config.data.pooled_size={pooled} "
        "--config.evaluation.geneval.prompts_per_task=0 "
        f"--config.evaluation.validation.examples={min(validation['images'], 512)}"
    ]
    return lines
