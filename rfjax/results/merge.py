"""Merges the records of a study's runs into the results table.

`collect` reads the folders of many runs (`rfjax.results.run_files`) and writes a results folder
(`rfjax.results.results_folder`). Fits and reports read nothing else. No JAX here.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rfjax.errors import ConfigError, RfjaxError
from rfjax.evaluation import control_measures
from rfjax.results import columns as schema
from rfjax.results import results_folder as results
from rfjax.results import tokens
from rfjax.results.columns import CURVE, FILES, KEY, LONG, MEASURE, PAIR, PROMPT, REPLICATE, RUN, RUNS
from rfjax.results.many_runs import ANCHORS, are_many
from rfjax.results.run_files import RUN_FILES, RunRecords, read_records_of, read_run, records_hash, run_folders

KEY_NAMES = {"evaluation_seed": "seed"}  # column -> its name in a record's key, if that differs


def collect(
    run_folders: Iterable[str | Path],
    results_folder: str | Path,
    references: Iterable[str | Path] = (),
    passed_over: Iterable[str | Path] = (),
) -> results.Results:
    """Merges run folders into a results table, writes it to `results_folder` completely or not at all, and returns it.

    `references` are folders whose `evaluations/` has records that belong to no run (key.run `-`). `passed_over` are
    folders of runs beside the others that the table shall leave out; a note names each. If a file of a run is damaged,
    lacks a field or has another schema version, the whole run is left out; the table's notes say why, and `unreadable`
    counts such runs.

    Raises `ConfigError` if a folder is not a run's, if two folders hold the same run, and if no run can be read.
    """
    folders = [Path(folder) for folder in run_folders]
    if not folders:
        raise ConfigError(f"no run folders to collect into {results_folder}; train a point first")
    runs, left_out = _read_runs(folders)
    owners: dict[str, Path] = {}
    for run in runs:
        name = run.facts["run"]
        if name in owners:
            raise ConfigError(f"run {name!r} is in both {owners[name]} and {run.folder}; collect one of them")
        owners[name] = run.folder
    runs, conflicts = _without_conflicts(runs)
    shared = [(Path(folder), record) for folder in references for record in read_records_of(Path(folder), run="-")]
    beside = [Path(folder) for folder in passed_over]
    made = {
        "made_of": {folder.name: records_hash(folder) for folder in (*folders, *beside)},
        "passed_over": tuple(folder.name for folder in beside),
    }
    try:
        frames, sheets = _merge(runs, shared)
    except Exception:  # a record has a value of the wrong type: find its run, and leave it out
        runs, more = _sound_runs(runs)
        left_out += more
        frames, sheets = _merge(runs, shared)
    aside = [f"{folder.name} is no run of the study's points: it is not in the table" for folder in beside]
    notes = tuple(map(_as_text, (*left_out, *aside, *conflicts, *(note for run in runs for note in run.notes))))
    facts = {"samples": (), "notes": notes, "unreadable": len(left_out), **made}
    return results.write(results.Results(folder=Path(results_folder), **facts, **frames), sheets)


def _without_conflicts(runs: Sequence[RunRecords]) -> tuple[list[RunRecords], list[str]]:
    """Removes conflicting records among those that belong to no run, such as a detector's ceiling.

    A record conflicts if the folder of an earlier run has a record with the same key and other values. Returns the runs
    without their conflicting records, and a note for each of these records.
    """
    first: dict[tuple, dict] = {}
    kept, notes = [], []
    for run in runs:
        records = []
        for record in run.records:
            key = tuple(record["key"].values())
            if record["key"]["run"] == "-" and first.setdefault(key, record)["values"] != record["values"]:
                notes.append(
                    f"{run.facts['run']}: its {record['key']['evaluation']} differs from another run's; left out"
                )
            else:
                records.append(record)
        kept.append(run._replace(records=records))
    return kept, notes


def _merge(runs: Sequence[RunRecords], shared: Sequence[tuple[Path, dict]]) -> tuple[dict[str, pd.DataFrame], list]:
    """Returns the table as {file name without .csv: frame}, and its sample sheets as `_sheet` returns them.

    `shared` are pairs (folder, record) of records that belong to no run.
    """
    long = long_frame(runs, [record for _, record in shared])
    frames = {
        "long": long,
        "wide": wide_frame(long),
        "runs": runs_frame(runs),
        "prompts": prompts_frame(runs),
        "pairs": pairs_frame(runs),
        "replicates": replicates_frame(runs),
        "curves": _cast(pd.concat([run.curve for run in runs], ignore_index=True), CURVE),
    }
    owned = [(run.folder, record) for run in runs for record in run.records]
    return frames, _sheets([*owned, *shared])


def _sound_runs(runs: Sequence[RunRecords]) -> tuple[list[RunRecords], list[str]]:
    """Returns the runs whose records can be merged, and a note for each run whose records cannot.

    Raises `ConfigError` with the first note if no run can be merged.
    """
    sound, notes, errors = [], [], []
    for run in runs:
        try:
            _merge([run], [])
            sound.append(run)
        except Exception as error:
            errors.append(error)
            notes.append(_left_out_note(run.folder, error))
    if not sound:
        raise ConfigError(notes[0]) from errors[0]
    return sound, notes


def _left_out_note(folder: Path, error: Exception) -> str:
    why = str(error)
    if not isinstance(error, RfjaxError):
        why = f"its records hold a value of another type than they must ({type(error).__name__}: {error})"
        why += "; restore its files, or run and evaluate the point again"
    return f"the run in {folder} was left out: {why}"


def up_to_date(study_folder: str | Path, say: Callable[[str], None]) -> results.Results:
    """Returns a study's results table. It is collected first if it is missing, and collected again if it is damaged or
    the runs' records have changed since it was made.

    `study_folder` is the study's folder or its results folder. A results folder that has no runs beside it is read
    unchanged. `say` gets a line if an existing table is collected again; the table's notes say what it leaves out.
    Raises `ConfigError` as `collect` and `results_folder.read` do.
    """
    folder = results.find(study_folder)
    root = folder.parent if folder.name == "results" else Path(study_folder)
    runs = run_folders(root) if root.is_dir() and root != folder else []
    there = (folder / "table.json").is_file()
    if not runs:
        return results.read(folder)
    reason, beside = "", ()
    try:
        if there:
            found = results.read(folder)
            now = {run.name: records_hash(run) for run in runs}
            if found.made_of == now:
                return found
            changes = _changes(found.made_of, now)
            reason, beside = f"the runs beside it have other records now ({changes})", found.passed_over
    except ConfigError as error:
        reason = str(error)
    if reason:
        say(f"note: the table in {folder} is collected again: {reason}")
    of_table = [run for run in runs if run.name not in beside]
    return collect(of_table, folder, passed_over=[run for run in runs if run.name in beside])


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Returns a text that lists the runs which are new, changed or gone between two values of `Results.made_of`."""
    kinds = {
        "new": [name for name in now if name not in before],
        "changed": [name for name in now if name in before and before[name] != now[name]],
        "gone": [name for name in before if name not in now],
    }
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)


