"""`rfjax score`: its arguments, and what they set going. Torch is imported when a score is to be made."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rfjax.errors import ConfigError


class MetricResult(NamedTuple):
    """What a metric gives: the lines to print, and what a record of it says."""

    lines: Sequence[str]
    evaluation: str
    corpus: str
    values: object  # a GenEvalScore, or a sequence of `records.Measured`
    extra: Mapping[str, object]


class Metric(NamedTuple):
    """A row of the table of metrics."""

    text: str
    needs: tuple[str, ...]  # options that must be given
    takes: tuple[str, ...]  # options that may be
    packages: tuple[str, ...]
    measure: Callable  # (arguments, out) -> MetricResult


OPTIONS = {
    "detector": dict(metavar="PATH", help="Mask2Former: mmdet's .pth, or a transformers folder"),
    "clip": dict(metavar="DIR", help="CLIP: a transformers folder"),
    "metadata": dict(
        metavar="FILE.jsonl", help="GenEval's evaluation_metadata.jsonl, which the folder is checked against"
    ),
    "captions": dict(
        metavar="FILE.json", help="captions by image, a JSON object (default: GenEval's layout, or a .txt beside each)"
    ),
    "reference": dict(metavar="PATH", help="real images: a folder, or a file of their features, .npy or .npz"),
    "inception": dict(metavar="FILE.pth", help="FID's Inception: pt_inception-2015-12-05-6726825d.pth"),
    "images_per_prompt": dict(type=int, metavar="N", help="expected (default: the largest image number + 1)"),
    "allow_missing": dict(action="store_true", help="score what is there, and report what is not"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rfjax score`."""
    parser.add_argument("folder", metavar="FOLDER", help="the images (of a distance, a file of their features, too)")
    parser.add_argument(
        "--metric", required=True, choices=tuple(METRICS), help="; ".join(f"{n}: {m.text}" for n, m in METRICS.items())
    )
    for name, settings in OPTIONS.items():
        users = ", ".join(metric for metric, row in METRICS.items() if name in row.needs + row.takes)
        parser.add_argument(option(name), **{**settings, "help": f"{settings['help']} ({users})"})
    parser.add_argument(
        "--out", metavar="DIR", help="results, and what has been done so far (default: FOLDER.METRIC beside it)"
    )
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="images at once (default 4)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    group = parser.add_argument_group(
        "the record",
        "puts the score into a run's folder, from where it enters the results table; "
        "images made by `rfjax sample --prompts` need --run alone",
    )
    group.add_argument("--run", metavar="RUN", help="the run whose checkpoint made the images")
    group.add_argument("--step", type=int, metavar="N", help="the checkpoint")
    group.add_argument("--weights", choices=("ema", "raw"), help="default: ema")
    group.add_argument("--sampler", metavar="NAME", help="how they were sampled, as euler-50-cfg5-shift3")
    group.add_argument("--seed", type=int, metavar="N", help="of the noise they were made from")
    group.add_argument(
        "--corpus", metavar="NAME", help="what the prompts or the reference are called (default: said by the metric)"
    )


