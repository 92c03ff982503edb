"""The measures of `rfjax score` that ask a model questions (VQAScore, GenEval 2 and DPG-Bench), and PickScore."""

from __future__ import annotations

import math

from rfjax.evaluation.records import Measured
from rfjax.scorers import answered_images, attach, clip, clip_score, pick_score, torch_device, vqa
from rfjax.scorers.clustered import mean_and_stderr
from rfjax.scorers.files import content_hash
from rfjax.scorers.folder_features import images_of
from rfjax.scorers.model_names import named_by
from rfjax.scorers.questions import BENCHMARKS, match, of_caption


def measure_answers(args, out):
    """Measures a benchmark of questions; returns the fields of a `command.MetricResult`, in order."""
    row = BENCHMARKS[args.metric]
    if row.read is None:
        captions, left_out = clip_score.captions_of(args.folder, args.captions)
        pairs, missing = {image: of_caption(caption) for image, caption in captions.items()}, ()
    else:
        prompts = row.read(args.questions)
        captions, left_out = _captions(args, prompts)
        pairs, missing = match(prompts, captions, file=args.questions, allow_missing=args.allow_missing)
    model = vqa.load(args.vqa, torch_device.choose(args.device), args.compute_dtype or "float32")
    dtype = args.compute_dtype or "float32"
    how = {"benchmark": args.metric, "dtype": dtype, "batch_size": args.batch_size}
    answers = answered_images.answer_folder(args.folder, model, pairs, out, **how)
    values = answered_images.summarise(args.metric, pairs, answers)
    published = row.is_published(model.sha256)
    evaluation = named_by(args.metric, model.name, model.sha256, published)
    lines = [f"{row.title} by {model.name}: {len(pairs)} images of {len({p.text for p in pairs.values()})} prompts"]
    lines += [_line(value) for value in values]
    if missing:
        lines.append(f"{len(missing):,} prompts of {args.questions} have no image")
    if not published:
        lines.append(f"NOT the published model: published scores are by {row.published}, and the name is {evaluation}")
    questions = {} if row.read is None else attach.file_revision(args.questions, content_hash(args.questions))
    extra = {
        "models": {"vqa": attach.file_revision(args.vqa, model.sha256) | {"compute_dtype": dtype}},
        "questions": questions,
        "missing_prompts": len(missing),
        "left_out": left_out,
    }
    return lines, evaluation, _corpus(args), values, extra


def measure_pick_score(args, out):
    """Measures PickScore; returns the fields of a `command.MetricResult`, in order."""
    captions, left_out = clip_score.captions_of(args.folder, args.captions)
    model = clip.load(args.clip, torch_device.choose(args.device), activation="gelu")
    scores = pick_score.score_folder(args.folder, model, captions, out, batch_size=args.batch_size)
    mean, stderr = mean_and_stderr(scores, list(captions.values()))
    value = Measured.within(metric="pickscore", item="overall", value=mean, stderr=stderr, n=len(scores))
    published = model.sha256 in pick_score.PUBLISHED_WEIGHTS
    evaluation = named_by("pickscore", args.clip.absolute().name, model.sha256, published)
    lines = [f"PickScore, {len(scores)} images", _line(value)]
    if not published:
        lines.append(f"NOT known to be the published {pick_score.PUBLISHED}: the name is {evaluation}")
    models = {"clip": attach.file_revision(args.clip, model.sha256) | {"tower": model.name}}
    return lines, evaluation, _corpus(args), [value], {"models": models, "left_out": left_out}


def _captions(args, prompts):
    """Returns {image: the text of its prompt} and {reason: number of files left out}. No captions are read if every
    image is named by one of DPG's item ids and --captions is not given."""
    texts = {prompt.key: prompt.text for prompt in prompts.values() if prompt.key}
    if texts and args.captions is None:
        paths, left_out = images_of(args.folder)
        if all(path.stem in texts for path in paths):
            return {path.relative_to(args.folder).as_posix(): texts[path.stem] for path in paths}, left_out
    return clip_score.captions_of(args.folder, args.captions)


def _corpus(args) -> str:
    given = getattr(args, "questions", None) or args.captions
    return "captions" if given is None else given.stem


def _line(value: Measured) -> str:
    error = f" +- {value.stderr:.4f}" if math.isfinite(value.stderr) else ""
    return f"  {value.item:<16}{value.value:.4f}{error}  (n = {value.n})"
