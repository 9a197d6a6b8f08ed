"""What preparing does to one case, for the eye."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glioray.cases.load import Case, brain_mask
from glioray.config import PreprocessConfig
from glioray.slices.preprocess import preprocess

Pictures = list[NDArray[np.float32]]


def before_and_after(case: Case, config: PreprocessConfig) -> tuple[Pictures, Pictures, list[str]]:
    """An axial slice of each modality as the file has it, the same place as a network sees it, and titles.

    The slice is the one with the most tumour, or the middle one through the brain; (Y, X) each, the front on
    top and the patient's right first. What `tracking.figures.preparation_figure` takes.

    Raises:
        CaseError, UsageError: as `preprocess`.
    """
    (stack,) = preprocess(case, config.replace(planes=("axial",)), whole=True)
    if stack.mask is not None and stack.mask.any():
        number = int(np.count_nonzero(stack.mask, axis=(1, 2)).argmax())
    else:
        number = len(stack.images) // 2
    height = case.images.shape[3]
    # The centre of that slice; resampled slices need not lie on those of the file.
    place = min(int((number + stack.origin[0] + 0.5) * height / stack.shape[2]), height - 1)
    channels = [case.modalities.index(modality) for modality in config.modalities]
    before = _shown(case.images[channels, :, :, place].swapaxes(1, 2), brain_mask(case.images)[..., place].T)
    images = stack.images[number, : len(channels)]
    after = _shown(images, (images != 0).any(axis=0))
    return before, after, [f"{modality}, {case.case_id}, axial {place}" for modality in config.modalities]


def _shown(images: NDArray[Any], brain: NDArray[np.bool_]) -> Pictures:
    """Cut to the brain, so that what is on other voxels is seen at the same size."""
    rows, columns = (np.flatnonzero(brain.any(axis=axis)) for axis in (1, 0))
    box = images[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return [np.asarray(image, np.float32)[::-1, ::-1] for image in box]
