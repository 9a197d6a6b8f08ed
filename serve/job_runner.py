"""Jobs on Ray: each in a detached actor, which outlives the gateway and is started again where its node dies."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import list_named_actors

from glioray.progress import log_to_stderr
from serve.jobs import JobStore, run_job

_NAMESPACE = "glioray-jobs"
_MAX_RESTARTS = 3


class RayLauncher:
    """Runs jobs in actors (`jobs.Launcher`); the cases are spread over the cluster from there."""

    def __init__(self, roots: Sequence[str], tracking_uri: str | None) -> None:
        self.roots, self.tracking_uri = list(roots), tracking_uri

    def start(self, root: str, job_id: str) -> None:
        actor: Any = ray.remote(_JobActor)
        actor.options(
            name=job_id,
            namespace=_NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=_MAX_RESTARTS,
            max_concurrency=1,
        ).remote(self.roots, self.tracking_uri, root, job_id)

    def stop(self, job_id: str) -> None:
        with contextlib.suppress(ValueError, RayError):  # it has ended by itself
            ray.kill(ray.get_actor(job_id, namespace=_NAMESPACE))

    def list_running(self) -> list[str]:
        return [
            actor["name"]
            for actor in list_named_actors(all_namespaces=True)
            if actor["namespace"] == _NAMESPACE
        ]


class _JobActor:
    """Carries out one job and ends, also after a restart, which nobody else would notice."""

    def __init__(self, roots: Sequence[str], tracking_uri: str | None, root: str, job_id: str) -> None:
        log_to_stderr()
        # Their lines name cases, which may be patients; the job's state has the names.
        logging.getLogger("glioray.engine").setLevel(logging.ERROR)
        self.args = JobStore(roots), root, job_id, tracking_uri
        # Not a call of the actor's own method: Ray drops it where the actor is still "restarting".
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            run_job(*self.args)
        finally:
            ray.kill(ray.get_runtime_context().current_actor)
