"""Phantoms in the layouts of two collections of lower-grade gliomas."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from glioray.cases.nifti import encode_volume
from glioray.cases.phantom import make_phantom
from glioray.cases.tif_slices import CHANNELS
from glioray.config import MODALITIES
from glioray.storage import Storage


def write_tif_phantoms(
    storage: Storage, *, num_cases: int = 3, seed: int = 0, shape: tuple[int, int, int] = (64, 64, 24)
) -> list[str]:
    """Write phantoms as tif slices and return the case ids.

    Files are `TCGA_XX_9000_20000101/TCGA_XX_9000_20000101_{1,1_mask,2,2_mask,...}.tif` and so on.
    """
    case_ids = [f"TCGA_XX_{9000 + index}_20000101" for index in range(num_cases)]
    for index, case_id in enumerate(case_ids):
        phantom = make_phantom(index, seed=seed, shape=shape)
        images = phantom.images[[MODALITIES.index(name) for name in CHANNELS]].astype(np.float32)
        peaks = np.percentile(images, 99.9, axis=(1, 2, 3), keepdims=True)
        bytes_ = (images / peaks * 255).clip(0, 255).astype(np.uint8)
        # In the pictures the front is at the top and the patient's right is on the left.
        pictures = bytes_[:, ::-1, ::-1].transpose(3, 2, 1, 0)
        masks = np.where(phantom.mask > 0, np.uint8(255), np.uint8(0))[::-1, ::-1].transpose(2, 1, 0)
        for number, (picture, mask) in enumerate(zip(pictures, masks, strict=True), 1):
            storage.write(f"{case_id}/{case_id}_{number}.tif", _tif(picture))
            storage.write(f"{case_id}/{case_id}_{number}_mask.tif", _tif(mask))
    return case_ids


def write_1p19q_phantoms(
    storage: Storage, *, num_cases: int = 3, seed: int = 0, shape: tuple[int, int, int] = (64, 64, 24)
) -> list[str]:
    """Write phantoms in the layout of LGG-1p19qDeletion and return the case ids.

    Files are `LGG-900/LGG-900_{T1,T2}.nii.gz`, `LGG-900/LGG-900-Segmentation.nii.gz` and so on. The mask, 1
    for tumour, covers the axial slice with the most tumour and its two neighbours.
    """
    case_ids = [f"LGG-{900 + index}" for index in range(num_cases)]
    for index, case_id in enumerate(case_ids):
        phantom = make_phantom(index, seed=seed, shape=shape)
        edge = phantom.spacing_mm
        affine = np.diag([-edge, -edge, edge, 1.0])
        tumour = phantom.mask > 0
        largest = int(tumour.sum(axis=(0, 1)).argmax())
        mask = np.zeros(shape, np.uint8)
        segmented = np.s_[:, :, max(largest - 1, 0) : largest + 2]
        mask[segmented] = tumour[segmented]
        for name, modality in (("T1", "t1c"), ("T2", "t2")):
            image = phantom.images[MODALITIES.index(modality)]
            data = encode_volume(image[::-1, ::-1], affine)
            storage.write(f"{case_id}/{case_id}_{name}.nii.gz", data)
        data = encode_volume(mask[::-1, ::-1], affine)
        storage.write(f"{case_id}/{case_id}-Segmentation.nii.gz", data)
    return case_ids


def _tif(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "TIFF")
    return buffer.getvalue()
