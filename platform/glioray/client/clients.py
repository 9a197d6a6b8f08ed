"""The clients: one that waits, and one for asyncio."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Literal, Self, Unpack

import httpx

from glioray.cases.casefiles import CaseFiles
from glioray.client.answers import Segmentation, SuperResolved
from glioray.client.calls import Calls, Flow, T
from glioray.client.folder import Folder, FolderResult, Output, check_concurrency
from glioray.client.sources import Source, SuperResOptions, form_fields, job_fields, option_fields
from glioray.engine.serving import Job
from glioray.errors import GliorayError

URL = "http://127.0.0.1:8000"


class Client:
    """A client of an endpoint; threads may share it.

    While the endpoint is full or loads its model, and where a connection breaks, a request is sent again.

    Args:
        url: address of the endpoint.
        api_key: of an endpoint that asks for one; by default GLIORAY_API_KEY.
        timeout_s: seconds for an answer to one request.
        retry_s: seconds that a request waits between its tries in all.
        sleep: waits for some seconds.
        transport: of httpx, such as one to an application in this process.

    Example:
        client = glioray.Client("https://segment.example.org")
        client.segment("brats/BraTS2021_00000").save("mask.nii.gz")

    Raises:
        UsageError: the address or the key cannot be one.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 660.0,
        retry_s: float = 900.0,
        sleep: Callable[[float], object] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._calls, self._sleep = Calls(url, api_key, timeout_s, retry_s), sleep
        self._http = httpx.Client(transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """The models that are served, as `/v1/models` lists them.

        Raises:
            EndpointError: the request was refused, or the endpoint does not answer.
        """
        return self._run(self._calls.get_models())

    def ready(self, wait_s: float = 0.0) -> bool:
        """Whether the endpoint can segment; asks for up to `wait_s` seconds until it can.

        Raises:
            EndpointError: something else answers at that address.
        """
        return self._run(self._calls.get_ready(wait_s))

    def segment(
        self,
        source: Source,
        output: Output = "mask",
        *,
        labels: str | None = None,
        superresolve: bool = False,
        grid: Literal["fine", "input"] | None = None,
        resample: bool = False,
        case_id: str | None = None,
        **options: Unpack[SuperResOptions],
    ) -> Segmentation:
        """Segment one case.

        Args:
            source: the case. Of a folder or a case in memory, the modalities that the model takes are sent.
            output: what to answer with: mask, report, probabilities, overlay, or all of them.
            labels: numbers of the mask: a convention, or what each number marks, such as "1=ed,2=et,3=ncr".
            superresolve: super-resolve the case first; `options` say how.
            grid: of the mask of a super-resolved case: "fine", the default, or "input".
            resample: segment a case whose voxel size is far from that of the model's training, by resampling it; the
                mask comes back on the case's own grid.
            case_id: which of several cases of a folder.
            **options: of the super-resolution.

        Raises:
            EndpointError: the request was refused, or the endpoint does not answer.
            UsageError, DataError, CaseError, StorageError: the source is no case, or cannot be read.
        """
        return self._run(
            self._calls.segment(
                source, output, form_fields(labels, superresolve, grid, resample, options), case_id
            )
        )

    def superresolve(
        self, source: Source, *, case_id: str | None = None, **options: Unpack[SuperResOptions]
    ) -> SuperResolved:
        """Super-resolve slices: NIfTI to NIfTI on a finer grid, a grey PNG to a PNG.

        Args:
            source: the images: as in `segment`, or a PNG or NIfTI file.
            case_id: which of several cases of a folder.
            **options: how.

        Raises:
            EndpointError, UsageError, DataError, CaseError, StorageError: as `segment`.
        """
        return self._run(self._calls.superresolve(source, option_fields(options), case_id))

    def segment_folder(
        self,
        root: str | os.PathLike[str],
        out: str | os.PathLike[str],
        output: Output = "mask",
        *,
        labels: str | None = None,
        superresolve: bool = False,
        grid: Literal["fine", "input"] | None = None,
        resample: bool = False,
        concurrency: int = 4,
        skip_existing: bool = False,
        **options: Unpack[SuperResOptions],
    ) -> FolderResult:
        """Segment every case of a folder or a bucket; a case that fails leaves the others alone.

        Args:
            root: a folder or `s3://bucket/prefix`.
            out: where `CASE_seg.nii.gz` is written, or `CASE_report.json` and so on: a folder or `s3://bucket/prefix`.
            output: as in `segment`, as are the arguments that are not listed.
            concurrency: cases that are sent at once.
            skip_existing: leave out cases whose answer is in `out` already, as after an interruption.

        Raises:
            EndpointError: the endpoint does not answer, or takes no such key.
            UsageError, DataError, StorageError: there is no case, or `out` cannot be written.
        """
        fields = form_fields(labels, superresolve, grid, resample, options)
        wanted = self._run(self._calls.get_modalities("segmentation"))
        folder = Folder.open(root, out, output, skip_existing)
        pool = ThreadPoolExecutor(check_concurrency(concurrency), "glioray-client")
        try:
            works = {
                pool.submit(
                    self._run,
                    self._calls.segment_into(folder.storage, files, folder.out, output, fields, wanted),
                ): files
                for files in folder.cases
            }
            for work in as_completed(works):
                try:
                    folder.take(works[work], work.result())
                except GliorayError as error:
                    folder.take(works[work], error)
        finally:
            pool.shutdown(cancel_futures=True)
        return folder.result

    def start_job(
        self,
        data: str | os.PathLike[str],
        out: str | os.PathLike[str] | None = None,
        *,
        labels: str | None = None,
        uncertainty: bool = False,
        resample: bool = False,
    ) -> Job:
        """Let the endpoint segment every case of a place that it reads itself; returns at once.

        Where the connection breaks while the job is sent, it is not sent again, as it may have begun.

        Args:
            data: `s3://bucket/prefix`, or an absolute folder of the endpoint's machine, below one of its `--job-roots`.
            out: where `CASE_seg.nii.gz` is written, below such a root too; by default beside the job's state.
            labels: as in `segment`; by default those of each case.
            uncertainty: write `CASE_uncertainty.nii.gz` too.
            resample: as in `segment`.

        Raises:
            EndpointError: the job was refused, or the endpoint does not answer.
        """
        return self._run(self._calls.start_job(job_fields(data, out, labels, uncertainty, resample)))

    def get_job(self, job_id: str) -> Job:
        """How far a job is, and why cases have no mask.

        Raises:
            EndpointError: there is no such job, or the endpoint does not answer.
            UsageError: that is no id.
        """
        return self._run(self._calls.get_job(job_id))

    def wait_for_job(
        self, job_id: str, *, poll_s: float = 2.0, on_progress: Callable[[Job], object] | None = None
    ) -> Job:
        """The job once it is done; its `failed` says which cases have no mask. Progress is logged.

        Args:
            job_id: of the job.
            poll_s: seconds between two looks at it, above 0.
            on_progress: is called with the job at the first look, and when it has come further.

        Raises:
            EndpointError: the job failed or was cancelled; or as `get_job`.
            UsageError: as `get_job`, or `poll_s` is not above 0.
        """
        return self._run(self._calls.wait_for_job(job_id, poll_s, on_progress))

    def cancel_job(self, job_id: str) -> Job:
        """Cancel a job; masks that it has written stay, and one that is over stays as it is.

        Raises:
            EndpointError, UsageError: as `get_job`.
        """
        return self._run(self._calls.cancel_job(job_id))

    def _run(self, flow: Flow[T]) -> T:
        outcome: Any = None
        while True:
            try:
                step = flow.send(outcome)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, httpx.Request):
                try:
                    outcome = self._http.send(step)
                except httpx.TransportError as error:
                    outcome = error
            else:
                outcome = self._sleep(step) if isinstance(step, float) else step()


