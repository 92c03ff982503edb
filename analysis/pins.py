"""Compares the results of the same commands in two checkouts, to show that a restructuring changed nothing.

    python analysis/pins.py OLD_CHECKOUT NEW_CHECKOUT [--only NAME,NAME]
    python analysis/pins.py --record FILE.json CHECKOUT
    python analysis/pins.py --against FILE.json CHECKOUT

Each pin of `PINS` runs `python -m rfjax` in a checkout and gathers facts: checksums of weights, images and files,
records without times, fits, tables of a dry run, exit statuses. A line for each pin says whether the facts are equal;
the exit status is 0 if all are. Facts are exact, so a record can only be compared on the machine that made it. This
script imports nothing of rfjax.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from pins_inputs import AS_SD3, FITS, FORMULATIONS, LAUNCHES, SMALL, STEPS, STUDY, write_detections, write_tables
from pins_refusals import FILES, ROWS
from pins_runner import Failed, Runner, digest, fact, files, pixels, tensors, without_times

SHOWN = 12  # differences that are printed of a pin
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "pandas", "matplotlib", "pillow", "scikit-learn")


def overrides(fields: str) -> list[str]:
    """Gives the fields, written as `train.steps=3 seed=1`, as options of the command line."""
    return [f"--config.{field}" for field in fields.split()]


def two_at_a_time(act: Callable, things: Iterable) -> list:
    """Calls `act` with each thing, two at a time; returns the results in the order of the things."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(act, things))


def shapes_run(runner: Runner, devices: int) -> Path:
    """Trains and evaluates 30 steps on shapes; returns the run's folder. The first pin that asks for the run makes it,
    the others use it."""
    begin = ["train", "--config=configs/shapes.py", *overrides(SMALL)]
    return runner.once(f"shapes-{devices}", lambda path: runner.must(*begin, f"--workdir={path}", devices=devices))


def shapes(runner: Runner, devices: int) -> dict:
    """Pins a run's weights, evaluations, metrics, samples and detections."""
    run = shapes_run(runner, devices)
    facts: dict[str, object] = {"files": files(runner, run, leave=("checkpoints", "tensorboard", "trackers", "lock"))}
    for weights in ("raw", "ema"):
        out = runner.folder / f"shapes-{devices}-{weights}"
        runner.must("export", str(run), "--format=plain", f"--weights={weights}", f"--out={out}")
        facts[weights] = tensors(out / "model.safetensors")
    return facts


def exported(runner: Runner, run: Path, layout: str, dtype: str, name: str) -> dict[str, object]:
    """Exports a run, and returns what is pinned of each file or, if the export is refused, its exit status and which of
    the expected words are said."""
    out = runner.folder / f"exports/{name}"
    target = out / "model.safetensors" if layout == "sd3" else out
    target.parent.mkdir(parents=True, exist_ok=True)
    ran = runner.rfjax("export", str(run), f"--format={layout}", f"--dtype={dtype}", f"--out={target}")
    if ran.status:
        tokens = ("config.model.hidden", "96", "128", "--format diffusers", "--format plain")
        return {"status": ran.status, "says": [token for token in tokens if token in ran.err]}
    return files(runner, out)


def round_trip(runner: Runner, layout: str, name: str) -> dict[str, object]:
    """Pins the run that an export is imported as, and whether its export has the same bytes."""
    out, again = runner.folder / f"exports/{name}", runner.folder / f"exports/{name}-again"
    run = runner.folder / f"imported/{name}"
    ran = runner.must("import", str(out / "model.safetensors" if layout == "sd3" else out), f"--out={run}")
    exported(runner, run, layout, "f32", again.name)
    sums = [{path.name: digest(path.read_bytes()) for path in place.glob("*.safetensors")} for place in (out, again)]
    facts = {name: fact(runner, run / name) for name in ("run.json", "config.json")}
    return facts | {"same bytes": sums[0] == sums[1], "weights": sums[1], "said": runner.text(ran.out).splitlines()}


