"""An ordered queue of a run's entries for the time that the MLflow server is down."""

from __future__ import annotations

import io
import logging
import posixpath
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import PIL.Image
import requests
from mlflow.entities import DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from glioray.engine.on_mlflow.client import first_line, is_outage, shown, unreachable

_log = logging.getLogger(__name__)

MAX_METRICS = 1000
"""Most metrics of one request, by MLflow's rule."""

_METRIC_BYTES = 200
"""About what a metric costs in memory."""


@dataclass
class Entities:
    """Metrics, params and tags of one request."""

    metrics: list[Metric] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)
    tags: list[RunTag] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        texts = [(item.key, item.value) for item in self.params] + [
            (item.key, item.value) for item in self.tags
        ]
        return _METRIC_BYTES * len(self.metrics) + sum(len(key) + len(value) for key, value in texts)

    def takes(self, other: Entities) -> bool:
        """Return whether both hold only metrics and fit one request."""
        alone = not (self.params or self.tags or other.params or other.tags)
        return alone and len(self.metrics) + len(other.metrics) <= MAX_METRICS

    def send(self, client: MlflowClient, run_id: str) -> None:
        client.log_batch(run_id, metrics=self.metrics, params=self.params, tags=self.tags)

    def __str__(self) -> str:
        counts = {"metrics": len(self.metrics), "params": len(self.params), "tags": len(self.tags)}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


@dataclass(frozen=True)
class Artifact:
    """One file of a run, with its content: the file itself may be gone when the server is back."""

    path: str
    data: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def send(self, client: MlflowClient, run_id: str) -> None:
        folder, name = posixpath.split(self.path)
        with tempfile.TemporaryDirectory() as temporary:
            local = Path(temporary) / name
            local.write_bytes(self.data)
            with _store_errors():
                client.log_artifact(run_id, str(local), folder or None)

    def __str__(self) -> str:
        return f"the file {self.path}"


@dataclass(frozen=True)
class StepImage:
    """One image of a series, as PNG: MLflow's UI shows it with a slider over steps."""

    key: str
    step: int
    time_ms: int
    png: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.png)

    def send(self, client: MlflowClient, run_id: str) -> None:
        with PIL.Image.open(io.BytesIO(self.png)) as image, _store_errors():
            client.log_image(run_id, image, key=self.key, step=self.step, timestamp=self.time_ms)

    def __str__(self) -> str:
        return f"the image {self.key} of step {self.step}"


@dataclass(frozen=True)
class Inputs:
    """Data sets that a run reads."""

    datasets: tuple[DatasetInput, ...]

    @property
    def size_bytes(self) -> int:
        return _METRIC_BYTES * len(self.datasets)

    def send(self, client: MlflowClient, run_id: str) -> None:
        client.log_inputs(run_id, list(self.datasets))

    def __str__(self) -> str:
        return f"{len(self.datasets)} data sets"


@dataclass(frozen=True)
class ExperimentTag:
    """A tag of the run's experiment."""

    experiment_id: str
    key: str
    value: str

    @property
    def size_bytes(self) -> int:
        return len(self.key) + len(self.value)

    def send(self, client: MlflowClient, run_id: str) -> None:
        client.set_experiment_tag(self.experiment_id, self.key, self.value)

    def __str__(self) -> str:
        return f"the experiment's tag {self.key}"


Entry = Entities | Artifact | StepImage | Inputs | ExperimentTag


@contextmanager
def _store_errors() -> Iterator[None]:
    """Turn errors of an artifact store, which we write to directly where the server is no proxy, into MLflow's."""
    try:
        yield
    except (MlflowException, requests.RequestException):
        raise
    except Exception as error:
        raise MlflowException(f"{type(error).__name__}: {error}") from error


class Outbox:
    """Sends entries to one run immediately, or queues them during an outage and sends them with a later call.

    An outage logs a warning and never raises, so that a long training survives it. The queue is bounded: beyond
    `max_bytes` the oldest entries are dropped and counted. Thread-safe.

    Args:
        client: the server's client.
        run_id: the run.
        max_bytes: approximate limit of the queue.
    """

    def __init__(self, client: MlflowClient, run_id: str, *, max_bytes: int = 64 * 2**20) -> None:
        self._client, self._run_id, self._max_bytes = client, run_id, max_bytes
        self._kept: deque[Entry] = deque()
        self._lock = threading.Lock()
        self._away = False
        self._ask_again_at = 0.0
        self.lost: list[str] = []

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, entries: Sequence[Entry]) -> None:
        """Send the queue and then these entries, or queue them; entries the server rejects are dropped with a warning."""
        with self._lock:
            for entry in entries:
                self._keep(entry)
            self._send_all()

    def flush(self) -> bool:
        """Retry the queue; return whether it is empty."""
        with self._lock:
            self._send_all()
            return not self._kept

    def forget(self) -> list[str]:
        """Drop the queue; describe everything that was lost over time."""
        with self._lock:
            self.lost += [str(entry) for entry in self._kept]
            self._kept.clear()
            return list(self.lost)

    def _keep(self, entry: Entry) -> None:
        last = self._kept[-1] if self._kept else None
        # Batch the metrics of many steps: after a long outage there are thousands.
        if isinstance(entry, Entities) and isinstance(last, Entities) and last.takes(entry):
            last.metrics.extend(entry.metrics)
        else:
            self._kept.append(entry)

    def _send_all(self) -> None:
        if self._away and not self._is_back():
            self._shrink()
            return
        while self._kept:
            entry = self._kept[0]
            try:
                entry.send(self._client, self._run_id)
            except (MlflowException, requests.RequestException) as error:
                if is_outage(error):
                    self._begin_outage(error)
                    self._shrink()
                    return
                self._kept.popleft()
                self.lost.append(str(entry))
                _log.warning("MLflow refused %s of run %s: %s", entry, self._run_id, first_line(error))
            else:
                self._kept.popleft()
        if self._away:
            self._away = False
            _log.warning(
                "MLflow at %s is back; what was kept has been sent", shown(self._client.tracking_uri)
            )

    def _begin_outage(self, error: Exception) -> None:
        if not self._away:
            _log.warning(
                "MLflow at %s cannot be reached (%s); the run goes on, what it logs is kept and sent when the server is back",
                shown(self._client.tracking_uri),
                first_line(error),
            )
        self._away = True

    def _is_back(self) -> bool:
        # A server that swallows packets costs seconds per attempt: spend at most a tenth of the time on attempts.
        start = time.monotonic()
        if start < self._ask_again_at:
            return False
        back = unreachable(self._client.tracking_uri) is None
        end = time.monotonic()
        self._ask_again_at = end + 10 * (end - start)
        return back

    def _shrink(self) -> None:
        size = sum(entry.size_bytes for entry in self._kept)
        while size > self._max_bytes and self._kept:
            oldest = self._kept.popleft()
            size -= oldest.size_bytes
            self.lost.append(str(oldest))
            _log.warning(
                "MLflow is away for too long: dropped %s of run %s, the oldest kept", oldest, self._run_id
            )
