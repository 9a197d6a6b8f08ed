"""A client of the endpoint: cases in, masks and reports out; waits and tries again where the endpoint asks for it."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import random
import re
import time
import zipfile
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, TypeVar, Unpack

import httpx
import numpy as np
from numpy.typing import NDArray

from glioray.api.cases import find_case
from glioray.api.places import absolute_uri, ready_out
from glioray.cases.casefiles import CaseFiles, Problem
from glioray.cases.dataset_json import MSD_CHANNELS
from glioray.cases.layouts import RECOGNISED, discover_cases
from glioray.cases.load import Case, load_case
from glioray.cases.nifti import encode_volume, read_volume
from glioray.config import MODALITIES
from glioray.engine.serving import MODEL_HEADER, WARNING_HEADER
from glioray.errors import DataError, EndpointError, GliorayError, UsageError
from glioray.machine import bypass_proxies
from glioray.progress import log_progress
from glioray.storage import Storage, join_uri, open_storage, split_uri, written_keys

if TYPE_CHECKING:
    from glioray.tasks.segmentation.findings import Report

_log = logging.getLogger(__name__)

URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "GLIORAY_API_KEY"
_CONNECT_S, _READY_S = 10.0, 1.0
_MAX_BREAKS, _BREAK_S = 5, 0.5
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PROXY_FAULTS = (500, 502, 503, 504)

Source = str | os.PathLike[str] | Case | Mapping[str, str | os.PathLike[str] | bytes]
"""A case: its folder, or one of several in a folder or `s3://bucket/prefix`; one file with all modalities, or one image;
a case in memory; or files, as paths or bytes, by the names of the endpoint's form: t1, t1c, t2, flair, image."""

Output = Literal["mask", "report", "probabilities", "overlay", "all"]

_ENDINGS: dict[str, str] = {
    "mask": "seg.nii.gz",
    "report": "report.json",
    "probabilities": "probabilities.zip",
    "overlay": "overlay.png",
    "all": "all.zip",
}

T = TypeVar("T")
_Step = httpx.Request | float | Callable[[], Any]
_Flow = Generator[_Step, Any, T]
"""Yields requests to send, seconds to wait, and work that may block; so that both clients share what they do. A request
gives its response, or the exception of a connection that broke."""