def exports(runner: Runner) -> dict:
    """Pins every layout's files in two types, and that what is imported is exported to the same bytes."""
    begin = ["train", "--config=configs/shapes.py", "--no-evaluation", *overrides(AS_SD3)]
    as_sd3 = runner.once("as-sd3", lambda path: runner.must(*begin, f"--workdir={path}"))
    runs = {"shapes": shapes_run(runner, 1), "as-sd3": as_sd3}
    wanted = [("shapes", layout, dtype) for layout in ("plain", "diffusers", "sd3") for dtype in ("f32", "bf16")]
    wanted += [("as-sd3", "sd3", dtype) for dtype in ("f32", "bf16")]
    made = two_at_a_time(lambda want: exported(runner, runs[want[0]], *want[1:], "-".join(want)), wanted)
    facts = {" ".join(want): facts for want, facts in zip(wanted, made, strict=True)}
    trips = (("plain", "shapes-plain-f32"), ("diffusers", "shapes-diffusers-f32"), ("sd3", "as-sd3-sd3-f32"))
    back = two_at_a_time(lambda trip: round_trip(runner, *trip), trips)
    return facts | {f"{name} and back": facts for (_, name), facts in zip(trips, back, strict=True)}


def sample(runner: Runner) -> dict:
    """Pins the pixels of sampled images."""
    run, red, blue = str(shapes_run(runner, 1)), "--prompt=a red square", "--prompt=a photo of a blue ring"
    few = "--config.evaluation.sampler.steps=3"
    ways = {
        "ema": [red, few],
        "raw, two prompts": [
            red,
            blue,
            few,
            *"--weights=raw --samples=2 --seed=1 --negative= --sigmas=diffusers".split(),
        ],
        "heun": [red, few, "--config.evaluation.sampler.method=heun", "--config.timestep_shift=2"],
    }
    for name, words in ways.items():
        runner.must("sample", run, *words, f"--out={runner.folder / f'sample {name}.png'}")
    return {name: pixels(runner.folder / f"sample {name}.png") for name in ways}


def study_file(runner: Runner, name: str, points: Mapping[str, object], together: int = 1) -> Path:
    """Writes the config file of a tiny study with these points."""
    text = STUDY.replace("NAME", name).replace("TOGETHER", str(together)).replace("POINTS", repr(dict(points)))
    return runner.once(f"{name}.py", lambda path: path.write_text(text))


def study(runner: Runner) -> dict:
    """Pins the results and the report of two studies: points trained alone, and formulations trained together."""
    facts = {}
    for name, points, together in (("alone", STEPS, 1), ("together", FORMULATIONS, 3)):
        config, root = study_file(runner, name, points, together), runner.folder / "studies" / name
        ran = runner.must("study", f"--config={config}", f"--workdir={root}")
        folders = {folder: files(runner, root / folder) for folder in ("results", "report")}
        facts[name] = folders | {"said": without_times(runner.text(ran.out)).splitlines()}
    return facts


def fit(runner: Runner) -> dict:
    """Pins the numbers of fits of every law, and of scores against the loss."""
    tables = runner.once("tables", write_tables)

    def numbers(name: str) -> object:
        table, options = FITS[name]
        out = runner.folder / f"fit {name}.json"
        runner.must("fit", table.replace("{tmp}", str(tables)), *options.split(), f"--out={out}")
        return fact(runner, out)

    return dict(zip(FITS, two_at_a_time(numbers, FITS), strict=True))


def plan(runner: Runner) -> dict:
    """Pins a plan by formulas, and the dry run of every file in configs/."""

    def planned(target: str) -> object:
        out = runner.folder / f"plan-{target}.json"
        ran = runner.must("plan", "--config=configs/sd3_depth.py", f"--target={target}", "--no-compile", f"--out={out}")
        return {"numbers": fact(runner, out), "said": runner.text(ran.out).splitlines()}

    def listed(config: str) -> list[str]:
        return runner.must("study", f"--config=configs/{config}", "--dry-run").out.splitlines()

    targets, configs = ("v5p-256", "h100x64"), sorted(path.name for path in (runner.checkout / "configs").glob("*.py"))
    facts = dict(zip(targets, two_at_a_time(planned, targets), strict=True))
    return facts | dict(zip(configs, two_at_a_time(listed, configs), strict=True))


