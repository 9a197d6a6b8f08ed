"""A segmented case as files: the mask, the report, probabilities, a picture of three planes, and all of them."""

from __future__ import annotations

import base64
import io
import zipfile
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from glioray.cases.content import content_digests
from glioray.cases.conventions import LabelConvention
from glioray.cases.labels import from_internal
from glioray.cases.load import Case
from glioray.cases.nifti import encode_map, encode_mask
from glioray.config import REGIONS
from glioray.engine.serving import JSON
from glioray.reports.html import render
from glioray.tasks.segmentation.findings import (
    Report,
    find_lesions,
    flag_case,
    measure_certainty,
    measure_regions,
)
from glioray.tasks.segmentation.package import ModelSpec

_LESION_REGIONS = ("wt", "et")
_DPI = 110


@dataclass(frozen=True)
class Outputs:
    """What can be answered about one case.

    Attributes:
        case: on the grid of the answer.
        mask: (X, Y, Z) internal labels.
        probs: region -> (X, Y, Z) probabilities in [0, 1]; of the mask alone none are needed.
        uncertainty: (X, Y, Z) in [0, 1] (`predictor.uncertainty`); for "probabilities" and "all".
        convention: of the mask that is written.
        spec: of the model.
        version: of the model.
        superres: version of the model that super-resolved the case before, or None.
        resampling: how the case was resampled on request, in a sentence, or None.
    """

    case: Case
    mask: NDArray[np.uint8]
    probs: dict[str, NDArray[np.float32]]
    uncertainty: NDArray[np.float32] | None
    convention: LabelConvention
    spec: ModelSpec
    version: str
    superres: str | None = None
    resampling: str | None = None

    def encode(self, output: str) -> tuple[bytes, str, str]:
        """(data, media type, file name) of "mask", "report", "probabilities", "overlay" or "all"."""
        if output == "mask":
            mask = from_internal(self.mask, self.convention)
            return encode_mask(mask, like=self.case.reference), "application/gzip", "segmentation.nii.gz"
        if output == "report":
            return self.report.model_dump_json(exclude_none=True).encode(), JSON, "report.json"
        if output == "overlay":
            return self.overlay, "image/png", "overlay.png"
        files = self._map_files()
        if output == "all":
            for name in ("mask", "report", "overlay"):
                data, _, file = self.encode(name)
                files[file] = data
            files["report.html"] = self.page.encode()
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for file, data in files.items():
                # Most files are compressed already.
                is_text = file.endswith((".json", ".html"))
                archive.writestr(file, data, zipfile.ZIP_DEFLATED if is_text else zipfile.ZIP_STORED)
        return (
            buffer.getvalue(),
            "application/zip",
            "segmentation.zip" if output == "all" else "probabilities.zip",
        )

    @cached_property
    def report(self) -> Report:
        """The case in numbers."""
        volumes, voxels = measure_regions(
            self.mask, self.spec.regions, self.spec.out_channels, self.case.voxel_ml
        )
        found = {
            region: find_lesions(self.mask, region, self.case.affine)
            for region in _LESION_REGIONS
            if region in self.spec.regions
        }
        return Report(
            model=self.version,
            superres=self.superres,
            volumes_ml=volumes,
            voxels=voxels,
            spacing_mm=self.case.spacing_mm,
            lesions=[lesion for lesions, _ in found.values() for lesion in lesions],
            num_lesions={region: number for region, (_, number) in found.items()},
            certainty=measure_certainty(self.probs, self.mask, self.case.voxel_ml),
            input_digests=content_digests(self.case.images, self.case.modalities),
            flags=flag_case(
                self.case,
                self.mask,
                self.spec.spacing_mm,
                self.spec.train_ranges,
                self.resampling,
                is_scan=self.superres is None,
            ),
        )

    @cached_property
    def overlay(self) -> bytes:
        """A PNG of three planes through the tumour's largest sections, with the labels over them."""
        from glioray.reports.plane_figures import planes_figure

        modality = next(
            name for name in ("flair", "t1c", *self.case.modalities) if name in self.case.modalities
        )
        image = self.case.images[self.case.modalities.index(modality)]
        figure = planes_figure(image, self.mask, self.case.spacing_mm, modality)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI)
        return buffer.getvalue()

    @property
    def page(self) -> str:
        """The report as a page that can be printed; it loads nothing."""
        picture = base64.b64encode(self.overlay).decode()
        return render("case_report.html", report=self.report.model_dump(), regions=REGIONS, picture=picture)

    def _map_files(self) -> dict[str, bytes]:
        assert self.uncertainty is not None
        maps = {f"probability_{region}": values for region, values in self.probs.items()}
        maps["uncertainty"] = self.uncertainty
        return {
            f"{name}.nii.gz": encode_map(round_map(values), like=self.case.reference)
            for name, values in maps.items()
        }


def round_map(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities in steps of 1/255, which a file holds in a tenth of the size.

    Halves go down, so that the same voxels are above .5 as before.
    """
    rounded: NDArray[np.float32] = np.ceil(255 * values - np.float32(0.5)) / np.float32(255)
    return rounded
