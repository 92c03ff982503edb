"""What trackers have of a run, as {(name, step): [values in the order in which they came]}."""

import json
import struct
from collections import defaultdict
from pathlib import Path

import numpy as np

from rfjax.trackers.event_files import Event
from rfjax.trackers.items import values_of_row


def of_rows(workdir):
    """What metrics.jsonl says."""
    found = defaultdict(list)
    for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in values_of_row(row).items():
            found[name, row["step"]].append(value)
    return dict(found)


def events(folder):
    """The events of all whole records in a folder's event files, a file after the other."""
    for path in sorted(Path(folder).glob("events.out.tfevents.*")):
        content, place = path.read_bytes(), 0
        while place + 12 <= len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            if place + 16 + length > len(content):
                break  # torn
            yield Event.FromString(content[place + 12 : place + 12 + length])
            place += 16 + length


def of_events(folder):
    found = defaultdict(list)
    for event in events(folder):
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found[value.tag, event.step].append(value.simple_value)
    return dict(found)


def of_wandb(workdir):
    """What all starts of a run left in their files; offline folders, the oldest first."""
    from rfjax.trackers.wandb_runs import records

    found = defaultdict(list)
    for path in sorted(Path(workdir).glob("wandb/*run-*/run-*.wandb")):
        for record in records(path.read_bytes()):
            if record.HasField("history"):
                values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                for name, value in values.items():
                    if name != "step" and not name.startswith("_"):
                        found[name, values["step"]].append(value)
    return dict(found)


def of_mlflow(address, names):
    """What the only run has of the metrics with these names."""
    import mlflow

    client = mlflow.MlflowClient(address)
    experiment = client.get_experiment_by_name("rfjax").experiment_id
    (run,) = client.search_runs([experiment])
    found = defaultdict(list)
    for name in names:
        for metric in client.get_metric_history(run.info.run_id, name):
            found[name, metric.step].append(metric.value)
    return dict(found)


def check_same(found, rows, kind=float):
    """Every value is there, and none has two values for one step."""
    assert not found.keys() ^ rows.keys(), sorted(found.keys() ^ rows.keys())[:4]
    for place, values in rows.items():
        assert {kind(value) for value in found[place]} == {kind(value) for value in values}, place


def as_float32(value):
    """A number as an event file keeps it."""
    return float(np.float32(value))