def launch(runner: Runner) -> dict:
    """Pins the scripts and manifests that a dry run prints for each kind of cluster."""

    def printed(options: str) -> list[str]:
        ran = runner.must("launch", "--config=configs/sd3_depth.py", *options.split(), "--dry-run")
        return runner.text(ran.out).splitlines()

    return dict(zip(LAUNCHES, two_at_a_time(printed, LAUNCHES.values()), strict=True))


def geneval(runner: Runner) -> dict:
    """Pins the scores of hand-made detections, and each image's verdict."""
    folder = runner.once("geneval", write_detections)
    loose = "--counting-threshold=0.5 --max-overlap=0.5 --position-threshold=0.3 --threshold=0.1 --seed=3"
    ways = {
        "as given": ("detections", ""),
        "other options": ("detections", loose),
        "fewer": ("fewer", "--allow-missing"),
    }
    facts = {}
    for name, (detections, options) in ways.items():
        out = folder / name
        out.mkdir()
        given = [f"--metadata={folder}/metadata.jsonl", f"--detections={folder}/{detections}.jsonl"]
        runner.must("geneval", *given, *options.split(), f"--out={out}/results.jsonl")
        facts[name] = files(runner, out)
    return facts


def refusals(runner: Runner) -> dict:
    """Pins the exit status of refused commands, and what they must name; see `pins_refusals`."""
    tmp = runner.folder / "refusals"
    (tmp / "empty").mkdir(parents=True)
    for name, content in FILES.items():
        (tmp / name).write_text(content)
    point = {f"steps{steps}": {"train.steps": steps} for steps in (3, 5)}
    config, run = study_file(runner, "refusals/study", point), tmp / "run"
    study_file(runner, "refusals/bad_point", {"one": {"train.stpes": 3}})
    runner.must("train", f"--config={config}", f"--workdir={run}", "--config.train.steps=1", "--no-evaluation")

    def refused(place: int) -> dict[str, object]:
        command, status, tokens = ROWS[place]
        places = {"{new}": str(tmp / f"new{place:03}"), "{run}": str(run), "{tmp}": str(tmp)}
        for name, path in places.items():
            command = command.replace(name, path)
        ran = runner.rfjax(*command.split())
        said = " ".join((ran.out + ran.err).split())
        for name, path in places.items():
            said = said.replace(path, name)
        missing = [token for token in tokens if token not in said]
        left = sorted(path.name.removeprefix(f"new{place:03}") for path in tmp.glob(f"new{place:03}*"))
        facts = {"status": ran.status, "not said": missing, "left": left}
        as_written = ran.status == status and not missing and "Traceback" not in said
        return facts if as_written else facts | {"not as in the table": said[-400:]}

    return dict(zip([row[0] for row in ROWS], two_at_a_time(refused, range(len(ROWS))), strict=True))


PINS: dict[str, Callable[[Runner], dict]] = {
    "shapes-1": lambda runner: shapes(runner, 1),
    "shapes-2": lambda runner: shapes(runner, 2),
    "exports": exports,
    "sample": sample,
    "study": study,
    "fit": fit,
    "plan": plan,
    "launch": launch,
    "geneval": geneval,
    "refusals": refusals,
}


