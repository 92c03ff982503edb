"""The analysis of a preference study: win rates, strengths, agreement and raters, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from rfjax.results.plain import plain
from rfjax.votes.agreement import alpha_of_votes
from rfjax.votes.ballots import Ballots, ballots_of
from rfjax.votes.clusters import Clusters
from rfjax.votes.raters import RULE, judge
from rfjax.votes.reading import Joined, Vote
from rfjax.votes.strengths import MODELS, as_elo, fit_strengths, unconnected_groups, wins_of
from rfjax.votes.study import KeyedStudy

SCHEMA = 1
SUBSETS = ("category", "challenge")  # fields of a prompt; each value of a field has win rates of its own
OTHERS = "all others"  # stands in place of the other run's name where a run is compared with all other runs


def analyse(study: KeyedStudy, joined: Joined) -> dict:
    """Analyses the votes of a study, question by question. A question without votes gets a reason instead of numbers.

    The result does not depend on the order of the votes. It holds no NaN: a number that the votes do not determine is
    None.
    """
    raters = judge(study, joined.votes)
    out = {rater.rater for rater in raters if rater.left_out}
    kept = [vote for vote in joined.votes if vote.rater not in out]
    return plain(
        {
            "schema": SCHEMA,
            "study": study.id,
            "runs": list(study.runs),
            "files": joined.files,
            "answers": len(joined.votes),
            "doubled": joined.doubled,
            "replaced": joined.replaced,
            "rule": RULE,
            "raters": [asdict(rater) | {"judged": rater.judged} for rater in raters],
            "questions": [
                {"question": question.name, "text": question.text} | _question(study, kept, question.name)
                for question in study.questions
            ],
        }
    )


def _question(study: KeyedStudy, votes: Sequence[Vote], question: str) -> dict:
    ballots = ballots_of(study, votes, question)
    if not len(ballots):
        return {"votes": 0, "reason": "no vote on it counts"}
    clusters = Clusters(ballots.rater, ballots.prompt)
    alpha, units = alpha_of_votes(study, votes, question)
    groups = unconnected_groups(ballots)
    found = {
        "votes": len(ballots),
        "ties": float((ballots.choice == 0).mean()),
        "left": float((ballots.choice > 0).mean()),
        "raters": clusters.raters,
        "prompts": clusters.prompts,
        "fixed_raters": clusters.fixed_raters,
        "interval_method": clusters.method,
        "alpha": alpha,
        "alpha_pairs": units,
        "alpha_reason": "" if alpha is not None else _no_alpha(units),
        "win_rates": _win_rates(study, ballots),
        "strengths": [],
        "reason": "",
    }
    if len(groups) > 1:
        listed = " | ".join(", ".join(study.runs[run] for run in group) for group in groups)
        found["reason"] = (
            f"no strengths: no vote compares a run of one of these groups with a run of another: {listed}; "
            "ask raters about such pairs, or make a study of each group"
        )
    else:
        found["strengths"] = [_strengths(ballots, model) for model in MODELS]
    return found


def _no_alpha(units):
    return "all raters gave the same answers" if units else "no pair has the votes of two raters"


def _strengths(ballots: Ballots, model: str) -> dict:
    fit = fit_strengths(ballots, model)
    return {
        "model": model,
        "title": MODELS[model],
        "theta": fit.theta,
        "side": None if fit.side is None else asdict(fit.side),
        "log_likelihood": fit.log_likelihood,
        "runs": [{"run": run} | asdict(found) | {"elo": asdict(as_elo(found))} for run, found in fit.strengths.items()],
        "differences": [
            {"run": one, "against": other} | asdict(found)
            for (one, other), found in fit.differences.items()
            if fit.strengths[one].value > fit.strengths[other].value
        ],
        "notes": list(fit.notes),
    }


def _win_rates(study: KeyedStudy, ballots: Ballots) -> list[dict]:
    """Computes each run's win rate against all other runs together and against each of them: on all prompts, by
    category, and by challenge."""
    rows = []
    for subset, values in [("all", [None]), *((name, _values(study, name)) for name in SUBSETS)]:
        for value in values:
            inside = [value is None or getattr(study.prompts[int(one)], subset) == value for one in ballots.prompt]
            own = ballots.chosen(np.array(inside, bool))
            for run in range(len(study.runs)):
                for other in (None, *range(len(study.runs))):
                    if other == run or (other is None and len(study.runs) == 2):
                        continue
                    rows += _win_rate(study, own, subset, value, run, other)
    return rows


def _values(study, field):
    return sorted({getattr(prompt, field) for prompt in study.prompts.values()} - {None})


def _win_rate(study, ballots, subset, value, run, other):
    own = ballots.of_runs(run, other)
    if not len(own):
        return []
    scores, ties = wins_of(own, run)
    clusters = Clusters(own.rater, own.prompt)
    names = {"run": study.runs[run], "against": OTHERS if other is None else study.runs[other]}
    counts = {"wins": int((scores == 1).sum()), "ties": int(ties.sum()), "losses": int((scores == 0).sum())}
    within = {"raters": clusters.raters, "prompts": clusters.prompts, "interval_method": clusters.method}
    return [{"subset": subset, "of": value or ""} | names | counts | asdict(clusters.share(scores)) | within]