class AsyncClient:
    """A client of an endpoint for asyncio; arguments and methods are those of `Client`.

    Example:
        async with glioray.AsyncClient() as client:
            answers = await asyncio.gather(*(client.segment(folder) for folder in folders))
    """

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 660.0,
        retry_s: float = 900.0,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._calls, self._sleep = Calls(url, api_key, timeout_s, retry_s), sleep
        self._http = httpx.AsyncClient(transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def models(self) -> list[dict[str, Any]]:
        """As `Client.models`."""
        return await self._run(self._calls.get_models())

    async def ready(self, wait_s: float = 0.0) -> bool:
        """As `Client.ready`."""
        return await self._run(self._calls.get_ready(wait_s))

    async def segment(
        self,
        source: Source,
        output: Output = "mask",
        *,
        labels: str | None = None,
        superresolve: bool = False,
        grid: Literal["fine", "input"] | None = None,
        resample: bool = False,
        case_id: str | None = None,
        **options: Unpack[SuperResOptions],
    ) -> Segmentation:
        """As `Client.segment`."""
        return await self._run(
            self._calls.segment(
                source, output, form_fields(labels, superresolve, grid, resample, options), case_id
            )
        )

    async def superresolve(
        self, source: Source, *, case_id: str | None = None, **options: Unpack[SuperResOptions]
    ) -> SuperResolved:
        """As `Client.superresolve`."""
        return await self._run(self._calls.superresolve(source, option_fields(options), case_id))

    async def segment_folder(
        self,
        root: str | os.PathLike[str],
        out: str | os.PathLike[str],
        output: Output = "mask",
        *,
        labels: str | None = None,
        superresolve: bool = False,
        grid: Literal["fine", "input"] | None = None,
        resample: bool = False,
        concurrency: int = 4,
        skip_existing: bool = False,
        **options: Unpack[SuperResOptions],
    ) -> FolderResult:
        """As `Client.segment_folder`."""
        fields = form_fields(labels, superresolve, grid, resample, options)
        places = asyncio.Semaphore(check_concurrency(concurrency))
        wanted = await self._run(self._calls.get_modalities("segmentation"))
        folder = await asyncio.to_thread(Folder.open, root, out, output, skip_existing)

        async def work(files: CaseFiles) -> None:
            async with places:
                flow = self._calls.segment_into(folder.storage, files, folder.out, output, fields, wanted)
                try:
                    folder.take(files, await self._run(flow))
                except GliorayError as error:
                    folder.take(files, error)

        async with asyncio.TaskGroup() as group:
            for files in folder.cases:
                group.create_task(work(files))
        return folder.result

    async def start_job(
        self,
        data: str | os.PathLike[str],
        out: str | os.PathLike[str] | None = None,
        *,
        labels: str | None = None,
        uncertainty: bool = False,
        resample: bool = False,
    ) -> Job:
        """As `Client.start_job`."""
        return await self._run(self._calls.start_job(job_fields(data, out, labels, uncertainty, resample)))

    async def get_job(self, job_id: str) -> Job:
        """As `Client.get_job`."""
        return await self._run(self._calls.get_job(job_id))

    async def wait_for_job(
        self, job_id: str, *, poll_s: float = 2.0, on_progress: Callable[[Job], object] | None = None
    ) -> Job:
        """As `Client.wait_for_job`."""
        return await self._run(self._calls.wait_for_job(job_id, poll_s, on_progress))

    async def cancel_job(self, job_id: str) -> Job:
        """As `Client.cancel_job`."""
        return await self._run(self._calls.cancel_job(job_id))

    async def _run(self, flow: Flow[T]) -> T:
        outcome: Any = None
        while True:
            try:
                step = flow.send(outcome)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, httpx.Request):
                try:
                    outcome = await self._http.send(step)
                except httpx.TransportError as error:
                    outcome = error
            elif isinstance(step, float):
                outcome = await self._sleep(step)
            else:
                outcome = await asyncio.to_thread(step)
