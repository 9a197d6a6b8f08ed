"""The rival: what MONAI's users write between BraTS files and 2-D slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    SpatialPadd,
)

_SUFFIXES = ("t1", "t1ce", "t2", "flair")


class MonaiChain:
    """From a case's folder to its axial slices, cropped to the foreground and z-scored over non-zero voxels."""

    def __init__(self, size: tuple[int, int]) -> None:
        """Slices of `size`, (Y, X)."""
        both, window = ["image", "label"], (size[1], size[0], -1)
        self.transform = Compose(
            [
                LoadImaged(both),
                EnsureChannelFirstd(both),
                Orientationd(both, axcodes="RAS", labels=None),
                CropForegroundd(both, source_key="image", allow_smaller=False),
                NormalizeIntensityd("image", nonzero=True, channel_wise=True),
                SpatialPadd(both, spatial_size=window),
                CenterSpatialCropd(both, roi_size=window),
            ]
        )

    def volume(self, folder: Path) -> dict[str, Any]:
        """The case as MONAI leaves it: "image" (4, X, Y, Z) and "label" (1, X, Y, Z), with their affines."""
        files = [str(folder / f"{folder.name}_{suffix}.nii.gz") for suffix in _SUFFIXES]
        result: dict[str, Any] = self.transform(
            {"image": files, "label": str(folder / f"{folder.name}_seg.nii.gz")}
        )
        return result

    def slices(self, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """(Z, 4, X, Y) float32 images and (Z, 1, X, Y) masks, each slice one block of memory."""
        case = self.volume(folder)
        image, label = (_plain(case[name]).permute(3, 0, 1, 2).contiguous() for name in ("image", "label"))
        return image, label


def _plain(tensor: MetaTensor) -> torch.Tensor:
    return tensor.as_tensor()