class SuperResOptions(TypedDict, total=False):
    """How to super-resolve; what is left out is up to the model.

    Attributes:
        scale: pixels of the result for one of the input, along each axis.
        size: (H, W) of the result's slices, in place of `scale`.
        blend: 0 for the PSNR generator (smooth, faithful) to 1 for the GAN one (sharp, may invent).
        plane: of the slices: axial, coronal or sagittal.
        force: go on with an input that is at high resolution already.
    """

    scale: float
    size: tuple[int, int]
    blend: float
    plane: str
    force: bool


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the endpoint made of a case, as a file or a zip of files.

    Attributes:
        data: the file.
        media_type: of it.
        name: that the endpoint gave it.
        model: version of the model, as models:/NAME/VERSION.
        superres_model: version of the model that super-resolved a case before it was segmented, or None.
        warning: how the case differs from those that the model is for, or None.
        request_id: by which the endpoint's log knows the request, or None.
    """

    data: bytes
    media_type: str
    name: str
    model: str
    superres_model: str | None = None
    warning: str | None = None
    request_id: str | None = None

    @classmethod
    def from_response(cls, response: httpx.Response) -> Self:
        """The answer in a response that is no refusal."""
        headers = response.headers
        named = re.search(r'filename="([\w.-]+)"', headers.get("Content-Disposition", ""))
        return cls(
            data=response.content,
            media_type=headers.get("Content-Type", "").partition(";")[0],
            name=named[1] if named else "report.json",
            model=headers.get(MODEL_HEADER, ""),
            superres_model=headers.get("X-Glioray-Superres-Model"),
            warning=headers.get(WARNING_HEADER),
            request_id=headers.get("X-Request-Id"),
        )

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Name -> content of the files of a zip, or of the one file.

        Raises:
            EndpointError: a zip that is damaged, or has folders.
        """
        if self.media_type != "application/zip":
            return {self.name: self.data}
        try:
            with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
                names = archive.namelist()
                if all(re.fullmatch(r"[\w-]+(\.[\w-]+)+", name) for name in names):
                    return {name: archive.read(name) for name in names}
        except zipfile.BadZipFile as error:
            raise EndpointError(
                f"the answer is a damaged zip ({error}); send the case again", None, self.request_id
            ) from error
        raise EndpointError(
            f"the answer is a zip with the file '{names[0]}'; expected plain names", None, self.request_id
        )

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the answer; returns its URI.

        Args:
            path: of the file, on this machine or `s3://bucket/key`; or a folder that exists or ends with a slash, for
                a file under the name that the endpoint gave it. A zip that is not saved as a .zip is unpacked into the folder of that name.

        Raises:
            StorageError: it cannot be written.
        """
        text = os.fspath(path)
        is_zip = self.media_type == "application/zip"
        if text.endswith("/") or Path(text).is_dir() or (is_zip and not text.lower().endswith(".zip")):
            storage = open_storage(text)
            for name, data in self.files.items():
                storage.write(name, data)
            return storage.uri
        parent, name = split_uri(absolute_uri(text, "path"))
        open_storage(parent).write(name, self.data)
        return join_uri(parent, name)

    def _file(self, name: str) -> bytes:
        if name not in self.files:
            raise UsageError(
                f"the answer has {', '.join(self.files)} and no {name}; ask for output='all', or for the output "
                "that has it"
            )
        return self.files[name]


@dataclass(frozen=True, kw_only=True)
class Segmentation(Answer):
    """A segmented case; of what was not asked for, the properties raise `UsageError`."""

    @property
    def mask(self) -> NDArray[np.uint8]:
        """(X, Y, Z) labels in the convention that was asked for, in the axis order of the files that were sent."""
        return np.asarray(read_volume(self._file("segmentation.nii.gz"), name="segmentation.nii.gz").array)

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) from voxel index of the mask, or else of the probabilities, to mm in RAS+."""
        grids = [name for name in self.files if name.endswith(".nii.gz")]
        name = "segmentation.nii.gz" if "segmentation.nii.gz" in grids or not grids else grids[0]
        return np.asarray(read_volume(self._file(name), name=name).affine)

    @cached_property
    def report(self) -> Report:
        """Volumes, lesions, certainty and flags."""
        # Imported late: it brings the tasks.
        from glioray.tasks.segmentation.findings import Report

        return Report.model_validate_json(self._file("report.json"))

    @property
    def probabilities(self) -> dict[str, NDArray[np.float32]]:
        """Region -> (X, Y, Z) in [0, 1], in the axis order of the files that were sent."""
        names = {
            found[1]: name
            for name in self.files
            if (found := re.fullmatch(r"probability_(\w+)\.nii\.gz", name))
        }
        if not names:
            self._file("probability_wt.nii.gz")
        return {
            region: np.asarray(read_volume(self._file(name), name=name).array)
            for region, name in names.items()
        }

    @property
    def overlay(self) -> bytes:
        """A PNG of three planes with the labels."""
        return self._file("overlay.png")


