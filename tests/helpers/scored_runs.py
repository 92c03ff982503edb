"""A run's folder as training and one evaluation leave it, for scores to be attached to."""

import json

from rfjax.evaluation import records

SPENT = {"images": 6400, "flops": 1.5e12, "train_seconds": 20.0}


def write(folder):
    folder.mkdir(parents=True)
    facts = {"schema": 1, "run": "point", "depth": 2, "params": 1000, "steps": 100}
    (folder / "run.json").write_text(json.dumps(facts))
    key = records.record_key(
        run="point", step=100, evaluation="validation", corpus="shapes", weights="ema", grid="paper-8"
    )
    values = [records.Measured(metric="loss", value=0.5, stderr=0.1, low=0.3, high=0.7, n=8)]
    records.write_record(folder, records.make_record(key, values, seconds=1.0, **SPENT))
    return folder
