"""What the endpoint made of a case."""

from __future__ import annotations

import io
import os
import re
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import numpy as np
from numpy.typing import NDArray

from glioray.api.places import absolute_uri
from glioray.cases.nifti import read_volume
from glioray.engine.serving import MODEL_HEADER, WARNING_HEADER
from glioray.errors import EndpointError, UsageError
from glioray.storage import join_uri, open_storage, split_uri

if TYPE_CHECKING:
    from glioray.tasks.segmentation.findings import Report


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
    def uncertainty(self) -> NDArray[np.float32]:
        """(X, Y, Z) in [0, 1]: 0 where the model is sure, the normalised entropy of its probabilities elsewhere."""
        name = "uncertainty.nii.gz"
        return np.asarray(read_volume(self._file(name), name=name).array)

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
