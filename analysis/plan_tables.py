"""Makes the plans in docs/plan.md: computes the rows that the record lacks, and writes the tables from the record.

    python analysis/plan_tables.py                     # plans missing rows by formulas, then writes the tables
    python analysis/plan_tables.py --compile 60        # also compiles rows that are not compiled yet, for 60 minutes
    python analysis/plan_tables.py --compile 60 --only h200x64 --again

The record is analysis/results/plans.json. Record and tables are written after each compiled row, so the command may be
stopped at any time. `--again` plans rows that the record has, too; `--only TARGET` plans the rows of one target.
`pip install 'rfjax[tpu-plan,gpu-plan]'` brings the compilers; a row whose compiler is missing keeps its formulas.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import time
from collections.abc import Iterator
from pathlib import Path

from rfjax.errors import RfjaxError
from rfjax.files import write_whole
from rfjax.laws.design import Information, Rules, design
from rfjax.plan.compiled import COMPILERS, Compiled, Compiler, check_compiler, why_not_compiled
from rfjax.plan.design_law import of_typed_law
from rfjax.plan.design_trunks import candidates_of, sizes_of
from rfjax.plan.point_plan import plan_point
from rfjax.plan.sampling import Request, plan_sampling
from rfjax.plan.targets import Target, parse_target
from rfjax.report.formats import amount
from rfjax.study.study import load_study
from rfjax.training.branches import steps_taken
from rfjax.training.chips import GIB

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "analysis/results/plans.json", ROOT / "docs/plan.md"
BEGIN, END = "<!-- {}: written by analysis/plan_tables.py -->\n", "<!-- end of the table -->\n"

# Points are in the order in which they are compiled: the ends of the sweep first.
DEPTHS = ("depth15", "depth38", "depth21", "depth30", "depth18")
FAMILY = ("8b", "2b", "800m", "3.5-medium", "3.5-large", "4b")
WIDE = {"mesh.fsdp": 32}
# (target, overrides of the config, the compiler's level)
TRAINING = (
    ("tpu7x-256", {}, "O1"),
    ("2xv5p-256", {}, "O1"),
    ("4xv5p-256", {}, "O1"),
    ("h200x64", WIDE, "default"),
    ("b200x64", WIDE, "default"),
)
# (target, the types that weights are stored in, the compiler's level)
SAMPLING = (
    ("v5e-4", ("bfloat16", "int8"), "O1"),
    ("h100x1", ("bfloat16", "int8"), "default"),
    ("rtx4090x1", ("bfloat16", "int8"), "default"),
)
# configs/node_depth.py: its smallest points first
NODE = "h100x8"
NODE_POINTS = tuple(f"depth{depth}-seed0" for depth in (6, 8, 10, 12, 15, 18, 21))
# The share of the peak, which an H100 has too, that a step of depth 18 reached on one H200 (docs/speed.md).
REACHED = 0.39
PRICE = 2.5  # of an H100 for an hour, in dollars: an assumption
EPOCH = 10_000_000  # images of the corpus
# What the node's law is expected to be: E, A, alpha, B, beta. The exponents are within Chimera's for images
# (laws/published_laws.py); E, A and B are assumed.
ASSUMED_LAW = "0.5,20,0.315,30,0.365"
TARGETS = (1e20, 3e20, 1e21)  # training FLOPs
CONFIGS = {"training": "sd3_depth", "node": "node_depth"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: what is planned, and the level at which it is compiled."""

    table: str  # training | node | sampling
    target: str
    point: str
    weights: str
    level: str
    overrides: tuple[tuple[str, object], ...] = ()

    @property
    def key(self) -> str:
        return " ".join(filter(None, (self.table, self.target, self.point, self.weights)))


def rows() -> Iterator[Row]:
    """Yields every row, in the order in which rows are compiled."""
    for point in DEPTHS:
        for target, overrides, level in TRAINING:
            yield Row("training", target, point, "", level, tuple(overrides.items()))
    for point in NODE_POINTS:
        yield Row("node", NODE, point, "", "default")
    for point in FAMILY:
        for target, types, level in SAMPLING:
            for weights in types:
                yield Row("sampling", target, point, weights, level)


