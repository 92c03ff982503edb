"""`rfjax score`: its arguments, and the table of metrics. A metric imports torch only when it is measured."""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypedDict

from rfjax.console import printable_lines
from rfjax.errors import ConfigError
from rfjax.inputs.json_files import read_json
from rfjax.inputs.paths import as_path


class MetricResult(NamedTuple):
    """The result of measuring a metric: the lines to print, and the content of its evaluation record."""

    lines: Sequence[str]
    evaluation: str
    corpus: str
    values: object  # a GenEvalScore, or a sequence of `records.Measured`
    extra: Mapping[str, object]


class Metric(NamedTuple):
    """A row of the table of metrics."""

    text: str
    needs: tuple[str, ...]  # options that must be given
    takes: tuple[str, ...]  # options that may be given
    packages: tuple[str, ...]
    measure: Callable  # (arguments, out) -> MetricResult
    writes: bool = True  # whether it leaves files in `out`


OPTIONS = {
    "detector": dict(
        metavar="PATH",
        type=as_path("--detector"),
        help="Mask2Former: mmdet's .pth, or a transformers folder; or any COCO detector's folder",
    ),
    "clip": dict(metavar="DIR", type=as_path("--clip"), help="CLIP: a transformers folder"),
    "metadata": dict(
        metavar="FILE.jsonl",
        type=as_path("--metadata"),
        help="GenEval's evaluation_metadata.jsonl, to check the folder against",
    ),
    "captions": dict(
        metavar="FILE.json",
        type=as_path("--captions"),
        help="JSON object: image to caption (default: GenEval's layout, or .txt files)",
    ),
    "reference": dict(
        metavar="PATH",
        type=as_path("--reference"),
        help="real images: a folder, or a file of their features, .npy or .npz",
    ),
    "inception": dict(
        metavar="FILE.pth",
        type=as_path("--inception"),
        help="FID's Inception: pt_inception-2015-12-05-6726825d.pth",
    ),
    "i3d": dict(metavar="FILE.pt", type=as_path("--i3d"), help="FVD's I3D: i3d_pretrained_400.pt"),
    "vjepa": dict(metavar="DIR", type=as_path("--vjepa"), help="V-JEPA 2 with its probe: a transformers folder"),
    "frames": dict(
        type=int, metavar="N", help="first N frames of each clip (default: all; then clips need equally many)"
    ),
    "fps": dict(metavar="RATE", help="frames a second, such as 8 or 30000/1001 (default: the pictures as stored)"),
    "vqa": dict(metavar="DIR", type=as_path("--vqa"), help="a vision-language model: a transformers folder"),
    "questions": dict(
        metavar="FILE", type=as_path("--questions"), help="the benchmark's file: geneval2_data.jsonl, dpg_bench.csv"
    ),
    "compute_dtype": dict(choices=("float32", "bfloat16", "float16"), help="the model's type (default float32)"),
    "images_per_prompt": dict(
        type=int, metavar="N", help="images that each prompt should have (default: the largest image number + 1)"
    ),
    "allow_missing": dict(action="store_true", help="score the images there are, and list the missing ones"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `rfjax score`."""
    metrics = "; ".join(f"{name}: {metric.text}" for name, metric in METRICS.items())
    images, out = "the images or clips; for a distance, also a file of their features", "results and finished work"
    parser.add_argument("folder", metavar="FOLDER", type=as_path("FOLDER"), help=images)
    parser.add_argument("--metric", required=True, choices=tuple(METRICS), help=metrics)
    for name, settings in OPTIONS.items():
        users = ", ".join(metric for metric, row in METRICS.items() if name in row.needs + row.takes)
        parser.add_argument(option(name), **{**settings, "help": f"{settings['help']} ({users})"})
    out += " (default: FOLDER.METRIC beside FOLDER)"
    parser.add_argument("--out", metavar="DIR", type=as_path("--out"), help=out)
    parser.add_argument(
        "--batch-size", type=int, default=4, metavar="N", help="images that the network sees at once (default 4)"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    group = parser.add_argument_group(
        "the record",
        "writes the score into a run's folder, and so into the results table; "
        "images made by `rfjax sample --prompts` need --run alone",
    )
    group.add_argument("--run", metavar="RUN", type=as_path("--run"), help="the run whose checkpoint made the images")
    group.add_argument("--step", type=int, metavar="N", help="the checkpoint's step")
    group.add_argument("--weights", choices=("ema", "raw"), help="default: ema")
    group.add_argument("--sampler", metavar="NAME", help="the sampler, for example euler-50-cfg5-shift3")
    group.add_argument("--seed", type=int, metavar="N", help="the seed of the images' noise")
    group.add_argument("--corpus", metavar="NAME", help="name of the prompts or the reference (default: the metric's)")


def run(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Scores the folder, prints the score and writes its record, if --run is given; returns 0."""
    from rfjax.outputs import check_output_folder
    from rfjax.scorers import attach
    from rfjax.scorers.rows import FILES, made_here

    metric = METRICS[args.metric]
    _check(args, metric)
    checkpoint = _checkpoint(args)
    began = time.monotonic()
    folder = args.folder.absolute()
    beside = folder.with_name(f"{folder.name}.{args.metric}")
    out = beside if args.out is None else args.out
    if metric.writes:
        reads = [args.folder] + ([] if args.reference is None else [args.reference])
        check_output_folder(out, "--out", reads=reads, files=FILES, made_here=made_here)
    _check_packages(args, metric)
    result = metric.measure(args, out)
    print("\n".join(map(printable_lines, result.lines)))
    if checkpoint is not None:
        key = checkpoint, result.evaluation, result.corpus if args.corpus is None else args.corpus
        path = attach.attach(*key, result.values, seconds=time.monotonic() - began, extra=result.extra)
        print(f"record: {path}")
    return 0


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_packages(args, metric):
    """Raises `ConfigError` if a package that the metric needs is not installed."""
    lacking = ", ".join(name for name in metric.packages if importlib.util.find_spec(name) is None)
    if lacking:
        raise ConfigError(f"--metric={args.metric} lacks the packages {lacking}; pip install 'rfjax[metrics]'")


def _check(args, metric):
    """Raises `ConfigError` if an option that the metric needs is missing, for an option that the metric does not take,
    for a batch size below 1, and for a folder that does not exist."""
    for name in metric.needs:
        if getattr(args, name) is None:
            raise ConfigError(f"--metric={args.metric} needs {option(name)}: {OPTIONS[name]['help']}")
    for name in OPTIONS:
        value = getattr(args, name)
        if value is not None and value is not False and name not in metric.needs + metric.takes:
            raise ConfigError(f"--metric={args.metric} does not take {option(name)}; leave it out")
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size is {args.batch_size}; it must be at least 1")
    files = "reference" in metric.needs  # a file of features may replace a folder
    for path in (args.folder, *([args.reference] if files else [])):
        if not (path.exists() if files else path.is_dir()):
            raise ConfigError(f"no folder at {path}; give the folder of the images")


IMAGE_FIELDS = {"step": int, "weights": str, "sampler": str, "seed": int}  # what a record says about the images


def _checkpoint(args):
    """Returns the checkpoint that made the images, after checking that it exists; None without --run.

    What the options do not give comes from `generation.json`, which `rfjax sample --prompts` writes beside the images.
    If neither gives the weights, they are ema. Raises `ConfigError` if both give a field and differ, or if neither
    gives the step, the sampler or the seed.
    """
    from rfjax.evaluation.image_folders.geneval_folder import GENERATION
    from rfjax.scorers import attach

    given = {name: getattr(args, name) for name in IMAGE_FIELDS if getattr(args, name) is not None}
    if args.run is None:
        if given:
            raise ConfigError(f"--{next(iter(given))} describes a record; give --run as well, or leave it out")
        return None
    made = _generation(args.folder)
    for name, value in given.items():
        if made.get(name, value) != value:
            raise ConfigError(
                f"--{name} is {value!r}, and the images' {GENERATION} says {made[name]!r}; leave --{name} out"
            )
    fields = {"weights": "ema"} | {name: made[name] for name in IMAGE_FIELDS if name in made} | given
    for name in IMAGE_FIELDS:
        if name not in fields:
            raise ConfigError(f"--run needs --{name}: a record says which checkpoint, sampler and seed made the images")
    if fields["sampler"] in ("", "-"):
        raise ConfigError(f"--sampler is {fields['sampler']!r}; give a name, for example euler-50-cfg5-shift3")
    checkpoint = attach.Checkpoint(args.run, **fields)
    name, _ = attach.run_facts(checkpoint)
    if made.get("run", name) != name:
        raise ConfigError(
            f"--run is {name!r}, and the run {made['run']!r} made the images in {args.folder}; give that run"
        )
    return checkpoint


def _generation(folder):
    """Reads `generation.json` in a folder of images; returns {} if there is none."""
    from rfjax.evaluation.image_folders.geneval_folder import GENERATION

    path = folder / GENERATION
    if not path.is_file():
        return {}
    shape = TypedDict("Generation", {"run": str, **IMAGE_FIELDS})
    facts = read_json(path, shape, remedy="remove it, and give --step, --sampler and --seed", error=ConfigError)
    return {name: facts[name] for name in ("run", *IMAGE_FIELDS)}


def _geneval(args, out):
    from rfjax.evaluation.geneval.files import summary_path, summary_text
    from rfjax.scorers import attach, clip, coco_boxes, geneval_images, torch_device
    from rfjax.scorers.colors import ColorClassifier

    device = torch_device.choose(args.device)
    detector = coco_boxes.load(args.detector, device)
    classifier = ColorClassifier(clip.load(args.clip, device))
    scored = geneval_images.score_folder(
        args.folder,
        detector,
        classifier,
        out,
        metadata=args.metadata,
        batch_size=args.batch_size,
        images_per_prompt=args.images_per_prompt,
        allow_missing=args.allow_missing,
    )
    summary, results = scored.summary, out / geneval_images.RESULTS
    lines = [scored.title, summary_text(summary)]
    lines += [f"NOT the official protocol: {deviation}" for deviation in scored.deviations]
    lines += [f"results: {results}", f"summary: {summary_path(results)}"]
    extra = {
        "title": scored.title,
        "deviations": list(scored.deviations),
        "metadata_sha256": summary["metadata_sha256"],
        "prompt_scores": scored.prompt_scores,
        "images_per_prompt": summary["images_per_prompt"],
        "left_out": summary["left_out"],
        "models": {
            "detector": attach.file_revision(args.detector, detector.sha256) | {"weights": detector.kind},
            "clip": attach.file_revision(args.clip, classifier.clip.sha256) | {"tower": classifier.clip.name},
        },
    }
    corpus = "geneval" if summary["metadata_official"] else f"geneval-{summary['metadata_sha256'][:8]}"
    return MetricResult(lines, scored.evaluation, corpus, scored.score, extra)


def _clip_score(args, out):
    from rfjax.evaluation.records import Measured
    from rfjax.scorers import attach, clip, clip_score, torch_device
    from rfjax.scorers.clustered import mean_and_stderr

    captions, left_out = clip_score.captions_of(args.folder, args.captions)
    model = clip.load(args.clip, torch_device.choose(args.device))
    scores = clip_score.score_folder(args.folder, model, captions, out, batch_size=args.batch_size)
    mean, stderr = mean_and_stderr(scores, list(captions.values()))
    known = f" +- {stderr:.4f} (standard error over {len(set(captions.values()))} captions)"
    lines = [f"CLIP score {mean:.4f}{known if math.isfinite(stderr) else ''}, {len(scores)} images"]
    if model.name != clip_score.TOWER:
        lines.append(f"NOT the metric's own model: the CLIP is {model.name}, not {clip_score.TOWER}")
    evaluation = _evaluation("clip-score", model.name == clip_score.TOWER)
    models = {"clip": attach.file_revision(args.clip, model.sha256) | {"tower": model.name}}
    extra = {"models": models, "prefix": clip_score.PREFIX, "weight": clip_score.WEIGHT, "left_out": left_out}
    value = Measured.within(metric=evaluation.replace("-", "_"), value=mean, stderr=stderr, n=len(scores))
    return MetricResult(lines, evaluation, "captions" if args.captions is None else args.captions.stem, [value], extra)


def _evaluation(metric, standard):
    """Returns the evaluation's name. A model other than the metric's own gives another name, and so another column."""
    return metric if standard else f"{metric}-other-model"


def _embedder(args, kind, folders):
    """Returns the function that computes a distance's features, a description of its network, and the function that
    lists what is in a folder."""
    from rfjax.scorers import clip, distances, embedders, folder_features, inception, torch_device

    device = torch_device.choose(args.device)
    if kind in distances.OF_CLIPS:
        return _clip_embedder(args, kind, folders, device)
    images = folder_features.list_images
    if kind == "fid-inception":
        network = inception.load(args.inception, device)
        name = distances.MODELS[kind] if network.official else "other"
        return embedders.inception(network), f"{kind} {name} {network.sha256}", images
    network = clip.load(args.clip, device)
    return embedders.clip(network, kind), f"{kind} {network.name} {network.sha256}", images


def _clip_embedder(args, kind, folders, device):
    """Returns the same as `_embedder`, for clips. The network's description also has the number of frames and their
    rate, so that features of clips of different lengths are never compared."""
    from rfjax.scorers import i3d, video_embedders, videos, vjepa

    reader = videos.Reader.of_options(args.frames, args.fps)
    frames = len(reader.read(videos.clips_of(folders[0]).items[0]))
    network = i3d.load(args.i3d, device) if kind == "fvd" else vjepa.load(args.vjepa, device)
    network.check_frames(frames)
    rate = "" if reader.rate is None else f" at {reader.rate} a second"
    model = f"{kind} {network.name} {network.sha256} {frames} frames{rate}"
    return video_embedders.of_clips(network, kind, reader, frames), model, videos.clips_of


def _distance(args, out):
    from rfjax.evaluation.records import Measured
    from rfjax.scorers import distances, folder_features

    kind, network = args.metric, METRICS[args.metric].takes[0]  # the option that names the features' network
    folders = [path for path in (args.folder, args.reference) if path.is_dir()]
    if folders and getattr(args, network) is None:
        needed = f"{option(network)} for the features of {folders[0]}"
        raise ConfigError(f"--metric={kind} needs {needed}: {OPTIONS[network]['help']}")
    embed, model, list_items = _embedder(args, kind, folders) if folders else (None, "", folder_features.list_images)
    distance = distances.measure(
        *(kind, args.folder, args.reference, out),
        **{"embed": embed, "model": model, "batch_size": args.batch_size, "list_items": list_items},
    )
    found, real, what = distance.images, distance.reference, "clips" if kind in distances.OF_CLIPS else "images"
    against = f"{real.n or 'an unknown number'} of {args.reference}"
    lines = [f"{kind} {distance.value:.6g}: {found.n} {what} against {against}"]
    if kind not in distances.OF_FEATURES:
        lines.append(f"it is biased by the number of {what}, {found.n}: compare it only at equal numbers")
        if distance.singular:
            numbers = found.values.shape[1]
            lines.append(f"{found.n} {what} for features of {numbers} numbers: their covariance is singular")
    if not distance.model:
        lines.append("the files do not say which model made their features")
    if not distance.standard:
        lines.append(f"NOT the metric's own model: {distance.model} made the features, not {distances.MODELS[kind]}")
    extra = {
        "images": folder_features.facts(found),
        "reference": folder_features.facts(real) | {"name": args.reference.name},
        "models": {"features": distance.model or None},
    }
    evaluation = _evaluation(kind, distance.standard)
    values = [Measured(metric=evaluation.replace("-", "_"), value=distance.value, n=found.n)]
    return MetricResult(lines, evaluation, args.reference.absolute().name, values, extra)


def _answers(args, out):
    from rfjax.scorers import vqa_measure

    return MetricResult(*vqa_measure.measure_answers(args, out))


def _pick_score(args, out):
    from rfjax.scorers import vqa_measure

    return MetricResult(*vqa_measure.measure_pick_score(args, out))


def _compbench(args, out):
    from rfjax.evaluation.image_folders import compbench
    from rfjax.evaluation.records import Measured

    categories = compbench.read(args.folder)
    lines, values = [f"{'category':<14}{'score':>9}{'std. error':>12}{'images':>8}"], []
    for name, (score, stderr, n, _) in categories.items():
        lines.append(f"{name:<14}{score:>9.4f}{f'{stderr:.4f}' if math.isfinite(stderr) else '-':>12}{n:>8}")
        values.append(Measured.within(metric="compbench", item=name, value=score, stderr=stderr, n=n))
    prompts = {name: category.prompts for name, category in categories.items()}
    return MetricResult(lines, "compbench", "t2i-compbench", values, {"prompts": prompts})


TORCH = ("torch", "transformers", "PIL")
GENEVAL = ("metadata", "images_per_prompt", "allow_missing")
REFERENCE = ("reference",)
CLIPS = ("frames", "fps")
ASKED, ANSWERED = ("vqa", "questions"), ("captions", "compute_dtype", "allow_missing")
METRICS = {
    "geneval": Metric("GenEval of images in its layout", ("detector", "clip"), GENEVAL, TORCH, _geneval),
    "clip-score": Metric("CLIPScore of images and their captions", ("clip",), ("captions",), TORCH, _clip_score),
    "vqascore": Metric("VQAScore of images with captions", ("vqa",), ("captions", "compute_dtype"), TORCH, _answers),
    "geneval2": Metric("GenEval 2's questions", ASKED, ANSWERED, TORCH, _answers),
    "dpg": Metric("DPG-Bench's questions", ASKED, ANSWERED, TORCH, _answers),
    "pickscore": Metric("PickScore of images and their prompts", ("clip",), ("captions",), TORCH, _pick_score),
    "fid-inception": Metric("FID on Inception's features", REFERENCE, ("inception",), TORCH, _distance),
    "fid-clip": Metric("Frechet distance of CLIP's features", REFERENCE, ("clip",), TORCH, _distance),
    "cmmd": Metric("CMMD of CLIP's features", REFERENCE, ("clip",), TORCH, _distance),
    "fvd": Metric("FVD of clips, on I3D's features", REFERENCE, ("i3d", *CLIPS), TORCH, _distance),
    "mmd-vjepa2": Metric("JEDi's distance of V-JEPA 2's features", REFERENCE, ("vjepa", *CLIPS), TORCH, _distance),
    "compbench": Metric("T2I-CompBench's scores, as its scorers left them", (), (), (), _compbench, False),
}
