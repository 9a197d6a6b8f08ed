"""What the endpoint measures, for Prometheus where Ray runs."""

from __future__ import annotations

from typing import Protocol

_BOUNDS_S = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]


class Recorder(Protocol):
    """Takes measurements."""

    def count_request(self, route: str, task: str, status: str) -> None:
        """One request that ended; `status` of the answer, or "cancelled" where the client left before."""

    def observe_latency(self, stage: str, task: str, seconds: float) -> None:
        """The seconds of a stage: "upload", the body's arrival, or "work", from then to the answer's beginning."""

    def set_in_flight(self, task: str, number: int) -> None:
        """How many requests of a task are being uploaded, wait or are worked on."""

    def set_model(self, task: str, version: str | None, before: str | None) -> None:
        """The version that a replica serves, and the one that it served before; None for none."""


class NoRecorder:
    """Measures nothing, as where Ray does not run."""

    def count_request(self, route: str, task: str, status: str) -> None: ...

    def observe_latency(self, stage: str, task: str, seconds: float) -> None: ...

    def set_in_flight(self, task: str, number: int) -> None: ...

    def set_model(self, task: str, version: str | None, before: str | None) -> None: ...


class RayRecorder:
    """Measures with Ray's metrics, which its agent on each node offers to Prometheus under names with `ray_` before."""

    def __init__(self) -> None:
        # Imported here, so that the endpoint's applications need no Ray.
        from ray.util.metrics import Counter, Gauge, Histogram

        self.requests = Counter("glioray_requests", "requests that ended", ("route", "task", "status"))
        self.latency = Histogram(
            "glioray_latency_seconds", "seconds of a stage of a request", _BOUNDS_S, ("stage", "task")
        )
        self.in_flight = Gauge("glioray_in_flight", "requests that were not answered yet", ("task",))
        self.model = Gauge("glioray_model", "1 for the version that a replica serves", ("task", "version"))

    def count_request(self, route: str, task: str, status: str) -> None:
        self.requests.inc(1, {"route": route, "task": task, "status": status})

    def observe_latency(self, stage: str, task: str, seconds: float) -> None:
        self.latency.observe(seconds, {"stage": stage, "task": task})

    def set_in_flight(self, task: str, number: int) -> None:
        self.in_flight.set(number, {"task": task})

    def set_model(self, task: str, version: str | None, before: str | None) -> None:
        if before is not None:
            self.model.set(0, {"task": task, "version": before})
        if version is not None:
            self.model.set(1, {"task": task, "version": version})
