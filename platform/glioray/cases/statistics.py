"""Statistics of one case, small enough to gather from thousands of cases."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glioray.cases.conventions import find_convention
from glioray.cases.labels import LABELS
from glioray.cases.load import Case, brain_mask

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
"""The percentiles of a modality's raw intensities inside the brain."""

ZSCORE_EDGES = np.linspace(-5, 5, 101)
"""The histogram bins of z-scored intensities; values outside count in the first or the last bin."""


@dataclass(frozen=True, kw_only=True)
class CasePicture:
    """An axial slice in radiological orientation: front at the top, right on the left.

    Attributes:
        images: (M, H, W) uint8; 1 to 255 from the 0.5th to the 99.5th percentile of the brain, 0 outside it.
        labels: (H, W) uint8 internal labels; all 0 without a mask.
        index: the slice's index along Z.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    index: int


@dataclass(frozen=True, kw_only=True)
class CaseStatistics:
    """Voxel counts per axial slice and intensities per modality.

    Attributes:
        case_id: the case's name in the data set.
        modalities: of the intensities, in order.
        convention: the name of the mask's label convention, or None without a mask.
        spacing_mm: voxel edges along X, Y, Z.
        brain_voxels: (Z,) number of brain voxels in each axial slice.
        label_voxels: (Z, 5) number of voxels of each internal label; all 0 without a mask.
        percentiles: (M, 7) raw intensities inside the brain at `PERCENTILES`.
        histograms: (M, 100) number of brain voxels by z-score, in the bins of `ZSCORE_EDGES`.
        picture: the slice with the most tumour or, without tumour, the most brain; None if not requested.
    """

    case_id: str
    modalities: tuple[str, ...]
    convention: str | None
    spacing_mm: tuple[float, float, float]
    brain_voxels: NDArray[np.int64]
    label_voxels: NDArray[np.int64]
    percentiles: NDArray[np.float64]
    histograms: NDArray[np.int64]
    picture: CasePicture | None

    def with_convention(self, convention: str | None) -> CaseStatistics:
        """The statistics with the mask read by another convention."""
        if convention == self.convention or convention is None or self.convention is None:
            return self
        stored = {label: number for number, label in find_convention(self.convention).to_internal.items()}
        table = np.zeros(len(LABELS), np.uint8)  # label in this convention -> label in the other one
        for label, number in stored.items():
            table[label] = find_convention(convention).to_internal.get(number, 0)
        voxels = np.zeros_like(self.label_voxels)
        for label in stored:
            voxels[:, table[label]] += self.label_voxels[:, label]
        picture = self.picture
        if picture is not None:
            picture = dataclasses.replace(picture, labels=table[picture.labels])
        return dataclasses.replace(self, convention=convention, label_voxels=voxels, picture=picture)


def describe_case(case: Case, *, with_picture: bool = True) -> CaseStatistics:
    """The statistics of a case from `load_case`, before any preprocessing."""
    brain = brain_mask(case.images)
    # x is fastest in memory, so transposed arrays are read in memory order.
    inside = brain.T
    depth = len(inside)
    label_voxels = np.zeros((depth, len(LABELS)), np.int64)
    if case.mask is not None:
        for index, labels in enumerate(case.mask.T):
            label_voxels[index] = np.bincount(labels.ravel(), minlength=len(LABELS))
    percentiles = np.empty((len(case.modalities), len(PERCENTILES)))
    histograms = np.empty((len(case.modalities), len(ZSCORE_EDGES) - 1), np.int64)
    windows = []
    for channel, image in enumerate(case.images):
        values = image.T[inside].astype(np.float64)
        percentiles[channel] = np.percentile(values, PERCENTILES)
        windows.append(np.percentile(values, (0.5, 99.5)))
        spread = values.std()
        scores = (values - values.mean()) / (spread if spread > 0 else 1.0)
        histograms[channel], _ = np.histogram(scores.clip(ZSCORE_EDGES[0], ZSCORE_EDGES[-1]), ZSCORE_EDGES)
    brain_voxels = inside.sum(axis=(1, 2), dtype=np.int64)
    picture = None
    if with_picture:
        tumour = label_voxels[:, 1:].sum(1)
        index = int((tumour if tumour.any() else brain_voxels).argmax())
        picture = _picture(case, brain, index, windows)
    return CaseStatistics(
        case_id=case.case_id,
        modalities=case.modalities,
        convention=None if case.convention is None else case.convention.name,
        spacing_mm=case.spacing_mm,
        brain_voxels=brain_voxels,
        label_voxels=label_voxels,
        percentiles=percentiles,
        histograms=histograms,
        picture=picture,
    )


def _picture(
    case: Case, brain: NDArray[np.bool_], index: int, windows: list[NDArray[np.float64]]
) -> CasePicture:
    along_x, along_y = (np.flatnonzero(brain.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    box = slice(along_x[0], along_x[-1] + 1), slice(along_y[0], along_y[-1] + 1), index

    def to_radiological(plane: NDArray[np.generic]) -> NDArray[np.generic]:
        return plane.T[::-1, ::-1]  # (X, Y) to rows from the front and columns from the patient's right

    images = []
    for image, (low, high) in zip(case.images, windows, strict=True):
        scaled = (image[box].astype(np.float64) - low) / max(high - low, 1e-12)
        images.append(to_radiological(np.where(brain[box], 1 + 254 * scaled.clip(0, 1), 0).astype(np.uint8)))
    labels = np.zeros(images[0].shape, np.uint8) if case.mask is None else to_radiological(case.mask[box])
    return CasePicture(images=np.stack(images), labels=np.ascontiguousarray(labels, np.uint8), index=index)
