"""CPU, memory, disk, network and GPU use, sampled while a run is open."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

_log = logging.getLogger(__name__)


class SystemMetrics:
    """Samples in a thread, from `start` to `stop`.

    We reuse MLflow's monitors but not its thread, which dies on the first outage.

    Args:
        send: called with metrics, named as MLflow's UI expects them (`system/…`), and their step.
        interval_s: seconds between two samples.
        first_step: step of the first sample; a resumed run continues its numbering.
    """

    def __init__(
        self, send: Callable[[dict[str, float], int], None], *, interval_s: float, first_step: int
    ) -> None:
        self._send, self._interval_s, self._step = send, interval_s, first_step
        self._monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        if torch.cuda.is_available():
            try:
                self._monitors.append(GPUMonitor())
            except (ImportError, RuntimeError) as error:
                _log.info("no GPU metrics: %s", error)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> int:
        """Stop the thread after a last sample and return the next step."""
        self._stop.set()
        self._thread.join()
        return self._step

    def _run(self) -> None:
        ending = False
        while not ending:
            ending = self._stop.wait(self._interval_s)
            values: dict[str, float] = {}
            for monitor in self._monitors:
                monitor.collect_metrics()
                values.update(monitor.aggregate_metrics())
                monitor.clear_metrics()
            self._send({f"system/{name}": value for name, value in values.items()}, self._step)
            self._step += 1