def machine() -> dict[str, object]:
    """Tells what the facts' last bits depend on, beside the code."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else [platform.processor()]
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {"processor": names[0], "cores": os.cpu_count(), "python": platform.python_version(), "packages": versions}


def gather(checkout: Path, names: Sequence[str]) -> dict[str, dict]:
    """Gathers the facts of each pin in a checkout."""
    facts = {}
    with tempfile.TemporaryDirectory(prefix="pins-") as folder:
        runner = Runner(checkout, Path(folder))
        for name in names:
            began = time.monotonic()
            try:
                facts[name] = json.loads(json.dumps(PINS[name](runner)))
            except (Failed, OSError, ValueError, subprocess.TimeoutExpired) as error:
                facts[name] = {"failed": runner.text(f"{type(error).__name__}: {error}")}
                print(f"{name} in {checkout} failed: {error}", file=sys.stderr)
            print(f"{name} in {checkout}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return facts


def differences(old: object, new: object, path: str = "") -> Iterator[str]:
    """Tells where two facts differ, and how."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            here = f"{path}/{key}"
            if key not in new or key not in old:
                yield f"{here}: {'only in the old' if key in old else 'only in the new'}"
            else:
                yield from differences(old[key], new[key], here)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{path}/{place}")
    elif old != new or type(old) is not type(new):
        yield f"{path}: {json.dumps(old)[:300]} was, {json.dumps(new)[:300]} is"


def compare(old: Mapping[str, dict], new: Mapping[str, dict]) -> bool:
    """Prints a line per pin and what differs; tells whether all are equal."""
    equal = True
    for name in old:
        failed = [
            f"{which}: {facts['failed'][:500]}"
            for which, facts in (("old", old[name]), ("new", new[name]))
            if "failed" in facts
        ]
        found = failed or list(differences(old[name], new[name]))
        print(f"{name}: {'DIFFERENT' if found else 'equal'}")
        for line in found[:SHOWN]:
            print(f"    {line}")
        if len(found) > SHOWN:
            print(f"    and {len(found) - SHOWN} more")
        equal = equal and not found
    return equal


def wrong_rows(facts: Mapping[str, dict]) -> list[str]:
    """Lists the refusals that are not as their table says: they would pin nothing."""
    rows = facts.get("refusals", {}).items()
    return [f"{row}: {found}" for row, found in rows if isinstance(found, dict) and "not as in the table" in found]


def record(file: Path, checkout: Path, names: Sequence[str]) -> int:
    """Writes the facts of a checkout to a file, and keeps the facts of other pins that the file has. Returns 1 if a pin
    failed, else 0."""
    kept = recorded(file, []) if file.exists() and len(names) < len(PINS) else {}
    facts = gather(checkout, names)
    file.write_text(json.dumps({"machine": machine(), "pins": kept | facts}, indent=1) + "\n")
    wrong = [*wrong_rows(facts), *(f"{name} failed" for name, found in facts.items() if "failed" in found)]
    print("\n".join([*wrong, f"{len(facts)} pins: {file}"]))
    return 1 if wrong else 0


def recorded(file: Path, names: Sequence[str]) -> dict[str, dict]:
    """Reads the facts that a file has; exits if they were made on another machine or lack one of the pins `names`."""
    kept, here = json.loads(file.read_text()), machine()
    if kept["machine"] != here:
        sys.exit(f"{file} was made elsewhere:\n  " + "\n  ".join(differences(kept["machine"], here)))
    lacking = [name for name in names if name not in kept["pins"]]
    if lacking:
        sys.exit(f"{file} has no {', '.join(lacking)}; give --only {','.join(kept['pins'])}")
    return kept["pins"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="CHECKOUT")
    parser.add_argument("--record", type=Path, metavar="FILE.json", help="write the facts of the one checkout here")
    parser.add_argument("--against", type=Path, metavar="FILE.json", help="compare the one checkout with these facts")
    parser.add_argument("--only", metavar="NAMES", help=f"of {','.join(PINS)}")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(PINS)
    unknown = [name for name in names if name not in PINS]
    if unknown:
        parser.error(f"no pin {unknown[0]}; there are {', '.join(PINS)}")
    if args.record and args.against or len(args.checkouts) != (1 if args.record or args.against else 2):
        parser.error("give two checkouts, or --record or --against and one")
    if args.record:
        return record(args.record, args.checkouts[0], names)
    old = recorded(args.against, names) if args.against else gather(args.checkouts[0], names)
    return 0 if compare({name: old[name] for name in names}, gather(args.checkouts[-1], names)) else 1


if __name__ == "__main__":
    sys.exit(main())
