"""One run in MLflow: found by its name, written by its id, tolerant of server outages."""

from __future__ import annotations

import io
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

import glioray
from glioray.engine.on_mlflow.client import artifact_location, connect, wrap_errors
from glioray.engine.on_mlflow.client import tracking_uri as tracking_uri
from glioray.engine.on_mlflow.outbox import MAX_METRICS, Artifact, Entities, Outbox
from glioray.engine.on_mlflow.provenance import git_commit
from glioray.engine.on_mlflow.system import SystemMetrics
from glioray.errors import StorageError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

T = TypeVar("T")

Kind = Literal["train", "sweep", "trial", "comparison", "ensemble", "evaluate", "data"]

KEY_TAG = "glioray.key"
_PARENT_TAG = "mlflow.parentRunId"
_MAX_PARAM_LENGTH, _MAX_TAG_LENGTH = 6000, 8000  # MLflow's
_MAX_ENTITIES = 100  # params, or tags, of one request, by MLflow's rule


class RunLogger:
    """Writes to one MLflow run; created by `open_run`. Only rank 0 of a run writes.

    During an outage every `log_*` and `set_tags` queues its values, and the next call sends them first; see
    `Outbox`. Only `open_run` raises on an outage.

    Attributes:
        run_id: MLflow's id of the run.
        experiment_id: MLflow's id of its experiment.
        resumed: whether the run existed before.
    """

    def __init__(self, client: MlflowClient, run: Run, *, resumed: bool) -> None:
        self.client = client
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.resumed = resumed
        self._params: dict[str, str] = dict(run.data.params)
        self._outbox = Outbox(client, self.run_id)
        steps = [metric.step for metric in run.data._metric_objs if metric.key.startswith("system/")]
        self._system_step = max(steps, default=-1) + 1

    @classmethod
    def open_run(
        cls,
        experiment: str,
        run_name: str,
        *,
        kind: Kind,
        parent_run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        tracking_uri: str | None = None,
    ) -> RunLogger:
        """Reopen the run of that kind and name in the experiment, or create it.

        A run is identified by the tag `glioray.key` = kind/run_name (percent-encoded) and its parent: a retried trial
        or a resumed training continues its own run, however it ended. A run deleted in MLflow's UI is created anew.
        If two processes open a key at once, the one with the younger run deletes it and uses the other. MLflow has no
        lock: within the milliseconds of one request both may keep their own, and the next to open the key gets the
        older one.

        Args:
            experiment: the experiment's name; created if missing.
            run_name: as the UI shows it.
            kind: of the run, such as "train" or "trial".
            parent_run_id: the sweep's run, for a trial.
            tags: beside the commit and glioray's version, which are always set.
            tracking_uri: the server; by default MLFLOW_TRACKING_URI.

        Raises:
            UsageError: no server is configured, or the experiment is in MLflow's trash.
            StorageError: the server does not answer within seconds, or refuses.
        """
        client = connect(tracking_uri)
        commit = git_commit()
        all_tags = {
            **(tags or {}),
            KEY_TAG: quote(f"{kind}/{run_name}", safe="/ ()+,:=@"),
            "glioray.kind": kind,
            "glioray.version": glioray.__version__,
            "glioray.git_commit": commit,
        }
        if commit != "unknown":
            all_tags["mlflow.source.git.commit"] = commit.removesuffix("-dirty")
        if parent_run_id is not None:
            all_tags[_PARENT_TAG] = parent_run_id
        with wrap_errors(f"open the run '{run_name}' in experiment '{experiment}'", client):
            experiment_id = _experiment_id(client, experiment)
            found = _find(client, experiment_id, all_tags[KEY_TAG], parent_run_id)
            if found is None:
                made = client.create_run(experiment_id, tags=_cut_tags(all_tags), run_name=run_name)
                found = _find(client, experiment_id, all_tags[KEY_TAG], parent_run_id) or made
                if found.info.run_id == made.info.run_id:
                    return cls(client, made, resumed=False)
                client.delete_run(made.info.run_id)
            client.update_run(found.info.run_id, status="RUNNING")
            logger = cls(client, found, resumed=True)
        logger.set_tags(all_tags)
        return logger

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings, nested ones under dotted names.

        Values too long for MLflow are truncated and end with their length. MLflow params are immutable: if a resumed
        run has a new value, the first one stays and the new one becomes the tag `glioray.changed.NAME`, with a
        warning.

        Raises:
            UsageError: MLflow cannot store a name.
        """
        flat = {name: _shortened(value, _MAX_PARAM_LENGTH) for name, value in _flatten(params)}
        changed = {name: value for name, value in flat.items() if self._params.get(name, value) != value}
        for name, value in changed.items():
            _log.warning(
                "setting %s was %s when the run began and is %s now", name, self._params[name], value
            )
        fresh = [
            Param(_checked_name(name), value) for name, value in flat.items() if name not in self._params
        ]
        self._params.update({param.key: param.value for param in fresh})
        self._outbox.put([Entities(params=chunk) for chunk in _chunks(fresh, _MAX_ENTITIES)])
        self.set_tags({f"glioray.changed.{name}": value for name, value in changed.items()})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of one step, in one request.

        NaN stays NaN; MLflow stores an infinity as the largest float.

        Raises:
            UsageError: MLflow cannot store a name.
        """
        now = time.time_ns() // 1_000_000
        values = [
            Metric(_checked_name(name), float(value), now, int(step)) for name, value in metrics.items()
        ]
        self._outbox.put([Entities(metrics=chunk) for chunk in _chunks(values, MAX_METRICS)])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing existing ones."""
        items = [RunTag(_checked_name(name), value) for name, value in _cut_tags(tags).items()]
        self._outbox.put([Entities(tags=chunk) for chunk in _chunks(items, _MAX_ENTITIES)])

    def log_figure(self, figure: Figure, path: str) -> None:
        """Log a figure as `path`; its extension (.png, .svg, .pdf) sets the format."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format=Path(path).suffix.lstrip(".") or "png", dpi=110, bbox_inches="tight")
        self._put_file(path, buffer.getvalue())

    def log_text(self, text: str, path: str) -> None:
        """Log text as a file of the run."""
        self._put_file(path, text.encode())

    def log_json(self, value: Any, path: str) -> None:
        """Log a JSON value as a file of the run."""
        self.log_text(json.dumps(value, indent=2, default=str) + "\n", path)

    def log_file(self, file: Path, path: str) -> None:
        """Log a local file as `path` (its name in the run, folders included).

        Raises:
            StorageError: the file cannot be read.
        """
        try:
            data = file.read_bytes()
        except OSError as error:
            raise StorageError(f"'{file}' cannot be read: {error.strerror}; log an existing file") from error
        self._put_file(path, data)

    def log_folder(self, folder: Path, path: str) -> None:
        """Log every file below a local folder, under `path`.

        Raises:
            StorageError: it is not a folder.
        """
        if not folder.is_dir():
            raise StorageError(f"'{folder}' is not a folder; log an existing folder")
        for file in sorted(item for item in folder.rglob("*") if item.is_file()):
            self.log_file(file, f"{path}/{file.relative_to(folder).as_posix()}".lstrip("/"))

    @contextmanager
    def system_metrics(self, *, interval_s: float = 10.0) -> Iterator[None]:
        """Sample CPU, memory, disk, network and GPU into the run while the block runs."""
        sampler = SystemMetrics(self.log_metrics, interval_s=interval_s, first_step=self._system_step)
        sampler.start()
        try:
            yield
        finally:
            self._system_step = sampler.stop()

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED", reason: str = "") -> None:
        """End the run, with the reason as the tag `glioray.reason`.

        Entries that still cannot be sent after a few seconds are dropped and listed in the log.
        """
        if reason:
            self.set_tags({"glioray.reason": reason})
        for wait_s in (0, 1, 2, 4):
            time.sleep(wait_s)
            if self._outbox.flush():
                break
        if lost := self._outbox.forget():
            few = "; ".join(lost[:20]) + (f"; and {len(lost) - 20} more" if len(lost) > 20 else "")
            _log.warning("run %s ends without what MLflow did not take: %s", self.run_id, few)
        try:
            with wrap_errors(f"end the run {self.run_id} as {status}", self.client):
                self.client.set_terminated(self.run_id, status=status)
        except StorageError as error:
            _log.warning("%s", error)

    def _put_file(self, path: str, data: bytes) -> None:
        if path.startswith("/") or ".." in path.split("/") or not path.strip("/"):
            raise UsageError(
                f"'{path}' is not a path inside a run; use a relative one such as figures/overlay.png"
            )
        self._outbox.put([Artifact(path, data)])


