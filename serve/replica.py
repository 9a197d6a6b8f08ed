"""A replica: the model of one task in a process of its own, with that task's routes."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from fastapi import HTTPException
from ray.serve.handle import DeploymentHandle

from glioray.cancellation import WorkCancelledError, raise_if_cancelled
from glioray.cases.load import Case
from glioray.engine.serving import Enhanced
from glioray.errors import StorageError
from glioray.progress import log_to_stderr
from glioray.tasks import load_task
from serve.api import enhancement_fields, list_image_tasks, make_task_api
from serve.champions import WAIT_S, Choice
from serve.endpoint import TaskEndpoint, no_model_of
from serve.forward import WholeAnswer, WholeRequest, call_app
from serve.metrics import RayRecorder
from serve.request_queue import RequestQueue
from serve.schemas import Settings
from serve.status import state_of
from serve.watch import ModelWatch

_PAUSE_S = 0.2


class ModelReplica:
    """Serves the version that `Champions` chose; requests in work keep the model that they began with."""

    def __init__(
        self,
        settings: Settings,
        task: str,
        champions: DeploymentHandle[Any],
        enhancers: Mapping[str, DeploymentHandle[Any]] | None = None,
    ) -> None:
        log_to_stderr()
        self.settings, self.task, self.champions = settings, task, champions
        self.name = uuid.uuid4().hex
        self.recorder = RayRecorder()
        self.measured_version: str | None = None
        self.watch: ModelWatch[Any] = ModelWatch(
            settings.uris[task],
            load_task(task).load,
            poll_s=_PAUSE_S,
            tracking_uri=settings.tracking_uri,
            device="cuda" if settings.gpus else "cpu",
            resolve=self._ask_champions,
            on_change=self._report,
        )
        queue = RequestQueue(settings)
        images = list_image_tasks()
        remote = None
        if images and task not in images:
            remote = RemoteEnhancement(images[0], (enhancers or {}).get(images[0]))
        self.api, self.routes = make_task_api(TaskEndpoint(task, self.watch, queue, remote))
        self.queue = queue
        # A replica that has begun gets requests. In a thread, as Serve runs this in its event loop.
        loading = threading.Thread(target=self.watch.refresh)
        loading.start()
        loading.join()
        self.watch.start()

    async def forward(self, request: WholeRequest) -> WholeAnswer:
        """Answer a request by the task's routes."""
        return await call_app(self.api, request)

    async def enhance(
        self, case: Case, options: Any, *, only_check: bool
    ) -> Enhanced | tuple[int, str] | None:
        """Improve a case for another task, or check that it can be improved.

        Returns: the case; None after a check; (status, sentence) where it is refused.
        """
        enhancement = self.routes.enhancement
        assert enhancement is not None
        try:
            with self.queue.places.take():
                check = enhancement.begin(options)
                enhance = await self.queue.read(lambda: check(case))
                return None if only_check else await self.queue.run(enhance, done="super-resolved")
        except HTTPException as refusal:
            return refusal.status_code, refusal.detail

    def _ask_champions(self, _: str) -> str:
        served = self.watch.served
        try:
            choice: Choice = self.champions.choose.remote(
                self.task, None if served is None else served.version
            ).result(timeout_s=3 * WAIT_S)
        except Exception as error:  # whatever Serve raises while that process is started again
            raise StorageError(f"the process that follows the registry does not answer ({error})") from error
        if choice.version is None:
            assert choice.error is not None
            raise choice.error
        return choice.version

    def _report(self) -> None:
        served = self.watch.served
        version = None if served is None else served.version
        if version != self.measured_version:
            self.recorder.set_model(self.task, version, self.measured_version)
            self.measured_version = version
        self.champions.report.remote(self.task, self.name, state_of(self.watch, self.routes))


@dataclass(frozen=True)
class RemoteEnhancement:
    """The enhancement that another task's replicas offer (`engine.serving.Enhancement`).

    Attributes:
        task: that offers it.
        enhancer: its deployment; None where no such model is served.
    """

    task: str
    enhancer: DeploymentHandle[Any] | None

    @property
    def fields(self) -> Callable[..., Any]:
        return enhancement_fields(self.task)

    def begin(self, options: Any) -> Callable[[Case], Callable[[], Enhanced]]:
        if self.enhancer is None:
            raise HTTPException(503, no_model_of(self.task))

        def check(case: Case) -> Callable[[], Enhanced]:
            sent = ray.put(case)
            self._call(sent, options, only_check=True)

            def enhance() -> Enhanced:
                enhanced = self._call(sent, options, only_check=False)
                assert enhanced is not None
                return enhanced

            return enhance

        return check

    def _call(self, case: Any, options: Any, *, only_check: bool) -> Enhanced | None:
        assert self.enhancer is not None
        response = self.enhancer.enhance.remote(case, options, only_check=only_check)
        while True:
            try:
                raise_if_cancelled()
                answer = response.result(timeout_s=_PAUSE_S)
            except WorkCancelledError:
                response.cancel()
                raise
            except TimeoutError:
                continue
            if isinstance(answer, tuple):
                raise HTTPException(*answer)
            return answer