def _read_runs(folders: Sequence[Path]) -> tuple[list[RunRecords], list[str]]:
    """Reads the run folders; returns the runs, and a note for each folder that cannot be read.

    Raises `ConfigError` if a folder is not a run's, and the first folder's error if none can be read.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"no run's folder at {folder}; give the folder of a run")
        if not any((folder / name).exists() for name in RUN_FILES):
            raise ConfigError(f"{folder} has neither {' nor '.join(RUN_FILES)}; it is not a run folder")
    runs, notes, errors = [], [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except Exception as error:  # whatever the files of a run hold, the other runs are merged
            errors.append(error)
            notes.append(_left_out_note(folder, error))
    if not runs:
        if isinstance(errors[0], RfjaxError):
            raise errors[0]
        raise ConfigError(notes[0]) from errors[0]
    return runs, notes


def long_frame(runs: Sequence[RunRecords], references: Sequence[dict]) -> pd.DataFrame:
    """Makes long.csv: a row for each number in a record, joined with the facts of its run.

    `references` are records that belong to no run.

    Raises `ConfigError` if two records have the same key but different values.
    """
    rows, seen = [], {}
    sources = [(run.facts, run.tokens, run.records) for run in runs] + [({}, tokens.UNKNOWN, references)]
    for facts, counted, records in sources:
        for record in records:
            key = _key_columns(record, KEY)
            identity = tuple(key.values())
            if seen.setdefault(identity, record)["values"] != record["values"]:
                twice = f"two evaluation records have the key {record['key']} and different values"
                raise ConfigError(f"{twice}; delete the stale one")
            if seen[identity] is not record:  # another run's folder has the same measurement, such as the ceiling
                continue
            of_run = key["run"] != "-"  # a record of no run may be in any run's folder
            joined = {
                "final": int(of_run and key["step"] == facts.get("steps")),
                **{name: record[name] for name in ("images", "flops", "seconds", "train_seconds")},
                **(counted if of_run else tokens.UNKNOWN).seen(key["step"], record["images"]),
                **{column.name: facts.get(column.name) if of_run else None for column in RUN},
            }
            rows += [
                key | {column.name: value[column.name] for column in MEASURE} | joined for value in record["values"]
            ]
    return _sorted_frame(rows, LONG, [column.name for column in KEY])


def wide_frame(long: pd.DataFrame) -> pd.DataFrame:
    """Makes wide.csv: a row for each checkpoint and evaluation settings, with losses and scores side by side.

    Losses (records without a sampler) are joined with scores (records with a sampler) on run, step, weights and corpus.
    So a checkpoint with two grids and two samplers has four rows.
    """
    checkpoint = ["run", "step", "weights", "corpus"]
    rows = long[long["step"] >= 0]
    facts = [column.name for column in (*schema.WIDE_PROGRESS, *RUN)]
    with_sampler = rows["sampler"] != "-"
    losses, loss_columns = _pivot(rows[~with_sampler], checkpoint, "grid", "grid_seed")
    scores, score_columns = _pivot(rows[with_sampler], checkpoint, "sampler", "sampler_seed")
    wide = losses.merge(scores, on=checkpoint, how="outer", validate="many_to_many")
    by_checkpoint = rows.groupby(checkpoint)[facts].first()  # the first value that is not missing
    wide = wide.join(by_checkpoint, on=checkpoint)
    measured = (column for name in (*loss_columns, *score_columns) for column in schema.measure_columns(name))
    columns = (*FILES["wide.csv"][0], *measured)
    wide = _cast(wide.reindex(columns=[column.name for column in columns]), columns)
    return wide.sort_values([column.name for column in schema.WIDE_KEY], kind="stable", ignore_index=True)


def runs_frame(runs: Sequence[RunRecords]) -> pd.DataFrame:
    """Makes runs.csv: a row for each run, also for runs without an evaluation."""
    rows = []
    for run in runs:
        trained = [record["train_seconds"] for record in run.records if record["train_seconds"] is not None]
        spent = [record["seconds"] for record in run.records if record["seconds"] is not None]
        seconds = {"train_seconds": max(trained, default=None), "evaluation_seconds": sum(spent) if spent else None}
        rows.append(run.facts | seconds)
    return _sorted_frame(rows, RUNS, ["depth", "params", "run"])


def prompts_frame(runs: Sequence[RunRecords]) -> pd.DataFrame:
    """Makes prompts.csv: a row for each checkpoint and GenEval prompt, from records that store prompts' scores."""
    rows = []
    for run in runs:
        for record in run.records:
            if record["key"]["evaluation"] == control_measures.EVALUATION:  # replicates.csv covers its prompts
                continue
            key, scores = _key_columns(record, PROMPT), record["extra"].get("prompt_scores", ())
            rows += [
                key | {"prompt": index, "task": task, "correct": correct, "samples": samples}
                for index, (task, correct, samples) in enumerate(scores)
            ]
    return _sorted_frame(rows, PROMPT, [column.name for column in PROMPT[:-3]])


