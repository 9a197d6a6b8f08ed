"""The endpoint's page: the files of `serve/web/`, and synthetic images to try it with."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import math
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, HTTPException, Request, Response
from PIL import Image

from glioray.cases.nifti import read_volume
from glioray.cases.phantom import write_phantoms
from glioray.storage import open_storage
from serve.request_queue import RETRY_AFTER
from serve.status import ModelState, Status

WEB = Path(__file__).parent / "web"

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Of the page and its files: nothing but this server is asked for anything, and no other page may frame them."""

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_HEAD_MM = (156, 190, 130)
_EDGES_MM = (1.0, 4.0)
_SEED = 7


@dataclass(frozen=True)
class WebFile:
    """A file that browsers ask for.

    Attributes:
        data: its bytes.
        compressed: the same by gzip.
        media_type: by the end of its name.
        etag: of the bytes; weak, as both forms share it.
    """

    data: bytes
    compressed: bytes
    media_type: str
    etag: str

    def answer(self, request: Request) -> Response:
        """The file, or 304 where the browser has it."""
        headers = {
            **HEADERS,
            "ETag": self.etag,
            "Cache-Control": "no-cache",
            "Vary": "Accept, Accept-Encoding",
        }
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            return Response(self.compressed, media_type=self.media_type, headers=headers)
        return Response(self.data, media_type=self.media_type, headers=headers)


@cache
def read_files() -> dict[str, WebFile]:
    """The files of `serve/web/` by name, read once for a process."""
    files = {}
    for path in sorted(WEB.iterdir()):
        data = path.read_bytes()
        etag = f'W/"{hashlib.sha256(data).hexdigest()[:16]}"'
        files[path.name] = WebFile(data, gzip.compress(data, mtime=0), _TYPES[path.suffix], etag)
    return files


def make_page_router(status: Status) -> APIRouter:
    """The routes below /web: files of the page, a case and an image to try it with; not part of the API's description.

    Args:
        status: of the models; examples have the voxels that these were trained on.
    """
    router = APIRouter(prefix="/web", include_in_schema=False)
    examples = Examples()
    files = read_files()

    @router.get("/example.zip")
    async def example_case() -> Response:
        entry = _entry(await status.states(), "segmentation")
        return Response(
            await examples.case(entry["spacing_mm"]), media_type="application/zip", headers=HEADERS
        )

    @router.get("/example.png")
    async def example_image() -> Response:
        entry = _entry(await status.states(), "superres")
        data = await examples.image(entry["spacing_mm"], entry["scale"])
        return Response(data, media_type="image/png", headers=HEADERS)

    @router.get("/{name}")
    async def file(name: str, request: Request) -> Response:
        found = files.get(name)
        if found is None:
            raise HTTPException(404, f"the page has no file '{name[:40]}'; open / for the page")
        return found.answer(request)

    return router


def _entry(states: Mapping[str, ModelState], task: str) -> dict[str, Any]:
    state = states.get(task)
    if state is None:
        raise HTTPException(503, f"no model of the task {task} is served, so there is no example for it")
    if state.entry is None:
        raise HTTPException(503, state.detail, RETRY_AFTER)
    return state.entry


class Examples:
    """Synthetic images, made when they are first asked for, and kept for voxels of one size."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._made: tuple[float, dict[str, bytes]] = (0.0, {})

    async def case(self, spacing_mm: tuple[float, float, float]) -> bytes:
        """A zip of the four files of a synthetic case, with voxels about as large as `spacing_mm`."""
        files = await self._files(spacing_mm)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:  # its files are compressed already
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name), data)  # a time of its own would change the bytes
        return buffer.getvalue()

    async def image(self, spacing_mm: tuple[float, float, float], scale: float) -> bytes:
        """A grey PNG of an axial slice, `scale` times coarser than `spacing_mm`."""
        files = await self._files(spacing_mm)
        data = next(data for name, data in files.items() if name.endswith("_t1ce.nii.gz"))
        return await asyncio.to_thread(_coarse_slice, data, scale)

    async def _files(self, spacing_mm: tuple[float, float, float]) -> dict[str, bytes]:
        low, high = _EDGES_MM
        edge = min(max(float(np.prod(spacing_mm)) ** (1 / 3), low), high)
        async with self._lock:
            if self._made[0] != edge:
                self._made = edge, await asyncio.to_thread(_make_case, edge)
            return self._made[1]


def _make_case(edge_mm: float) -> dict[str, bytes]:
    """File name -> bytes of the images of a synthetic case."""
    x, y, z = (math.ceil(mm / edge_mm) for mm in _HEAD_MM)
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(Path(folder))
        (case_id,) = write_phantoms(storage, num_cases=1, seed=_SEED, shape=(x, y, z), spacing_mm=edge_mm)
        files = sorted(Path(folder, case_id).iterdir())
        return {
            f"phantom/phantom{file.name.removeprefix(case_id)}": file.read_bytes()
            for file in files
            if "_seg." not in file.name
        }


def _coarse_slice(nifti: bytes, scale: float) -> bytes:
    array = read_volume(
        nifti, name="example"
    ).array  # stored from the front to the back, and from the right to the left
    middle = np.asarray(array[:, :, array.shape[2] * 11 // 20].T, np.float32)
    grey = Image.fromarray(np.clip(middle / np.percentile(middle, 99.8), 0, 1) * 255).convert("L")
    size = round(grey.width / scale), round(grey.height / scale)
    buffer = io.BytesIO()
    grey.resize(size, Image.Resampling.BOX).save(buffer, "png")
    return buffer.getvalue()
