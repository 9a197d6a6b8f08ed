"""The endpoint as a Serve application: a gateway, a deployment for each model, and one that chooses the versions."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, HTTPException
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from glioray.progress import log_to_stderr
from serve.api import list_image_tasks, make_gateway
from serve.champions import Champions
from serve.forward import Forward, WholeAnswer, WholeRequest
from serve.job_runner import RayLauncher
from serve.metrics import RayRecorder
from serve.replica import ModelReplica
from serve.request_queue import RETRY_AFTER
from serve.schemas import Settings
from serve.status import ModelState

_log = logging.getLogger("glioray.serve")

_LOGGING = {"log_level": "WARNING", "enable_access_log": False}
_REQUESTS_PER_CASE = 16
_ATTEMPTS = 3
_STATES_S = 0.5
_UPSCALE_S, _DOWNSCALE_S = 5.0, 600.0
_SLACK_S = 5.0


@serve.ingress()
class Gateway:
    """Takes requests, checks their limits, and forwards them to the model of their route."""

    def __init__(
        self,
        settings: Settings,
        champions: DeploymentHandle[Any],
        models: Mapping[str, DeploymentHandle[Any]],
    ) -> None:
        log_to_stderr()
        self.settings, self.champions, self.models = settings, champions, models

    def __serve_build_asgi_app__(self) -> FastAPI:
        forwards = {task: make_forward(model, self.settings.timeout_s) for task, model in self.models.items()}
        status = RemoteStatus(self.champions)
        launcher = RayLauncher(self.settings.job_roots, self.settings.tracking_uri)
        return make_gateway(
            self.settings, status, forwards, recorder=RayRecorder(), launcher=launcher, sends_id=False
        )


class RemoteStatus:
    """The states that `Champions` collects; asked for at most every half second."""

    def __init__(self, champions: DeploymentHandle[Any]) -> None:
        self.champions = champions
        self.known: Mapping[str, ModelState] = {}
        self.when = -_STATES_S

    async def states(self) -> Mapping[str, ModelState]:
        """The states; the last ones while that process is started again."""
        if time.monotonic() - self.when >= _STATES_S:
            try:
                async with asyncio.timeout(_SLACK_S):
                    self.known = await self.champions.states.remote()
                self.when = time.monotonic()
            except (RayError, DeploymentUnavailableError, TimeoutError) as error:
                if not self.known:
                    raise HTTPException(
                        503, "the endpoint is starting; try again in some seconds", RETRY_AFTER
                    ) from error
                _log.warning("the states of the models are those of before (%s)", error)
        return self.known

    async def follow(self) -> None:
        """Let `Champions` look at the aliases now."""
        try:
            async with asyncio.timeout(_SLACK_S):
                await self.champions.follow.remote()
        except (RayError, DeploymentUnavailableError, TimeoutError) as error:
            raise HTTPException(
                503, "the process that follows the registry is starting; send it again", RETRY_AFTER
            ) from error


def make_forward(model: DeploymentHandle[Any], timeout_s: float) -> Forward:
    """A function that sends a request to a replica of a model, and to another one when that dies."""

    async def forward(request: WholeRequest) -> WholeAnswer:
        try:
            # The replica's own limits, which answer in a better sentence, come first.
            async with asyncio.timeout(2 * timeout_s + _SLACK_S):
                for attempt in range(_ATTEMPTS):
                    response = model.forward.remote(request)
                    try:
                        answer: WholeAnswer = await response
                        return answer
                    except asyncio.CancelledError:
                        # Ray tells the replica itself where a client left, but not where time ran out here.
                        response.cancel()
                        raise
                    except RayTaskError:
                        raise
                    except RayActorError:
                        # Every route may be asked twice: it changes nothing.
                        _log.warning("a replica died (attempt %d of %d)", attempt + 1, _ATTEMPTS)
        except BackPressureError as error:
            raise HTTPException(429, "the queue is full; retry in 5 s", RETRY_AFTER) from error
        except (TimeoutError, DeploymentUnavailableError) as error:
            raise HTTPException(
                503, "no replica had time for the case; try again later", RETRY_AFTER
            ) from error
        raise HTTPException(503, "the replicas that worked on the case died; try again later", RETRY_AFTER)

    return forward


def make_application(settings: Settings) -> serve.Application:
    """The deployments with their settings and resources, bound."""
    # mypy takes a class with options for a decorator.
    deploy: Any = serve.deployment
    champions = deploy(
        Champions,
        name="Champions",
        num_replicas=1,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
        logging_config=_LOGGING,
    ).bind(settings)
    images = [task for task in list_image_tasks() if task in settings.uris]
    models: dict[str, Any] = {}
    for task in [*images, *(task for task in settings.uris if task not in images)]:
        is_first = task == next(iter(settings.uris))
        models[task] = deploy(
            ModelReplica,
            name=task,
            num_replicas=None,
            autoscaling_config=AutoscalingConfig(
                min_replicas=settings.replicas if is_first else 0,
                initial_replicas=settings.replicas if is_first else 1,
                max_replicas=settings.max_replicas,
                target_ongoing_requests=settings.target_pending,
                upscale_delay_s=_UPSCALE_S,
                downscale_delay_s=_DOWNSCALE_S,
            ),
            ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
            logging_config=_LOGGING,
            max_ongoing_requests=settings.max_pending,
            graceful_shutdown_timeout_s=min(settings.timeout_s, 60),
        ).bind(
            settings, task, champions, {name: models[name] for name in images} if task not in images else {}
        )
    at_once = _REQUESTS_PER_CASE * settings.max_pending * settings.max_replicas
    gateway = deploy(
        Gateway,
        name="Gateway",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        logging_config=_LOGGING,
        max_ongoing_requests=at_once,
        max_queued_requests=at_once,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=5),
        graceful_shutdown_timeout_s=min(settings.timeout_s, 60),
    )
    application: serve.Application = gateway.bind(settings, champions, models)
    return application
