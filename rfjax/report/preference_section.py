"""Makes the report's section on human preference: its figure, after SD3's figure 8, and its tables."""

from __future__ import annotations

from matplotlib.figure import Figure

from rfjax.report.axes import GREY, WIDTH, depth_handles, ends, log_scale, points
from rfjax.report.formats import NONE, estimate, p_value, text
from rfjax.report.html_parts import warning
from rfjax.report.preference_numbers import AGAINST, value_of

TITLES = {"aesthetics": "Aesthetics", "prompt": "Prompt following", "typography": "Typography"}
NOTE = (
    "A win rate is relative to the study's other runs, so the points of one question are not independent; correlations "
    "are over runs and leave the votes' own noise out."
)


def preference_against_scores(numbers, look):
    """Draws win rates against the loss, and beside them against GenEval, a row for each question."""
    found = numbers["preference"]
    if not found or len(found["runs"]) < 2:
        return None
    shown = [against for against in AGAINST if sum(value_of(run, against) is not None for run in found["runs"]) > 1]
    questions = found["questions"]
    figure = Figure(figsize=(WIDTH, 2.4 * len(questions)))
    panels = figure.subplots(len(questions), len(shown), squeeze=False, sharey=True)
    for row, question in zip(panels, questions, strict=True):
        for axis, against in zip(row, shown, strict=True):
            _draw_panel(axis, found, against, question, look)
        row[0].set_ylabel("win rate over the others")
    panels[0][0].legend(handles=depth_handles(look, found["runs"]), loc="upper right", fontsize=7)
    return figure


def _draw_panel(axis, found, against, question, look):
    have = [run for run in found["runs"] if question in run["win_rates"] and value_of(run, against) is not None]
    axis.axhline(0.5, color=GREY, lw=0.7, ls=":")
    rows = []
    for run in have:
        colour, marker = look[run["depth"]]
        style = {"color": colour, "marker": marker, "ms": 4.5}
        rows.append((value_of(run, against), *ends(run["win_rates"][question]), style))
        low, high = (run["loss_low"], run["loss_high"]) if against == "loss" else ends(run["geneval"])[1:]
        if low is not None and high is not None:
            axis.plot([low, high], [run["win_rates"][question]["value"]] * 2, color=colour, lw=0.8)
    points(axis, rows)
    if against == "loss":
        log_scale(axis, "x", [run["loss"] for run in have])
    label = f"{AGAINST[against]}{' (falls to the left)' if against == 'loss' else ''}"
    title = TITLES[question]
    coefficients = found["correlation"][against][question]["coefficients"]
    rank = next((each for each in coefficients if each["name"] == "Spearman"), None)
    if rank is not None:
        title += f"\nSpearman {rank['value']:.2f}, n = {len(have)}".replace("-", "−")
    axis.set(xlabel=label, title=title, ylim=(-0.03, 1.03))


def preference_section(numbers, page):
    """Returns the HTML of the section on human preference against the validation loss and GenEval; "" if nobody voted
    on finished runs."""
    found = numbers["preference"]
    if not found:
        return ""
    drawn = page.drawing(
        "preference_against_scores",
        "Share of votes that preferred a run's images to those of the study's other runs, a tie being half, against "
        "validation loss and overall GenEval of the final checkpoints, as in SD3's figure 8. Bars: 95 % intervals; "
        f"those of votes are clustered by rater and prompt. {NOTE}",
    )
    parts = [drawn, _table(found, page), _correlations(found, page)]
    if found["others"]:
        parts.append(warning(f"other studies of votes are not shown: {', '.join(found['others'])}"))
    return "".join(parts)


def _table(found, page):
    header = ["run", *(f"{TITLES[name]}<br><small>{what}</small>" for name in found["questions"] for what in MEASURES)]
    rows = []
    for run in found["runs"]:
        measured = [run[key].get(name) for name in found["questions"] for key in MEASURES.values()]
        rows.append([text(run["run"]), *(estimate(one) if one else NONE for one in measured)])
    votes = max(one["n"] for run in found["runs"] for one in run["win_rates"].values())
    caption = (
        f"Human preference ({text(found['corpus'])}; images: sampler {text(found['sampler'])}, seed "
        f"{found['evaluation_seed']}): win rate over the other runs, and strength of Bradley and Terry's model in log "
        f"odds, with 95 % intervals. At most {votes:,} votes on a run."
    )
    return page.table(header, rows, caption)


MEASURES = {"win rate": "win_rates", "strength": "strengths"}


def _correlations(found, page):
    rows, methods = [], {}
    for against, title in AGAINST.items():
        for question, one in found["correlation"][against].items():
            for each in one["coefficients"]:
                if each["name"] in ("Pearson", "Spearman"):
                    named = [text(TITLES[question]), text(title), text(each["name"])]
                    rows.append([*named, estimate(each), p_value(each["p"]), str(one["n"])])
                    methods[one["p_method"]] = None
    if not rows:
        reasons = {one["reason"] for one in found["correlation"]["loss"].values() if one["reason"]}
        return warning(f"no correlation of loss and human preference: {'; '.join(sorted(reasons))}")
    caption = f"Win rates and measures of the same checkpoints. p: {text('; '.join(methods))}."
    header = ["question", "against", "coefficient", "value, 95 % interval", "p", "runs"]
    return page.table(header, rows, caption, words=(0, 1, 2))