@dataclass(frozen=True, kw_only=True)
class SuperResolved(Answer):
    """Images on a finer grid."""

    @property
    def images(self) -> dict[str, NDArray[Any]]:
        """Modality -> (X, Y, Z), in RAS+ order; of one image the name is "superres". None for a PNG."""
        return {
            name.removesuffix(".nii.gz"): np.asarray(read_volume(data, name=name).array)
            for name, data in self.files.items()
            if name.endswith(".nii.gz")
        }

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) from voxel index to mm in RAS+.

        Raises:
            UsageError: a PNG has none.
        """
        for name, data in self.files.items():
            if name.endswith(".nii.gz"):
                return np.asarray(read_volume(data, name=name).affine)
        raise UsageError("a PNG has no affine; send NIfTI for a result with a grid")


@dataclass(frozen=True)
class FolderResult:
    """What became of the cases of a folder.

    Attributes:
        files: case id -> URI of its answer.
        failed: case id, or the name of a file that belongs to none -> why there is none.
    """

    files: dict[str, str]
    failed: dict[str, str]


class _Calls:
    """What both clients do, as flows; arguments as of `Client`."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float, retry_s: float) -> None:
        self.url = httpx.URL(url.rstrip("/"))
        if self.url.scheme not in ("http", "https") or not self.url.host:
            raise UsageError(f"the endpoint's address is '{url}'; expected http://HOST:PORT or https://HOST")
        self.timeout_s, self.retry_s = timeout_s, retry_s
        self.headers = {"Accept": "*/*", "User-Agent": "glioray"}
        key = (api_key or os.environ.get(KEY_VARIABLE) or "").strip()
        if key:
            if not key.isascii() or not key.isprintable():
                raise UsageError(f"the API key, by default {KEY_VARIABLE}, has characters that no key has")
            self.headers["Authorization"] = f"Bearer {key}"
            if self.url.scheme == "http" and self.url.host not in _LOOPBACK:
                _log.warning("the API key goes to %s unencrypted; use https", self.url.host)
        bypass_proxies()

    def get_models(self) -> _Flow[list[dict[str, Any]]]:
        response = yield from self.exchange("GET", "/v1/models")
        models: list[dict[str, Any]] = response.json()["models"]
        return models

    def get_ready(self, wait_s: float) -> _Flow[bool]:
        for last in (*(False for _ in range(int(wait_s / _READY_S))), True):
            response = yield self._request("GET", "/readyz")
            if isinstance(response, httpx.Response):
                if response.is_success:
                    return True
                if response.status_code not in _PROXY_FAULTS:
                    raise self._refusal(response)
            if not last:
                yield _READY_S
        return False

    def segment(
        self, source: Source, output: str, fields: Mapping[str, Any], case_id: str | None
    ) -> _Flow[Segmentation]:
        wanted = None if _names_its_files(source) else (yield from self.get_modalities("segmentation"))
        parts = yield partial(_read_source, source, case_id, wanted)
        response = yield from self.exchange("POST", "/v1/segment", parts, {"output": output, **fields})
        return Segmentation.from_response(response)

    def superresolve(
        self, source: Source, fields: Mapping[str, Any], case_id: str | None
    ) -> _Flow[SuperResolved]:
        wanted = None if _names_its_files(source) else (yield from self.get_modalities("super-resolution"))
        parts = yield partial(_read_source, source, case_id, wanted)
        response = yield from self.exchange("POST", "/v1/superresolve", parts, fields)
        return SuperResolved.from_response(response)

    def segment_into(
        self,
        storage: Storage,
        files: CaseFiles,
        out: str,
        output: str,
        fields: Mapping[str, Any],
        wanted: Sequence[str] | None,
    ) -> _Flow[str]:
        parts = yield partial(_read_files, storage, files, wanted)
        response = yield from self.exchange("POST", "/v1/segment", parts, {"output": output, **fields})
        key = f"{files.case_id}_{_ENDINGS[output]}"
        target = open_storage(out)
        yield partial(target.write, key, response.content)
        return join_uri(target.uri, key)

    def get_modalities(self, task: str) -> _Flow[tuple[str, ...] | None]:
        """The modalities that a task's model takes; None where it takes each by itself, or where none is served."""
        models = yield from self.get_models()
        for model in models:
            if model.get("task") == task and model.get("channels") != "each":
                return tuple(model["modalities"])
        return None

    def exchange(
        self,
        method: str,
        path: str,
        files: Mapping[str, bytes] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> _Flow[httpx.Response]:
        """The response to a request; tries again where the endpoint says when, and where a connection broke.

        Raises:
            EndpointError: the request was refused, or there is no answer after `retry_s` or several broken connections.
        """
        waited_s, num_breaks = 0.0, 0
        while True:
            outcome = yield self._request(method, path, files, fields)
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                return outcome
            error, wait_s, is_break = self._judge(outcome)
            if wait_s is None and is_break and num_breaks < _MAX_BREAKS:
                wait_s = _BREAK_S * 2**num_breaks
                num_breaks += 1
            if wait_s is None or waited_s + wait_s > self.retry_s:
                raise error
            _log.info("%s; trying again in %.3g s", error, wait_s)
            # Those who were refused together do not come back together.
            yield wait_s * random.uniform(1, 1.2)
            waited_s += wait_s

    def _judge(
        self, outcome: httpx.Response | httpx.TransportError
    ) -> tuple[EndpointError, float | None, bool]:
        """What went wrong, the seconds to wait that the endpoint states, and whether a connection broke."""
        if isinstance(outcome, httpx.Response):
            stated = outcome.headers.get("Retry-After") if outcome.status_code in (429, 503) else None
            # A proxy before the endpoint, or before a process that died, has no sentence of the endpoint.
            is_break = outcome.status_code in _PROXY_FAULTS and _detail(outcome) is None
            return self._refusal(outcome), stated and parse_retry_after(stated), is_break
        if isinstance(outcome, httpx.TimeoutException) and not isinstance(outcome, httpx.ConnectTimeout):
            found = f"{self.url} gave no answer for {self.timeout_s:g} s"
            return EndpointError(f"{found}; try again later"), None, False
        reason = str(outcome) or type(outcome).__name__
        advice = "check the address and the endpoint"
        return EndpointError(f"{self.url} does not answer ({reason}); {advice}"), None, True

    def _refusal(self, response: httpx.Response) -> EndpointError:
        other = (
            f"{self.url} answered {response.status_code} {response.reason_phrase}; expected glioray's endpoint, so "
            "check the address"
        )
        detail = _detail(response) or other
        return EndpointError(detail, response.status_code, response.headers.get("X-Request-Id"))

    def _request(
        self,
        method: str,
        path: str,
        files: Mapping[str, bytes] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> httpx.Request:
        # Files go under the names of their fields: their own may name a patient.
        sent = {name: (name, data, "application/octet-stream") for name, data in (files or {}).items()}
        return httpx.Request(
            method,
            f"{self.url}{path}",
            headers=self.headers,
            files=sent or None,
            data=dict(fields or {}) or None,
            extensions={"timeout": httpx.Timeout(self.timeout_s, connect=_CONNECT_S).as_dict()},
        )


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
        self._calls, self._sleep = _Calls(url, api_key, timeout_s, retry_s), sleep
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
            case_id: which of several cases of a folder.
            **options: of the super-resolution.

        Raises:
            EndpointError: the request was refused, or the endpoint does not answer.
            UsageError, DataError, CaseError, StorageError: the source is no case, or cannot be read.
        """
        return self._run(
            self._calls.segment(source, output, _fields(labels, superresolve, grid, options), case_id)
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
        return self._run(self._calls.superresolve(source, _option_fields(options), case_id))

    def segment_folder(
        self,
        root: str | os.PathLike[str],
        out: str | os.PathLike[str],
        output: Output = "mask",
        *,
        labels: str | None = None,
        superresolve: bool = False,
        grid: Literal["fine", "input"] | None = None,
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
        fields = _fields(labels, superresolve, grid, options)
        wanted = self._run(self._calls.get_modalities("segmentation"))
        folder = _Folder.open(root, out, output, skip_existing)
        pool = ThreadPoolExecutor(_check_concurrency(concurrency), "glioray-client")
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

    def _run(self, flow: _Flow[T]) -> T:
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
        self._calls, self._sleep = _Calls(url, api_key, timeout_s, retry_s), sleep
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
        case_id: str | None = None,
        **options: Unpack[SuperResOptions],
    ) -> Segmentation:
        """As `Client.segment`."""
        return await self._run(
            self._calls.segment(source, output, _fields(labels, superresolve, grid, options), case_id)
        )

    async def superresolve(
        self, source: Source, *, case_id: str | None = None, **options: Unpack[SuperResOptions]
    ) -> SuperResolved:
        """As `Client.superresolve`."""
        return await self._run(self._calls.superresolve(source, _option_fields(options), case_id))

    async def segment_folder(
        self,
        root: str | os.PathLike[str],
        out: str | os.PathLike[str],
        output: Output = "mask",
        *,
        labels: str | None = None,
        superresolve: bool = False,
        grid: Literal["fine", "input"] | None = None,
        concurrency: int = 4,
        skip_existing: bool = False,
        **options: Unpack[SuperResOptions],
    ) -> FolderResult:
        """As `Client.segment_folder`."""
        fields = _fields(labels, superresolve, grid, options)
        places = asyncio.Semaphore(_check_concurrency(concurrency))
        wanted = await self._run(self._calls.get_modalities("segmentation"))
        folder = await asyncio.to_thread(_Folder.open, root, out, output, skip_existing)

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

    async def _run(self, flow: _Flow[T]) -> T:
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


@dataclass
class _Folder:
    """The cases of a folder, and what became of them."""

    storage: Storage
    cases: list[CaseFiles]
    out: str
    result: FolderResult
    began_s: float
    num_done: int = 0

    @classmethod
    def open(
        cls, root: str | os.PathLike[str], out: str | os.PathLike[str], output: str, skip_existing: bool
    ) -> _Folder:
        if output not in _ENDINGS:
            raise UsageError(f"output is '{output}'; expected one of {', '.join(_ENDINGS)}")
        storage = open_storage(absolute_uri(os.fspath(root), "root"))
        target = open_storage(ready_out(os.fspath(out)))
        cases, problems = discover_cases(storage)
        if not cases:
            raise DataError(f"'{storage.uri}' holds no case; {problems[0] if problems else RECOGNISED}")
        keys = {files.case_id: f"{files.case_id}_{_ENDINGS[output]}" for files in cases}
        there = written_keys(target.uri) if skip_existing else set()
        done = {case: join_uri(target.uri, key) for case, key in keys.items() if key in there}
        if done:
            _log.info("%d of %d cases have their answer already", len(done), len(cases))
        left = [files for files in cases if files.case_id not in done]
        return cls(storage, left, target.uri, FolderResult(done, _describe(problems)), time.monotonic())

    def take(self, files: CaseFiles, outcome: str | GliorayError) -> None:
        """Keep the URI of a case's answer, or why there is none."""
        if isinstance(outcome, str):
            self.result.files[files.case_id] = outcome
        else:
            _log.warning("%s failed: %s", files.case_id, outcome)
            self.result.failed[files.case_id] = str(outcome)
        self.num_done += 1
        stage = f"segmenting {len(self.cases)} case{'s' if len(self.cases) > 1 else ''}"
        log_progress(_log, stage, self.num_done / len(self.cases), self.began_s, files.case_id)


def _describe(problems: Sequence[Problem]) -> dict[str, str]:
    return {problem.case_id or problem.file: str(problem) for problem in problems}


def _check_concurrency(concurrency: int) -> int:
    if concurrency < 1:
        raise UsageError(f"concurrency is {concurrency}; expected at least 1")
    return concurrency


def _names_its_files(source: Source) -> bool:
    """Whether a source says itself which files are sent."""
    return isinstance(source, Mapping) or (not isinstance(source, Case) and Path(source).is_file())


def _read_source(source: Source, case_id: str | None, wanted: Sequence[str] | None) -> dict[str, bytes]:
    """The files to send, by the names of the endpoint's form.

    Args:
        source: the case.
        case_id: which of several.
        wanted: the modalities that are sent of a folder or a case in memory; None for all.
    """
    if isinstance(source, Case):
        return _encode(source, wanted)
    if isinstance(source, Mapping):
        return {name: data if isinstance(data, bytes) else _read(data) for name, data in source.items()}
    if Path(source).is_file():
        return {"image": _read(source)}
    return _read_files(*find_case(os.fspath(source), case_id), wanted)


def _read(path: str | os.PathLike[str]) -> bytes:
    parent, name = split_uri(absolute_uri(os.fspath(path), "source"))
    return open_storage(parent).read(name)


def _read_files(storage: Storage, files: CaseFiles, wanted: Sequence[str] | None) -> dict[str, bytes]:
    names = [name for name in files.modalities if wanted is None or name in wanted]
    if files.images:
        return {name: storage.read(files.images[name]) for name in names}
    if files.image is not None and files.channels == MSD_CHANNELS and set(names) == set(MODALITIES):
        return {"image": storage.read(files.image)}
    return _encode(load_case(storage, files, with_mask=False), wanted)


def _encode(case: Case, wanted: Sequence[str] | None) -> dict[str, bytes]:
    return {
        name: encode_volume(image, case.affine)
        for name, image in zip(case.modalities, case.images, strict=True)
        if wanted is None or name in wanted
    }


def _fields(
    labels: str | None, superresolve: bool, grid: str | None, options: SuperResOptions
) -> dict[str, str]:
    """The text fields of a form to /v1/segment."""
    texts = {"labels": labels, "superresolve": "true" if superresolve else None, "grid": grid}
    sent = {name: text for name, text in texts.items() if text is not None}
    return sent | _option_fields(options)


def _option_fields(options: SuperResOptions) -> dict[str, str]:
    def text(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return {name: text(value) for name, value in options.items() if value is not None}


def _detail(response: httpx.Response) -> str | None:
    """The endpoint's own sentence in a refusal."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return None
    return detail if isinstance(detail, str) else None


def parse_retry_after(text: str) -> float:
    """The seconds of a `Retry-After` header, which may be a date; 5 where it is neither."""
    if re.fullmatch(r"\d{1,9}", text.strip()):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 5.0