def plan(row: Row, level: str | None) -> dict:
    """Plans a row, compiled at a level, or by formulas for None; returns its facts."""
    target, compiler = parse_target(row.target), level and Compiler(level)
    if row.table in CONFIGS:
        point = load_study(ROOT / f"configs/{CONFIGS[row.table]}.py", dict(row.overrides)).point(row.point)
        made = plan_point(point, target, compiler=compiler, say=lambda _: None)
        found = {"params": made.size.params, "mesh": list(made.estimate.mesh.values()), "searched": made.searched}
        found |= {"limits": dataclasses.asdict(made.limits), **_cost(made.cost)} if made.limits else {}
        if row.table == "node":
            train = made.config.train
            found |= {"microbatches": train.accumulate, "images": [n * train.batch_size for n in train.branches]}
            found |= {"steps": steps_taken(train), "trunks": _trunks(row.point)}
    else:
        point = load_study(ROOT / "configs/sd3_family.py", {}).point(row.point)
        latents = (1, 128, 128, 16)
        request = Request(row.weights, target.devices, latents)
        made = plan_sampling(row.point, point.config, target, request, compiler)
        found = {"params": made.params, "mesh": list(made.estimate.mesh.values())}
        found |= {"stored": made.estimate.weight_bytes, "limits": dataclasses.asdict(made.estimate.limits)}
        found |= {"seconds_per_image": made.seconds_per_image, "images_per_chip_hour": made.images_per_chip_hour}
    found |= {"peak_bytes": made.peak_bytes, "of_bytes": target.chip.device_bytes, "fits": made.fits}
    return found | {"attention": made.attention, "compiled": _compiled(made.compiled, target, made.estimate)}


def _trunks(point: str) -> int:
    """The number of the node's trunks of a point's depth: one for each seed."""
    depth = point.partition("-")[0]
    return sum(other.id.partition("-")[0] == depth for other in load_study(ROOT / "configs/node_depth.py", {}).points)


def expected_law() -> dict:
    """Returns the assumed law, the cost of the node's runs, and for each target two expected half widths of the loss's
    interval: after the node's runs, and after the runs of equal cost that `rfjax design` chooses from the same sizes
    and lengths."""
    study = load_study(ROOT / "configs/node_depth.py", {})
    sizes = sizes_of(study)
    lengths = sorted({length for point in study.points for length in point.config.train.branches})
    candidates, _ = candidates_of(sizes, lengths)
    number = {size.config.model.depth: place for place, size in enumerate(sizes)}
    places = {(each.size, each.images): place for place, each in enumerate(candidates)}
    own = []
    for point in study.points:
        train = point.config.train
        images = tuple(float(length * train.batch_size) for length in train.branches)
        own.append(places[number[point.config.model.depth], images])
    found: dict = {"law": ASSUMED_LAW, "targets": {}}
    for target in TARGETS:
        problem, _ = of_typed_law(ASSUMED_LAW, None, None).problem(candidates, sizes, target)
        information = Information(problem, candidates)
        chosen = information.chosen(own)
        best = design(information, Rules(budget=chosen.flops, most_seeds=2))
        found |= {"flops": chosen.flops, "trunks": len(own), "runs": sum(len(each.images) for each in chosen.trunks)}
        found["targets"][f"{target:g}"] = {"own": chosen.half_width, "design": best.half_width}
    return found


def _cost(spent) -> dict:
    return {"days": spent.days, "chip_hours": spent.chip_hours}


