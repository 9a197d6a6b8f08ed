"""One run in MLflow: found by its name, written by its id, tolerant of server outages."""

from __future__ import annotations

import io
import json
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

import glioray
from glioray.engine.on_mlflow.client import (
    artifact_location,
    connect,
    page_link,
    page_url,
    wrap_errors,
)
from glioray.engine.on_mlflow.client import tracking_uri as tracking_uri
from glioray.engine.on_mlflow.datasets import dataset_input
from glioray.engine.on_mlflow.outbox import (
    MAX_METRICS,
    Artifact,
    Entities,
    ExperimentTag,
    Inputs,
    Outbox,
    StepImage,
)
from glioray.engine.on_mlflow.provenance import code_tags
from glioray.engine.on_mlflow.system import SystemMetrics
from glioray.errors import StorageError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from glioray.cases.manifest import CaseEntry, Manifest

_log = logging.getLogger(__name__)

T = TypeVar("T")

Kind = Literal["train", "sweep", "trial", "comparison", "ensemble", "evaluate", "data"]

KEY_TAG = "glioray.key"
_PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
_VIEW_TAG = "mlflow.sharedViewState."
_KIND_TAG, _KIND = "mlflow.experimentKind", "custom_model_development"
"""Says that an experiment is one of model training, rather than of language models."""

_MAX_PARAM_LENGTH, _MAX_TAG_LENGTH = 6000, 8000  # MLflow's
_MAX_ENTITIES = 100  # params, or tags, of one request, by MLflow's rule