def pairs_frame(runs: Sequence[RunRecords]) -> pd.DataFrame:
    """Makes pairs.csv: the variance of each finished run's mean validation loss, and the covariances of pairs of runs.

    They are computed from the losses per example in the records. A record without such losses is left out. Two runs
    are a pair if they have the same weights, corpus, grid, seed and examples. With many runs
    (`rfjax.results.many_runs`), a run has only its variance and its covariances with `ANCHORS` runs, which are spread
    over the range of losses.
    """
    alike: dict[tuple, list] = {}
    for run in runs:
        for record in run.records:
            key, extra = record["key"], record["extra"]
            losses = extra.get("example_losses")
            if losses and None not in losses and key["step"] == run.facts.get("steps"):
                settings = (key[name] for name in ("weights", "corpus", "grid", "seed"))
                alike.setdefault((*settings, extra.get("example_ids_sha1"), len(losses)), []).append((record, losses))
    rows = []
    for members in alike.values():
        members = sorted(members, key=lambda member: member[0]["key"]["run"])
        table = np.array([losses for _, losses in members], float)
        covariance, many = np.atleast_2d(np.cov(table)), are_many(len(members))
        spread = np.linspace(0, len(members) - 1, ANCHORS).round().astype(int)
        anchors = set(np.argsort(table.mean(axis=1), kind="stable")[spread].tolist())
        for i, (record, losses) in enumerate(members):
            common = _key_columns(record, PAIR) | {"n": len(losses)}
            others = sorted(anchors | {i}) if many else range(i, len(members))
            rows += [
                common | {"other_run": members[j][0]["key"]["run"], "covariance": float(covariance[i, j] / len(losses))}
                for j in others
            ]
    return _sorted_frame(rows, PAIR, [column.name for column in PAIR[:-2]])


def replicates_frame(runs: Sequence[RunRecords]) -> pd.DataFrame:
    """Makes replicates.csv: a row for each measure in a ranking's record, with the measure under each resample."""
    rows = []
    for run in runs:
        for record in run.records:
            key, extra = record["key"], record["extra"]
            if key["evaluation"] != control_measures.EVALUATION or "replicates" not in extra:
                continue
            prompts = json.dumps([[task, images] for task, _, images in extra["prompt_scores"]])
            common = _key_columns(record, REPLICATE) | {
                "prompts_sha1": hashlib.sha1(prompts.encode()).hexdigest(),
                "feature_map": extra["feature_map"],
                "reference_sha1": extra["reference"]["sha1"],
            }
            for metric, name in control_measures.REPLICATES.items():
                replicates = " ".join("nan" if v is None else repr(v) for v in extra["replicates"][name])
                rows.append(common | {"metric": metric, "replicates": replicates})
    return _sorted_frame(rows, REPLICATE, [column.name for column in REPLICATE[:-4]])


