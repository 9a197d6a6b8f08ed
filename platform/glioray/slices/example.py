"""Pictures of one case before and after preprocessing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glioray.cases.load import Case, brain_mask
from glioray.config import PreprocessConfig
from glioray.slices.preprocess import preprocess

Pictures = list[NDArray[np.float32]]


def before_and_after(case: Case, config: PreprocessConfig) -> tuple[Pictures, Pictures, list[str]]:
    """An axial slice of each modality before and after preprocessing, and their titles.

    The slice is the one with the most tumour or, without tumour, the middle one of the brain. Pictures are
    (Y, X), with the front at the top and the patient's right on the left, as for
    `reports.case_figures.preparation_figure`.

    Raises:
        CaseError, UsageError: as `preprocess`.
    """
    (stack,) = preprocess(case, config.replace(planes=("axial",)), whole=True)
    if stack.mask is not None and stack.mask.any():
        number = int(np.count_nonzero(stack.mask, axis=(1, 2)).argmax())
    else:
        number = len(stack.images) // 2
    height = case.images.shape[3]
    # The slice of the file at the centre of that slice, which may be resampled.
    place = min(int((number + stack.origin[0] + 0.5) * height / stack.shape[2]), height - 1)
    channels = [case.modalities.index(modality) for modality in config.modalities]
    before = _crop_to_brain(
        case.images[channels, :, :, place].swapaxes(1, 2), brain_mask(case.images)[..., place].T
    )
    images = stack.images[number, : len(channels)]
    after = _crop_to_brain(images, (images != 0).any(axis=0))
    return before, after, [f"{modality}, {case.case_id}, axial {place}" for modality in config.modalities]


def _crop_to_brain(images: NDArray[Any], brain: NDArray[np.bool_]) -> Pictures:
    """Crop (M, Y, X) to the brain, so that pictures with different voxels have the same size."""
    rows, columns = (np.flatnonzero(brain.any(axis=axis)) for axis in (1, 0))
    box = images[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return [np.asarray(image, np.float32)[::-1, ::-1] for image in box]