def run(args: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """`rfjax score`: returns the exit status."""
    from rfjax.scorers import attach

    metric = METRICS[args.metric]
    _check(args, metric)
    checkpoint = _checkpoint(args, attach)
    began = time.monotonic()
    folder = Path(args.folder)
    out = Path(args.out) if args.out else folder.absolute().with_name(f"{folder.absolute().name}.{args.metric}")
    outcome = metric.measure(args, out)
    print("\n".join(outcome.lines))
    if checkpoint is not None:
        path = attach.attach(
            checkpoint,
            outcome.evaluation,
            args.corpus or outcome.corpus,
            outcome.values,
            seconds=time.monotonic() - began,
            extra=outcome.extra,
        )
        print(f"record: {path}")
    return 0


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check(args, metric):
    """Refuses what the metric does not take, lacks, or cannot import."""
    for name in metric.needs:
        if not getattr(args, name):
            raise ConfigError(f"--metric={args.metric} needs {option(name)}: {OPTIONS[name]['help']}")
    for name in OPTIONS:
        if getattr(args, name) and name not in metric.needs + metric.takes:
            raise ConfigError(f"--metric={args.metric} does not take {option(name)}; leave it out")
    lacking = [name for name in metric.packages if importlib.util.find_spec(name) is None]
    if lacking:
        raise ConfigError(
            f"--metric={args.metric} needs {', '.join(lacking)}, which is not installed; pip install 'rfjax[metrics]'"
        )
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size is {args.batch_size}; it must be at least 1")
    files = "reference" in metric.needs  # features take a folder's place
    for path in (args.folder, *([args.reference] if files else [])):
        if not (Path(path).exists() if files else Path(path).is_dir()):
            raise ConfigError(f"no folder at {path}; give the folder of the images")


ABOUT = ("step", "weights", "sampler", "seed")  # what a record says of the images


def _checkpoint(args, attach):
    """The checkpoint that the score is of, known to be there; None where none is named.

    Images that `rfjax sample --prompts` made say themselves what made them.
    """
    given = {name: getattr(args, name) for name in ABOUT if getattr(args, name) is not None}
    if args.run is None:
        if given:
            raise ConfigError(f"--{next(iter(given))} says what a record is of; give --run as well, or leave it out")
        return None
    made = _generation(Path(args.folder))
    for name, value in given.items():
        if name in made and made[name] != value:
            raise ConfigError(
                f"--{name} is {value!r}, and the images in {args.folder} were made with {made[name]!r}; leave it out"
            )
    about = {"weights": "ema"} | {name: made[name] for name in ABOUT if name in made} | given
    for name in ABOUT:
        if name not in about:
            raise ConfigError(f"--run needs --{name}: a record says which checkpoint, sampler and seed made the images")
    if about["sampler"] in ("", "-"):
        raise ConfigError(
            f"--sampler is {about['sampler']!r}; name it as the run's own evaluations do, like euler-50-cfg5-shift3"
        )
    checkpoint = attach.Checkpoint(Path(args.run), **about)
    name, _ = attach.run_facts(checkpoint)
    if made.get("run", name) != name:
        raise ConfigError(
            f"the images in {args.folder} are of the run {made['run']!r}, and --run is {name!r}; name the run that "
            "made them"
        )
    return checkpoint


def _generation(folder):
    """What `generation.json` in a folder of images says; nothing where there is none."""
    from rfjax.evaluation.image_folders.geneval_folder import GENERATION

    path = folder / GENERATION
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {
            "run": str(facts["run"]),
            "step": int(facts["step"]),
            "weights": str(facts["weights"]),
            "sampler": str(facts["sampler"]),
            "seed": int(facts["seed"]),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove it, and give what made the images"
        ) from None


def _geneval(args, out):
    from rfjax.evaluation.geneval.files import summary_path, summary_text
    from rfjax.scorers import clip, geneval_images, mask2former, torch_device
    from rfjax.scorers.attach import file_revision
    from rfjax.scorers.colors import ColorClassifier

    device = torch_device.prepared(args.device)
    detector = mask2former.load(args.detector, device)
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
    results = out / geneval_images.RESULTS
    lines = [scored.title, summary_text(scored.summary)]
    lines += [f"NOT the official protocol: {deviation}" for deviation in scored.deviations]
    lines += [f"results: {results}", f"summary: {summary_path(results)}"]
    summary = scored.summary
    extra = {
        "title": scored.title,
        "deviations": list(scored.deviations),
        "metadata_sha256": summary["metadata_sha256"],
        "prompt_scores": scored.prompt_scores,
        "images_per_prompt": summary["images_per_prompt"],
        "models": {
            "detector": file_revision(args.detector, detector.sha256) | {"weights": detector.kind},
            "clip": file_revision(args.clip, classifier.clip.sha256) | {"tower": classifier.clip.name},
        },
    }
    corpus = "geneval" if summary["metadata_official"] else f"geneval-{summary['metadata_sha256'][:8]}"
    return MetricResult(lines, scored.evaluation, corpus, scored.score, extra)


def _clip_score(args, out):
    from rfjax.evaluation.records import Measured
    from rfjax.scorers import attach, clip, clip_score, torch_device

    captions = clip_score.captions_of(args.folder, args.captions)
    model = clip.load(args.clip, torch_device.prepared(args.device))
    scores = clip_score.score_folder(args.folder, model, captions, out, batch_size=args.batch_size)
    mean, stderr = clip_score.mean_and_stderr(scores, list(captions.values()))
    known = f" +- {stderr:.4f} (standard error over {len(set(captions.values()))} captions)"
    interval = known if math.isfinite(stderr) else ""
    lines = [f"CLIP score {mean:.4f}{interval}, {len(scores)} images", *_other(model.name, clip_score.TOWER)]
    evaluation = _named("clip-score", model.name == clip_score.TOWER)
    models = {"clip": attach.file_revision(args.clip, model.sha256) | {"tower": model.name}}
    extra = {"models": models, "prefix": clip_score.PREFIX, "weight": clip_score.WEIGHT}
    value = Measured.within(metric=evaluation.replace("-", "_"), value=mean, stderr=stderr, n=len(scores))
    return MetricResult(lines, evaluation, args.captions and Path(args.captions).stem or "captions", [value], extra)


def _named(evaluation, standard):
    """A metric of another model than its own has a name, and so a column, of its own."""
    return evaluation if standard else f"{evaluation}-other-model"


def _other(name, tower):
    return [] if name == tower else [f"NOT the metric's own model: the CLIP is {name}, not {tower}"]


def _clip_embedder(args, kind):
    from rfjax.scorers import clip, embedders, torch_device

    model = clip.load(args.clip, torch_device.prepared(args.device))
    return embedders.clip(model, kind), f"{kind} {model.name} {model.sha256}"


def _inception_embedder(args, kind):
    from rfjax.scorers import embedders, inception, torch_device
    from rfjax.scorers.distances import MODELS

    model = inception.load(args.inception, torch_device.prepared(args.device))
    return embedders.inception(model), f"{kind} {MODELS[kind] if model.official else 'other'} {model.sha256}"


def _distance(kind, network, embedder_of):
    """The measurement of a distance; `network` is the option that names what gives the features of a folder."""

    def measure(args, out):
        from rfjax.evaluation.records import Measured
        from rfjax.scorers import distances, folder_features

        folders = [path for path in (args.folder, args.reference) if Path(path).is_dir()]
        if folders and not getattr(args, network):
            raise ConfigError(
                f"--metric={kind} needs {option(network)} for the features of {folders[0]}: {OPTIONS[network]['help']}"
            )
        embed, model = embedder_of(args, kind) if folders else (None, "")
        distance = distances.measure(
            kind, args.folder, args.reference, out, embed=embed, model=model, batch_size=args.batch_size
        )
        found, real = distance.images, distance.reference
        lines = [
            f"{kind} {distance.value:.6g}: {found.n} images against {real.n or 'an unknown number'} of {args.reference}"
        ]
        if kind != "cmmd":
            lines.append(f"it is biased by the number of images, {found.n}: compare with others of as many")
            if distance.singular:
                lines.append(
                    f"{found.n} images for features of {found.values.shape[1]} numbers: their covariance is singular"
                )
        if not distance.model:
            lines.append("the files do not say which model their features are of")
        if not distance.standard:
            lines.append(
                f"NOT the metric's own model: the features are of {distance.model}, not {distances.MODELS[kind]}"
            )
        extra = {
            "images": folder_features.described(found),
            "reference": folder_features.described(real) | {"name": Path(args.reference).name},
            "models": {"features": distance.model or None},
        }
        evaluation = _named(kind, distance.standard)
        values = [Measured(metric=evaluation.replace("-", "_"), value=distance.value, n=found.n)]
        return MetricResult(lines, evaluation, Path(args.reference).absolute().name, values, extra)

    return measure


def _compbench(args, out):
    from rfjax.evaluation.image_folders import compbench
    from rfjax.evaluation.records import Measured

    categories = compbench.read(args.folder)
    lines, values = [f"{'category':<14}{'score':>9}{'std. error':>12}{'images':>8}"], []
    for name, category in categories.items():
        score, stderr, n, _ = category
        lines.append(f"{name:<14}{score:>9.4f}{f'{stderr:.4f}' if math.isfinite(stderr) else '-':>12}{n:>8}")
        values.append(Measured.within(metric="compbench", item=name, value=score, stderr=stderr, n=n))
    prompts = {name: category.prompts for name, category in categories.items()}
    return MetricResult(lines, "compbench", "t2i-compbench", values, {"prompts": prompts})


TORCH = ("torch", "transformers", "PIL")
DISTANCE = ("reference",)

METRICS = {
    "geneval": Metric(
        "GenEval of images in its layout",
        ("detector", "clip"),
        ("metadata", "images_per_prompt", "allow_missing"),
        TORCH,
        _geneval,
    ),
    "clip-score": Metric("CLIPScore of images and their captions", ("clip",), ("captions",), TORCH, _clip_score),
    "fid-inception": Metric(
        "FID on Inception's features",
        DISTANCE,
        ("inception",),
        TORCH,
        _distance("fid-inception", "inception", _inception_embedder),
    ),
    "fid-clip": Metric(
        "Frechet distance of CLIP's features", DISTANCE, ("clip",), TORCH, _distance("fid-clip", "clip", _clip_embedder)
    ),
    "cmmd": Metric("CMMD of CLIP's features", DISTANCE, ("clip",), TORCH, _distance("cmmd", "clip", _clip_embedder)),
    "compbench": Metric("T2I-CompBench's scores, read back from where its scorers left them", (), (), (), _compbench),
}