def _pivot(rows, checkpoint, setting, setting_seed):
    """Returns a frame with a row for each checkpoint, setting and evaluation seed, and the names of the measures that
    are its columns.

    `checkpoint` lists the columns that identify a checkpoint. `setting` is "grid" or "sampler". The frame names its
    evaluation seed `setting_seed`. Raises `ConfigError` if a row would have two values of one measure.
    """
    index = [*checkpoint, "setting", "evaluation_seed"]
    triples = zip(rows["evaluation"], rows["metric"], rows["item"], strict=True)
    names = [schema.Measure(*triple).format() for triple in triples]
    rows = rows.rename(columns={setting: "setting"}).assign(measure=names)
    repeated = rows.duplicated([*index, "measure"])
    if repeated.any():
        row = rows[repeated].iloc[0]
        raise ConfigError(
            f"run {row['run']!r} has {row['measure']!r} twice at step {row['step']} for {row['setting']!r} and seed "
            f"{row['evaluation_seed']}; delete one of the records"
        )
    pieces = []
    for statistic, suffix in schema.STATISTICS:
        values = rows[statistic].astype(float)
        piece = rows.assign(v=values).pivot(index=index, columns="measure", values="v")
        pieces.append(piece.rename(columns=lambda name, suffix=suffix: name + suffix))
    frame = pd.concat(pieces, axis=1).reset_index() if len(rows) else pd.DataFrame(columns=index)
    frame = frame.rename(columns={"setting": setting, "evaluation_seed": setting_seed})
    return frame, tuple(dict.fromkeys(names))


def _key_columns(record, columns):
    """Returns {column name: value} from a record's key; None for columns that are not part of the key."""
    return {column.name: record["key"].get(KEY_NAMES.get(column.name, column.name)) for column in columns}


def _sorted_frame(rows, columns, order):
    """Makes a frame with these columns from the rows, sorted by the columns `order`."""
    frame = _cast(pd.DataFrame(rows, columns=[column.name for column in columns]), columns)
    return frame.sort_values(order, kind="stable", ignore_index=True)


def _cast(frame, columns):
    """Casts every column to its kind: text ("" if missing), nullable integer or float."""
    result = {}
    for column in columns:
        values = frame[column.name]
        if column.kind == "text":
            found = [_text_of(v) if type(v) is str else "" if v is None or pd.isna(v) else _as_text(v) for v in values]
            result[column.name] = pd.Series(found, frame.index, object)
        elif column.kind == "integer":
            whole = [v if type(v) is int else pd.NA if pd.isna(v) else int(v) for v in values.tolist()]
            result[column.name] = pd.array(whole, dtype="Int64")
        else:
            numbers = [v if type(v) is float else np.nan if pd.isna(v) else float(v) for v in values.tolist()]
            result[column.name] = np.array(numbers, dtype=float)
    return pd.DataFrame(result, index=frame.index)


@functools.lru_cache(maxsize=1 << 16)  # names repeat on many rows
def _text_of(name: str) -> str:
    return _as_text(name)


def _as_text(value) -> str:
    """Converts a value to text that UTF-8 can encode: bytes of a name that are not UTF-8 become escapes."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _sheets(records):
    """Returns the sheets of the records of samples, each as `_sheet` returns it. `records` are pairs (folder, record).

    The clips of a run that also has stills were once recorded as "samples", and are now "temporal_samples". If a run
    has both records of the same clips, only the latter counts.
    """
    found = {}
    for folder, record in sorted(records, key=lambda each: each[1]["key"]["evaluation"]):
        if record["extra"].get("png"):
            same = {name: value for name, value in record["key"].items() if name != "evaluation"}
            found[(*same.values(), bool(record["extra"].get("webp")))] = _sheet(folder, record)
    return list(found.values())


def _sheet(folder, record):
    """Returns (the `SampleSheet` of a record of samples, with an empty `png`; the path of its picture in the run's
    folder)."""
    extra, key = record["extra"], ("run", "step", "weights", "sampler", "seed")
    prompts, tile = tuple(map(_as_text, extra.get("prompts", ()))), int(extra.get("tile") or 0)
    pictures = {"png": "", "webp": extra.get("webp", "")}
    sheet = results.SampleSheet(**{name: record["key"][name] for name in key}, prompts=prompts, tile=tile, **pictures)
    return sheet, folder / extra["png"]