def _compiled(compiled: Compiled | None, target: Target, estimate) -> dict | None:
    """Returns the facts of a compiled program; None if nothing was compiled."""
    if compiled is None:
        return None
    package, _ = COMPILERS[target.chip.kind]
    versions = {name: importlib.metadata.version(name) for name in ("jax", package)}
    facts = {"level": compiled.optimisation, "seconds": round(compiled.seconds, 1), "versions": versions}
    facts["xla_flags"] = compiled.xla_flags["rfjax"]
    if compiled.counts:
        sent: dict[str, float] = {}
        for exchange in compiled.counts.collectives:
            kind = f"{exchange.kind}{' between slices' if exchange.between_slices else ''}"
            sent[kind] = sent.get(kind, 0.0) + exchange.sent
        facts |= {"sent_bytes": sent, "operations": compiled.counts.flops / estimate.flops}
    return facts


def make(record: dict, row: Row, level: str | None) -> None:
    """Plans a row and writes it into the record. A plan by formulas never replaces a compiled one."""
    found = plan(row, level)
    if level is None and record.get(row.key, {}).get("compiled"):
        return
    record[row.key] = found
    _write(record)


def _write(record: dict) -> None:
    write_whole({RECORD: json.dumps(dict(sorted(record.items())), indent=1, allow_nan=False) + "\n"})


def _how(row: Row, facts: dict) -> str:
    """Says in a cell how a row was planned."""
    if facts["compiled"]:
        level = facts["compiled"]["level"]
        flags = "" if facts["compiled"].get("xla_flags") else ", without flags"
        return ("yes" if level == "default" else f"at `{level}`") + flags
    return "no" if why_not_compiled(parse_target(row.target).chip) is None else "no compiler"


def _gib(count: float) -> str:
    return f"{count / GIB:.2f}"


def _table(header: list[str], cells: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *cells]
    return "".join(f"| {' | '.join(line)} |\n".replace("| --- ", "|---").replace("--- |", "---|") for line in lines)


def render(record: dict) -> dict[str, str]:
    """Renders each table, by name, from the record."""
    limits = ("compute", "memory", "links", "network")
    training = []
    paper = (row for row in rows() if row.table != "node")
    ordered = sorted(paper, key=lambda row: (row.table, [t for t, *_ in TRAINING + SAMPLING].index(row.target)))
    for row in sorted((row for row in ordered if row.table == "training"), key=_place):
        facts = record[row.key]
        times = [amount(1e3 * facts["limits"][name]) for name in limits]
        times[-1] = times[-1] if parse_target(row.target).slices > 1 else "–"
        mesh = " × ".join(map(str, facts["mesh"][:2]))
        cells = [row.target, row.point, mesh, _gib(facts["peak_bytes"]), _gib(facts["of_bytes"]), *times]
        training.append([*cells, amount(facts["days"], 1), amount(facts["chip_hours"]), _how(row, facts)])
    sampling = []
    for row in sorted((row for row in ordered if row.table == "sampling"), key=_place):
        facts = record[row.key]
        seconds = amount(facts["seconds_per_image"], 2) if facts["fits"] else "does not fit"
        images = amount(facts["images_per_chip_hour"]) if facts["fits"] else "–"
        cells = [row.target, row.point, row.weights, _gib(facts["stored"]), _gib(facts["peak_bytes"])]
        sampling.append([*cells, _gib(facts["of_bytes"]), seconds, images, _how(row, facts)])
    layout = ["target", "point", "mesh, data × fsdp", "peak, GiB", "of", *(f"{name}, ms" for name in limits)]
    images = ["target", "point", "weights", "stored, GiB", "peak", "of", "seconds an image", "images a chip-hour"]
    return {
        "node": _node(record),
        "training": _table([*layout, "days", "chip-hours", "compiled"], training),
        "sampling": _table([*images, "compiled"], sampling),
    }


