"""`rfjax plan --sample`: predicts what sampling images takes on hardware that is not at hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from rfjax.console import format_table
from rfjax.errors import ConfigError
from rfjax.files import write_whole
from rfjax.mesh_axes import batch_ways
from rfjax.models.quantised import check_weights
from rfjax.plan.compiled import SAMPLED_INSTEAD, Compiler, check_compiler, describe_settings, why_not_compiled
from rfjax.plan.roofline import precision_note
from rfjax.plan.sample_options import read_sample_options
from rfjax.plan.sampling import Request, SamplePlan, describe_latents, plan_sampling, shapes_at
from rfjax.plan.targets import Target
from rfjax.report.formats import amount
from rfjax.study.study import Point, Study
from rfjax.training.mesh import mesh_sizes
from rfjax.training.run import plan_run

HEADER = (
    "point params weights mesh batch stored peak fits compute memory links slowest s/image images/chip-hour".split()
)


def plan_samples(args, study: Study, points: Sequence[Point], target: Target, say: Callable[[str], None]) -> int:
    """Plans the sampling of points, prints the plan and, if `--out` is given, writes it there. Returns 1 if some plan
    does not fit, else 0."""
    size, weights = read_sample_options(args)
    compiler = None
    if not args.no_compile and why_not_compiled(target.chip) is None:
        check_compiler(target)
        compiler = Compiler(args.optimisation, not args.no_xla_flags)
    requests = []
    for point in points:
        config = point.config
        sizes = mesh_sizes(config.mesh, target.devices, target.shown_slices)
        latents = shapes_at(plan_run(config).corpus.shapes, size, config).latents
        batch = batch_ways(sizes) if args.batch is None else args.batch
        for name in weights:
            check_weights(name, config.model)
            requests.append((point, Request(name, batch, latents)))
    plans = []
    for point, request in requests:
        if compiler:
            say(f"{point.id}: compiling the sampler for {target.name}, weights in {request.weights}")
        plans.append(plan_sampling(point.id, point.config, target, request, compiler))
    said = notes(plans, points, target, compiler is not None)
    print("\n".join(["", *format_table([HEADER, *map(_row, plans)]), *said]))
    if args.out is not None:
        content = {
            "schema": 1,
            "study": study.name,
            **target.facts,
            "compiled": compiler is not None,
            "samples": [plan.to_json() for plan in plans],
        }
        write_whole({args.out: json.dumps(content, indent=1, allow_nan=False) + "\n"})
        print(f"plan: {args.out}")
    return 0 if all(plan.fits for plan in plans) else 1


def _row(plan: SamplePlan) -> tuple[str, ...]:
    estimated, request = plan.estimate, plan.request
    gib = lambda count: f"{count / 2**30:.2f}"  # noqa: E731
    mesh = "x".join(map(str, estimated.mesh.values()))
    row = (plan.point, f"{plan.params:,}", request.weights, mesh, str(request.batch), gib(estimated.weight_bytes))
    row += (gib(plan.peak_bytes), "yes" if plan.fits else "NO")
    times = tuple(amount(seconds, 2) for seconds in (estimated.limits.compute, estimated.limits.memory))
    row += (*times, amount(estimated.limits.links, 2), estimated.limits.slowest)
    return row + (amount(plan.seconds_per_image, 2), amount(plan.images_per_chip_hour))


def notes(plans: Sequence[SamplePlan], points: Sequence[Point], target: Target, compiles: bool) -> list[str]:
    """Returns the lines under the table: what its numbers mean, and what each compiled sampler takes."""
    why = why_not_compiled(target.chip) or "--no-compile"
    memory = f"Nothing was compiled ({why}): peaks are estimates."
    if compiles:
        settings = describe_settings(plan.compiled for plan in plans)
        memory = f"Peaks are those of the samplers compiled for {target.name} ({settings})."
    said = [
        f"{memory} GiB per device, of {target.chip.device_bytes / 2**30:.2f}; seconds of a batch by each limit.",
        *_sampled(plans, points),
        "Seconds an image and images a chip-hour are at the roofline, the time of the slowest limit: real images take "
        "longer.",
        *precision_note(target, (point.config.train for point in points)),
    ]
    for attention in sorted({plan.attention for plan in plans}):
        logits = max(plan.estimate.logits_bytes for plan in plans)
        text = f"Attention of a sampler on {target.name}: {attention}."
        if compiles and attention in SAMPLED_INSTEAD:
            text = text[:-1] + f", which cannot be compiled without its library; {SAMPLED_INSTEAD[attention]} was "
            text += "compiled in its place, which holds the logits of a block of queries."
        elif logits:
            text += f" It holds logits of {logits / 2**30:.2f} GiB in memory."
        said.append(text)
    for plan in plans:
        if plan.compiled and plan.compiled.counts:
            share = plan.compiled.counts.flops / plan.estimate.flops
            said.append(
                f"{plan.point}, {plan.request.weights}: arguments {plan.compiled.argument_bytes / 2**30:.2f} GiB, "
                f"temporaries {plan.compiled.temporary_bytes / 2**30:.2f}; estimated peak "
                f"{plan.estimate.peak_bytes / 2**30:.2f}; compiled operations over the formula's {share:.4f}"
            )
    return said


def _sampled(plans: Sequence[SamplePlan], points: Sequence[Point]) -> list[str]:
    """Returns a line on what is sampled, and how; if points differ in it, a line for each kind, with its points."""
    configs, alike = {point.id: point.config for point in points}, {}
    for plan in plans:
        sampler = configs[plan.point].evaluation.sampler
        count = plan.estimate.evaluations
        guided = "" if sampler.guidance_scale == 1.0 else f": {count} evaluations of the network"
        how = f"{sampler.steps} steps of {sampler.method}, guidance {sampler.guidance_scale:g}{guided}"
        alike.setdefault(f"{describe_latents(plan.request.latents)}; {how}", {})[plan.point] = None
    lines = [f"{line}. Text encoders and autoencoder are not counted." for line in alike]
    if len(lines) == 1:
        return lines
    return [f"{', '.join(ids)}: {line}" for ids, line in zip(alike.values(), lines, strict=True)]


def check_no_training(args) -> None:
    """Raises `ConfigError` for options that only a plan of training takes and that are given with --sample."""
    for option, value in {"--search": args.search, "--price": args.price is not None}.items():
        if value and args.sample:
            raise ConfigError(f"{option} is for the plan of a training; leave it out with --sample")
