"""Writes the report's section on clips: scores and their floors, the loss against the scores, and the gallery."""

from __future__ import annotations

from rfjax.report.formats import NONE, estimate, minus, p_value, power, text
from rfjax.report.score_sections import sheet_of
from rfjax.report.temporal_figures import drawn_items, item_title

FLOOR_TITLES = {
    "reversed": "frames reversed",
    "shuffled": "frames shuffled",
    "first_held": "first frame held",
    "other_prompts": "other prompts",
    "null": "null condition",
}
PART_TITLES = {"seen": "prompts of triples seen in training", "held_out": "prompts of triples held out"}


def temporal_section(numbers, page):
    """Returns the HTML of the section on temporal GenEval and its soft measures; "" if no clip was scored."""
    temporal = numbers["temporal"]
    if not temporal:
        return ""
    drawn = page.drawing(
        "temporal_against_compute",
        "Temporal GenEval against training FLOPs, a point for each run. Strict: share of clips in which every clause "
        "of the prompt holds. Soft: share of the moving objects whose colour moves in the asked direction, by how many "
        "pixels a frame it moves in that direction, and share of frames with the right class and colour. Velocity "
        "error: distance of the velocity that the detector finds from the velocity that the prompt asks for. Red: the "
        "best of the point's floors, which are the same clips with their frames in another order or judged by other "
        "prompts, and clips of the null condition. Bars: 95 % intervals clustered by prompt.",
    )
    against = page.drawing(
        "loss_against_temporal", "Validation loss against temporal scores, final checkpoints; 95 % intervals."
    )
    tables = _table(temporal, page) + _velocity(temporal, page)
    return drawn + tables + against + _correlations(temporal, page) + _gallery(numbers, page)


def _table(temporal, page):
    items, best = drawn_items(temporal), [run for run in temporal["runs"] if run["best_of_depth"]]
    last = best[-1]
    rows = [
        [f"depth {run['depth']}<br><small>{text(run['run'])}</small>"]
        + [_cell(run["scores"].get(item), run["highest_floor"].get(item)) for item in items]
        for run in best
    ]
    for floor, values in last["floors"].items():
        label = f"floor: {FLOOR_TITLES[floor]}, depth {last['depth']}"
        if values:
            rows.append([label, *(_cell(values.get(item)) for item in items)])
    for part, title in PART_TITLES.items():
        if last[part]:
            rows.append([f"{title}, depth {last['depth']}", *(_cell(last[part].get(item)) for item in items)])
    rows.append(["ground truth, by the detector", *(_cell(temporal["ceiling"].get(item)) for item in items)])
    clips = max(estimate["n"] for estimate in last["scores"].values())
    return page.table(
        ["", *(text(item_title(item)) for item in items)],
        rows,
        "Temporal GenEval of the run of lowest loss at each depth, with 95 % intervals clustered by prompt. *: the "
        "interval is better than those of all its floors. A dash: the floor is not measured, because the task's clips "
        f"stay right when their frames are reordered. Sampler {text(temporal['sampler'])}, {clips} clips.",
    )


def _velocity(temporal, page):
    """Returns the HTML table of velocity errors on triples (class, colour, direction) that occur in training and on
    triples that do not, beside the detector's own error."""
    rows = []
    for run in temporal["runs"]:
        if not run["best_of_depth"] or "velocity_found" not in run["scores"]:
            continue
        parts = [run["seen"], run["held_out"]] if run["seen"] else [run["scores"]]
        beside = [run["detector"][part] for part in (("seen", "held_out") if run["seen"] else ("all",))]
        cells = [_cell(each.get("velocity_error"), form=".3f") for each in (*parts, *beside)]
        found = [_cell(each.get("velocity_found")) for each in parts]
        rows.append([f"depth {run['depth']}<br><small>{text(run['run'])}</small>", *cells, *found])
    if not rows:
        return ""
    split = len(rows[0]) > 4
    names = ("seen in training", "held out") if split else ("",)
    titles = [f"{title}, {name}".rstrip(", ") for title in ("error", "detector's own", "found") for name in names]
    return page.table(
        ["", *titles],
        rows,
        "Velocity error in pixels a frame, on prompts whose triple (class, colour, direction) was in training and on "
        "prompts of triples that were held out, with 95 % intervals clustered by prompt. The detector's own error is "
        "that of ground-truth clips: a model with an error as small cannot be told from ground truth. Found: share of "
        "clips in which the detector finds every moving object in two frames or more; the other clips have no velocity "
        "error.",
    )