def _node(record: dict) -> str:
    """Renders the node's tables: what each depth takes, and how well the study is expected to determine the law."""
    lines, total = [], {"days": 0.0, "reached": 0.0, "cost": 0.0}
    for row in (row for row in rows() if row.table == "node"):
        facts = record[row.key]
        limits, trunks = facts["limits"], facts["trunks"]
        step = max(*limits.values(), limits["compute"] / REACHED)
        days, reached = trunks * facts["days"], trunks * facts["steps"] * step / 86400
        cost = reached * 24 * parse_target(NODE).devices * PRICE
        for name, value in {"days": days, "reached": reached, "cost": cost}.items():
            total[name] += value
        epochs = " ".join(f"{images / EPOCH:.2g}" for images in facts["images"])
        sides = " × ".join(map(str, facts["mesh"][:2]))
        times = [amount(1e3 * limits[name]) for name in ("compute", "memory", "links")]
        cells = [row.point.partition("-")[0], amount(facts["params"] / 1e6), str(trunks), epochs]
        cells += [sides, str(facts["microbatches"]), _gib(facts["peak_bytes"]), _gib(facts["of_bytes"]), *times]
        lines.append([*cells, f"{days:.3f}", f"{reached:.3f}", f"{cost:,.0f}", _how(row, facts)])
    blank = [""] * 10
    lines.append(["all", *blank, f"{total['days']:.2f}", f"{total['reached']:.2f}", f"{total['cost']:,.0f}", ""])
    header = ["depth", "params, M", "trunks", "epochs of the branches", "data × fsdp", "microbatches", "peak, GiB"]
    header += ["of"]
    header += ["compute, ms", "memory, ms", "links, ms", "days by the roofline", f"days at {REACHED:g} of the peak"]
    law = record["node law"]
    told = [[name, f"± {each['own']:.1%}", f"± {each['design']:.1%}"] for name, each in law["targets"].items()]
    said = f"{law['trunks']} trunks with {law['runs']} runs take {law['flops']:.3g} FLOPs."
    table = _table(["FLOPs of the target", "these runs", "the best choice for as many FLOPs"], told)
    return _table([*header, f"dollars at {PRICE:g} a GPU-hour", "compiled"], lines) + f"\n{said}\n\n{table}"


def _place(row: Row) -> tuple:
    """Returns a row's place in its table: by target, then by size."""
    if row.table == "training":
        return [target for target, *_ in TRAINING].index(row.target), int(row.point.removeprefix("depth"))
    order = ("800m", "2b", "4b", "8b", "3.5-medium", "3.5-large")
    return [target for target, *_ in SAMPLING].index(row.target), order.index(row.point), row.weights


def written(page: str, tables: dict[str, str]) -> str:
    """Returns the page with each table between its marks."""
    for name, table in tables.items():
        before, found, after = page.partition(BEGIN.format(name))
        _, end, after = after.partition(END)
        assert found and end, f"{PAGE} has no place for the table {name}"
        page = f"{before}{found}\n{table}\n{end}{after}"
    return page


def write_page(record: dict) -> None:
    write_whole({PAGE: written(PAGE.read_text(), render(record))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    compiling = "also compile rows that are not compiled yet; start none after MINUTES"
    parser.add_argument("--compile", type=float, default=0.0, metavar="MINUTES", help=compiling)
    parser.add_argument("--only", metavar="TARGET", help="plan rows of this target alone")
    parser.add_argument("--again", action="store_true", help="plan rows that the record has, too")
    args = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    chosen = [row for row in rows() if args.only in (None, row.target)]
    for row in chosen:
        if args.again or row.key not in record:
            make(record, row, None)
    if args.again or "node law" not in record:
        record["node law"] = expected_law()
        _write(record)
    write_page(record)
    began = time.monotonic()
    for row in chosen:
        if time.monotonic() - began > 60 * args.compile or (record[row.key]["compiled"] and not args.again):
            continue
        try:
            check_compiler(parse_target(row.target))
            make(record, row, row.level)
        except RfjaxError as error:
            said = str(error)  # a traceback says at its end what is wrong
            print(f"{row.key}: {said if len(said) < 400 else f'{said[:80]} ... {said[-300:]}'}", flush=True)
        else:
            print(f"{row.key}: compiled, peak {_gib(record[row.key]['peak_bytes'])} GiB", flush=True)
            write_page(record)


if __name__ == "__main__":
    main()