class RunLogger:
    """Writes to one MLflow run; created by `open_run`. Only rank 0 of a run writes.

    During an outage every `log_*` and `set_tags` queues its values, and the next call sends them first; see
    `Outbox`. Only `open_run` raises on an outage.

    Attributes:
        run_id: MLflow's id of the run.
        run_name: as the UI shows it.
        experiment_id: MLflow's id of its experiment.
        resumed: whether the run existed before.
    """

    def __init__(self, client: MlflowClient, run: Run, *, resumed: bool) -> None:
        self.client = client
        self.run_id: str = run.info.run_id
        self.run_name: str = run.info.run_name
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
            tags: beside glioray's version and those of `code_tags`, which are always set.
            tracking_uri: the server; by default MLFLOW_TRACKING_URI.

        Raises:
            UsageError: no server is configured, or the experiment is in MLflow's trash.
            StorageError: the server does not answer within seconds, or refuses.
        """
        client = connect(tracking_uri)
        all_tags = {
            **(tags or {}),
            KEY_TAG: quote(f"{kind}/{run_name}", safe="/ ()+,:=@"),
            "glioray.kind": kind,
            "glioray.version": glioray.__version__,
            **code_tags(),
        }
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

    @property
    def url(self) -> str | None:
        """The run's page in MLflow; None where no server shows it."""
        return page_url(self.client.tracking_uri, f"experiments/{self.experiment_id}/runs/{self.run_id}")

    @property
    def table_url(self) -> str | None:
        """The page of the table that `share_table` describes; None where no server shows it."""
        return page_url(self.client.tracking_uri, self._runs_page, viewStateShareKey=self.run_id)

    @property
    def table_link(self) -> str:
        """The link to that table from another page of MLflow's."""
        return page_link(self._runs_page, viewStateShareKey=self.run_id)

    def link(self, run_id: str) -> str:
        """The link to a run of the same experiment from another page of MLflow's."""
        return page_link(f"experiments/{self.experiment_id}/runs/{run_id}")

    def version_link(self, name: str, version: str) -> str:
        """The link to a version of a registered model from another page of MLflow's."""
        return page_link(f"models/{name}/versions/{version}")

    @property
    def _runs_page(self) -> str:
        return f"experiments/{self.experiment_id}/runs"

    def share_table(self, objective: str, metrics: Iterable[str], params: Iterable[str]) -> None:
        """Keep a view of the table of this run and its children: the columns, and the largest objective first."""
        view = {
            "searchFilter": f"tags.`{_PARENT_TAG}` = '{self.run_id}'",
            "orderByKey": f"metrics.`{objective}`",
            "orderByAsc": False,
            "selectedColumns": [
                *(f"metrics.`{name}`" for name in dict.fromkeys((objective, *metrics))),
                *(f"params.`{name}`" for name in params),
                *(f"tags.`{name}`" for name in ("glioray.reason",)),
            ],
        }
        self._outbox.put([ExperimentTag(self.experiment_id, _VIEW_TAG + self.run_id, json.dumps(view))])

    def describe(self, text: str) -> None:
        """Set the run's description, in Markdown; pictures in it are files of the run."""
        self.set_tags({NOTE_TAG: self.link_pictures(text)})

    def link_pictures(self, markdown: str) -> str:
        """The text with pictures of the run's files linked so that MLflow's pages show them."""
        linked = rf"![\1](get-artifact?run_uuid={self.run_id}&path=\2)"
        return re.sub(r"!\[([^\]]*)\]\(([\w/.\-]+)\)", linked, markdown)

    def log_data(self, manifest: Manifest) -> None:
        """Log the training and validation cases of a manifest as the run's data sets."""
        for split, context in {"train": "training", "val": "validation"}.items():
            if entries := manifest.select(split):
                self.log_dataset(manifest, split, context, entries)

    def log_dataset(
        self, manifest: Manifest, split: str, context: str, entries: Sequence[CaseEntry]
    ) -> tuple[str, str]:
        """Log a data set as an input of the run; returns its name and digest. Arguments as of `dataset_input`."""
        found = dataset_input(manifest, split, context, entries)
        self._outbox.put([Inputs((found,))])
        return found.dataset.name, found.dataset.digest

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

    def log_metrics(
        self,
        metrics: Mapping[str, float],
        step: int,
        *,
        model_id: str | None = None,
        dataset: tuple[str, str] | None = None,
    ) -> None:
        """Log the metrics of one step, in one request.

        NaN stays NaN; MLflow stores an infinity as the largest float.

        Args:
            metrics: by name.
            step: of the run.
            model_id: of the logged model that they belong to.
            dataset: name and digest of the data set that they were measured on.

        Raises:
            UsageError: MLflow cannot store a name.
        """
        now = time.time_ns() // 1_000_000
        values = [
            Metric(
                *(_checked_name(name), float(value), now, int(step)),
                model_id=model_id,
                dataset_name=dataset and dataset[0],
                dataset_digest=dataset and dataset[1],
            )
            for name, value in metrics.items()
        ]
        self._outbox.put([Entities(metrics=chunk) for chunk in _chunks(values, MAX_METRICS)])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing existing ones."""
        items = [RunTag(_checked_name(name), value) for name, value in _cut_tags(tags).items()]
        self._outbox.put([Entities(tags=chunk) for chunk in _chunks(items, _MAX_ENTITIES)])

    def log_figure(self, figure: Figure, path: str) -> None:
        """Log a figure as `path`; its extension (.png, .svg, .pdf) sets the format."""
        self.log_bytes(_rendered(figure, Path(path).suffix.lstrip(".") or "png"), path)

    def log_image(self, figure: Figure, key: str, step: int) -> bytes:
        """Log a figure as the image of a step; the images of a key are a series. Returns it as a PNG file.

        Raises:
            UsageError: MLflow cannot store the key.
        """
        now, image = time.time_ns() // 1_000_000, _rendered(figure, "png")
        self._outbox.put([StepImage(_checked_name(key), int(step), now, image)])
        return image

    def log_bytes(self, data: bytes, path: str) -> None:
        """Log bytes as a file of the run.

        Raises:
            UsageError: a path that leaves the run.
        """
        if path.startswith("/") or ".." in path.split("/") or not path.strip("/"):
            raise UsageError(
                f"'{path}' is not a path inside a run; use a relative one such as figures/overlay.png"
            )
        self._outbox.put([Artifact(path, data)])

    def log_text(self, text: str, path: str) -> None:
        """Log text as a file of the run."""
        self.log_bytes(text.encode(), path)

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
        self.log_bytes(data, path)

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
        # Of a run that resumed, its last end's reason is no longer true.
        if reason or self.resumed:
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


def _experiment_id(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            location = artifact_location(client.tracking_uri)
            return str(client.create_experiment(name, location, tags={_KIND_TAG: _KIND}))
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
    # The UI itself writes what it takes an experiment for, with this ending.
    kind = found.tags.get(_KIND_TAG, "")
    if kind in ("", "no_inferred_type") or kind.endswith("_inferred"):
        client.set_experiment_tag(found.experiment_id, _KIND_TAG, _KIND)
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


def _rendered(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    # A layout leaves nothing outside, and to look for it costs a fifth of the time.
    box = "tight" if figure.get_layout_engine() is None else None
    figure.savefig(buffer, format=kind, dpi=110, bbox_inches=box)
    return buffer.getvalue()


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
