"""MLflow: a run of rfjax is one run at the server that MLFLOW_TRACKING_URI names. A resumed run is found by its tag.

A value that is sent twice has the same step and time both times. MLflow's databases then store it once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

import mlflow
from mlflow.entities import Metric, Param, RunTag

from rfjax.trackers.items import Item, read_picture
from rfjax.trackers.table import About

ADDRESS = "MLFLOW_TRACKING_URI"
TAG = "rfjax.id"
MOST_METRICS, MOST_PARAMS, MOST_TEXT = 1000, 100, 500  # what one call to a server may hold
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]", re.ASCII)


def why_not() -> str:
    """Says what is missing to use MLflow; "" if nothing is. A folder or a database is opened, but a server is not
    contacted, because it may be down for now."""
    address = os.environ.get(ADDRESS, "")
    if not address:
        remedy = "set it to your server, as http://HOST:5000, or to a folder or database, as sqlite:////PATH/mlflow.db"
        return f"the environment has no {ADDRESS}; {remedy}"
    if address.startswith(("http:", "https:", "databricks")):
        return ""
    try:
        mlflow.MlflowClient(address).search_experiments(max_results=1)
    except Exception as error:
        why = " ".join(str(error).split())[:400]
        return f"{ADDRESS}={address} cannot be used: {why}"
    return ""


class MlflowRun:
    """A run that is open at MLflow."""

    def __init__(self, about: About):
        self._workdir = about.workdir
        self._client = mlflow.MlflowClient(os.environ.get(ADDRESS))
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "rfjax"))
        known = self._client.search_runs([experiment], f"tags.`{TAG}` = '{about.id}'", max_results=1)
        if known:
            self._id = known[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {TAG: about.id} | ({"study": about.group} if about.group else {})
        self._id = self._client.create_run(experiment, tags=tags, run_name=about.name).info.run_id
        params = [Param(key, str(value)[:MOST_TEXT]) for key, value in about.config.items()]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self._id, params=params[start : start + MOST_PARAMS])
        self._client.log_batch(self._id, tags=[RunTag("folder", str(about.workdir))])

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def send(self, items: Iterable[Item], number: int) -> None:
        metrics = [
            Metric(_NOT_IN_NAMES.sub("_", name), value, int(1000 * item["time"]), item["step"])
            for item in items
            for name, value in item["values"].items()
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[start : start + MOST_METRICS])
        for item in items:
            if item["picture"]:
                read_picture(self._workdir, item)  # names the file if it is not there
                self._client.log_artifact(self._id, str(self._workdir / item["picture"]), "samples")

    def flush(self) -> None:
        """Does nothing: each call in `send` returned only after the server had the values."""

    def close(self, done: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if done else "KILLED")


open_run = MlflowRun
