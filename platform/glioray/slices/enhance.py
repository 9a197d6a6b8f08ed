"""What cleans a scan: the skull taken off, the coil's field taken out, contrast evened. The extra `prepare`."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glioray.errors import CaseError, UsageError

# What a strip may leave: half of a small adult's brain, in which a case could hardly be judged, to more than any.
PLAUSIBLE_BRAIN_ML = (600.0, 2300.0)

# N4's spline has some centimetres between its knots: one sample in about 4 mm holds all that it can follow.
_N4_SHRINK, _N4_SAMPLE_MM = 4, 4.0

# Levels of ever finer splines, at most so many steps each. ITK's four end on knots as close as a tumour is wide.
_N4_ITERATIONS = (50, 50)


def brain_of_head(
    head: NDArray[Any], spacing_mm: tuple[float, float, float], case_id: str
) -> NDArray[np.bool_]:
    """(X, Y, Z) bool of the brain in a scan of a whole head, ventricles included.

    Args:
        head: (X, Y, Z) in RAS+, best a T1.
        spacing_mm: voxel edges along X, Y, Z.
        case_id: for messages.

    Raises:
        UsageError: deepbet is not installed.
        CaseError: no brain is found, or one of a volume that no brain has.

    Reference:
        Fisch et al., "deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural Networks",
        Computers in Biology and Medicine 2024 (arXiv 2308.07003). On the CPU, for the same bits everywhere.
    """
    deepbet = _optional("deepbet", "skull_strip")
    # An object a call: it keeps the box of the head it is at, and two threads may prepare cases at once.
    extraction = deepbet.BrainExtraction(no_gpu=True)
    try:
        brain = extraction.postprocess(extraction.run_model(np.array(head, np.float32, order="C")) > 0.5)
    except (AssertionError, ValueError):  # how it says that nothing is left
        brain = np.zeros(head.shape, bool)
    volume_ml = float(np.count_nonzero(brain) * np.prod(spacing_mm)) / 1000
    low, high = PLAUSIBLE_BRAIN_ML
    if not low <= volume_ml <= high:
        found = f"skull stripping left {volume_ml:.0f} ml; expected a brain of {low:.0f} to {high:.0f} ml"
        advice = "strip it by other means and set preprocess.skull_strip to false, or leave the case out"
        raise CaseError(case_id, "", found, advice)
    return np.asarray(brain, bool)


def bias_field(
    image: NDArray[Any], brain: NDArray[np.bool_], spacing_mm: tuple[float, float, float], case_id: str
) -> NDArray[np.float32]:
    """(X, Y, Z) float32 factor by which the coil brightens each voxel, of mean 1 in the brain and 1 around its box.

    Found at a fourth of the resolution (less along axes of thick slices), which the smooth field loses nothing
    by, and evaluated at the full one.

    Args:
        image: (X, Y, Z), not negative in the brain.
        brain: (X, Y, Z), where the field is fitted.
        spacing_mm: voxel edges along X, Y, Z.
        case_id: for messages.

    Raises:
        UsageError: SimpleITK is not installed.
        CaseError: the brain is too thin for a field.

    Reference:
        Tustison et al., "N4ITK: Improved N3 Bias Correction", IEEE TMI 2010. With two levels instead of four: the
        finer ones take a large oedema for a field. On a case with such a one the separation of tumour from the
        rest on FLAIR (d') fell from 1.9 to 0.6 with four and to 1.6 with two; what of a planted field came on top
        of a case's own correlated with it to .99 and .96.
    """
    sitk = _optional("SimpleITK", "n4")
    box = bounding_box(brain)
    if box is None:
        return np.ones(brain.shape, np.float32)
    shrink = [
        int(np.clip(round(_N4_SAMPLE_MM / mm), 1, min(_N4_SHRINK, max(length // 4, 1))))
        for mm, length in zip(spacing_mm, brain[box].shape, strict=True)
    ]
    inside = brain[box]
    full, mask = (
        sitk.GetImageFromArray(np.ascontiguousarray(values.T))
        for values in (np.asarray(image[box], np.float32), inside.astype(np.uint8))
    )
    for part in (full, mask):
        part.SetSpacing([float(mm) for mm in spacing_mm])
    # Cases are spread over processes; and the same bits everywhere. Of the process: N4's own setting does not reach
    # the splines that it fits.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetMaximumNumberOfIterations(list(_N4_ITERATIONS))
    try:
        correction.Execute(sitk.Shrink(full, shrink), sitk.Shrink(mask, shrink))
    except RuntimeError as error:
        found = f"N4 finds no field in a brain of {inside.shape} voxels; expected some along each axis"
        raise CaseError(case_id, "", found, "set preprocess.n4 to false or leave the case out") from error
    log_field = sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(full)).T
    found = np.exp(log_field)
    field = np.ones(brain.shape, np.float32)
    field[box] = found / found[inside].mean(dtype=np.float64)
    return field


def equalize(
    values: NDArray[np.float32], inside: NDArray[np.bool_], clip_limit: float
) -> NDArray[np.float32]:
    """(Z, Y, X) in [0, 1] of equalised contrast, background 0: CLAHE in 3-D, so that planes do not differ.

    Each voxel is mapped by the histograms of the tiles around it, an eighth of the volume wide along each axis.
    The background counts as the brain's darkest value there. A thousandth of the brain at either end is cut off
    first: some bright vessels would leave the tissues a handful of the 256 grey levels.

    Args:
        values: (Z, Y, X), any range.
        inside: (Z, Y, X), the brain.
        clip_limit: share of a tile's voxels that one of its grey levels may hold; (0, 1], the more the stronger.

    Raises:
        UsageError: scikit-image is not installed.

    Reference:
        Zuiderveld, "Contrast Limited Adaptive Histogram Equalization", Graphics Gems IV, 1994.
    """
    exposure = _optional("skimage.exposure", "clahe")
    low, high = (float(value) for value in np.percentile(values[inside], (0.1, 99.9)))
    if low == high:
        return np.zeros_like(values)
    scaled = np.where(inside, np.clip((values - low) / (high - low), 0, 1), 0)
    return np.where(inside, exposure.equalize_adapthist(scaled, clip_limit=clip_limit), 0).astype(np.float32)


def bounding_box(brain: NDArray[np.bool_]) -> tuple[slice, slice, slice] | None:
    """The smallest box that holds all that is True; None where nothing is."""
    spans = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        found = np.flatnonzero(brain.any(axis=others))
        if not len(found):
            return None
        spans.append(slice(int(found[0]), int(found[-1]) + 1))
    return spans[0], spans[1], spans[2]


def _optional(module: str, setting: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"preprocess.{setting} needs {module.partition('.')[0]}, which cannot be imported ({error}); install the "
            "packages of the extra 'prepare' in pyproject.toml"
        ) from error