def _cell(found, floor=None, form=".2f"):
    value, _, interval = estimate(found, form).partition(" ")
    mark = "<sup>*</sup>" if floor and floor["above_all"] else ""
    return f"{mark}{value}<br><small>{interval}</small>" if interval else mark + value


def _correlations(temporal, page):
    rows, methods = [], []
    for item, found in temporal["correlation"].items():
        for one in found["coefficients"]:
            if one["name"] == "Spearman":
                rows.append([text(item_title(item)), estimate(one), p_value(one["p"])])
                methods.append(found["p_method"])
    if not rows:
        return ""
    caption = f"Validation loss and temporal scores: rank correlation over {len(temporal['runs'])} runs. p: "
    return page.table(["measure", "Spearman, 95 % interval", "p"], rows, f"{caption}{text(methods[0])}.")


def _gallery(numbers, page):
    rows = [row for row in numbers["gallery"] if row["png"] in page.sheets]
    if not rows:
        return ""
    least = rows[0]["flops"]
    labels = [f"{_times(row['flops'] / least)}<br>{power(row['flops'], 2)}" for row in rows]
    caption = (
        f"The same prompts and the same noise at compute C, 4C and 32C, as in Sora's report: depth {rows[0]['depth']}, "
        "each end with its learning rate annealed. The clips play; in print, time runs downwards."
    )
    return page.figure(sheet_of(numbers["samples_of_clips"]["prompts"], rows, labels, page.sheets), caption)


def _times(factor):
    return "C" if factor < 1.01 else minus(f"{factor:.3g}") + " C"


def temporal_lines(temporal) -> list[str]:
    """Returns a line for the console on the best run of each depth: the shares of objects that move in the asked
    direction and of frames that are right (soft), and of correct clips with motion (strict), each with its
    highest floor."""
    lines = []
    for run in temporal["runs"]:
        if not run["best_of_depth"]:
            continue
        told = []
        for item in ("direction_right", "frames_right", "all_moving"):
            floor = run["highest_floor"].get(item)
            if item in run["scores"]:
                below = f" (highest floor {floor['value']:.2f}, {floor['floor']})" if floor else ""
                told.append(f"{item} {estimate(run['scores'][item])}{below}")
        lines.append(f"temporal GenEval of {run['run']}: {', '.join(told) or NONE}")
    return lines


def temporal_sentence(temporal) -> str:
    """Returns a sentence on clips for the report's findings: at the smallest and the largest depth, the share of
    objects that move in the asked direction, and the share of clips with motion that are strictly correct."""
    runs = [run for run in temporal["runs"] if run["best_of_depth"]]
    first, last = runs[0], runs[-1]
    parts = []
    for item, name in (("direction_right", "Direction right (soft)"), ("all_moving", "all moving tasks (strict)")):
        if item in last["scores"]:
            floor = last["highest_floor"].get(item)
            where = ""
            if floor:
                where = f" ({'above' if floor['above_all'] else 'not clear of'} the intervals of all its floors)"
            parts.append(f"{name} {_goes(first, last, item)}{where}")
    return f"Temporal GenEval: {'; '.join(parts)}." if parts else ""


def _goes(first, last, item):
    if first is last or item not in first["scores"]:
        return f"is {estimate(last['scores'][item])} at depth {last['depth']}"
    ends = (f"{estimate(run['scores'][item])} at depth {run['depth']}" for run in (first, last))
    return "goes from {} to {}".format(*ends)
