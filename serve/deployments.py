"""The endpoint as a Serve deployment: a replica is a process with the routes and the models in it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig

from glioray.progress import log_to_stderr
from glioray.tasks import load_task
from serve.api import make_api
from serve.schemas import Settings
from serve.watch import ModelWatch

_REQUESTS_PER_CASE = 16


@serve.ingress()
class Segmenter:
    """One replica."""

    def __init__(self, settings: Settings) -> None:
        log_to_stderr()
        self.settings = settings
        self.watches = {
            name: ModelWatch(
                uri,
                load_task(name).load,
                poll_s=settings.poll_s,
                tracking_uri=settings.tracking_uri,
                device="cuda" if settings.gpus else "cpu",
            )
            for name, uri in settings.uris.items()
        }

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_api(self.settings, self.watches)


def make_application(settings: Settings) -> serve.Application:
    """The deployment with its settings and resources, bound."""
    # The routes count the cases themselves; these bounds are for all requests and leave room for health checks.
    at_once = _REQUESTS_PER_CASE * settings.max_pending
    deployment: Any = serve.deployment(
        Segmenter,
        name="Segmenter",
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        max_ongoing_requests=at_once,
        max_queued_requests=at_once,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=5),
        graceful_shutdown_timeout_s=min(settings.timeout_s, 60),
    )
    application: serve.Application = deployment.bind(settings)
    return application