def _experiment_id(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location(client.tracking_uri)))
        except MlflowException as error:
            # Another process may have created it in the meantime.
            found = (
                client.get_experiment_by_name(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
            )
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise UsageError(
            f"the experiment '{name}' is in MLflow's trash; restore it there or choose another name"
        )
    return str(found.experiment_id)


def _find(client: MlflowClient, experiment_id: str, key: str, parent_run_id: str | None) -> Run | None:
    runs = client.search_runs(
        [experiment_id],
        filter_string=f"tags.`{KEY_TAG}` = '{key}'",
        run_view_type=ViewType.ACTIVE_ONLY,
        order_by=["attributes.start_time ASC"],
        max_results=1000,
    )
    matching = [run for run in runs if run.data.tags.get(_PARENT_TAG) == parent_run_id]
    return min(matching, key=lambda run: (run.info.start_time, run.info.run_id), default=None)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, (Mapping, list, tuple)):
            yield f"{prefix}{name}", json.dumps(value, default=str)
        else:
            yield f"{prefix}{name}", str(value)


def _checked_name(name: str) -> str:
    # Checked here: the server rejects a whole request for one bad name.
    if re.fullmatch(r"[\w\-. :/]{1,250}", name) is None:
        raise UsageError(
            f"'{name}' is not a valid MLflow name; use up to 250 letters, digits, spaces and . _ - : /"
        )
    return name


def _cut_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: _shortened(str(value), _MAX_TAG_LENGTH) for name, value in tags.items()}


def _shortened(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    note = f"… ({len(text)} characters in all)"
    return text[: length - len(note)] + note


def _chunks(items: list[T], size: int) -> list[list[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
