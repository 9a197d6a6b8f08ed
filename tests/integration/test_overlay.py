"""Masks overlay exactly: the same case stored in other axis orders and obliquely gets the same mask in its own grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from glioray.cases.layouts import discover_cases
from glioray.storage import open_storage
from glioray.tasks.segmentation.package import ModelSpec, write_package
from glioray.tasks.segmentation.prediction import predict_cases
from glioray.tasks.segmentation.recipes import build_recipe

ORDERS = ("LPS", "RAS", "PIR", "ASL")
MODALITIES = ("t1", "t1ce", "t2", "flair")


def write_untrained(folder: Path, image: Path) -> Path:
    """A network that has learned nothing: its answers are odd, and the same for the same voxels."""
    torch.manual_seed(0)
    x, y, z = (float(edge) for edge in nib.load(image).header.get_zooms())
    spec = ModelSpec(
        config=build_recipe("unet_tiny"), out_channels=3, spacing_mm=(x, y, z), manifest_hash="none"
    )
    write_package(folder, spec, spec.build().state_dict())
    return folder


def reordered(image: nib.Nifti1Image, order: str) -> nib.Nifti1Image:
    transform = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(order)
    )
    return image.as_reoriented(transform)


def turned(image: nib.Nifti1Image, degrees: float) -> nib.Nifti1Image:
    """The same voxels, lying obliquely in the scanner."""
    angle = math.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    affine = turn @ image.affine
    return nib.Nifti1Image(np.asarray(image.dataobj), affine, image.header)


def write_copies(
    source: Path, case_id: str, target: Path, orders: Sequence[str], num_slices: int | None
) -> None:
    for order in orders:
        for oblique in (False, True):
            name = f"{order}{'x' if oblique else ''}"
            folder = target / name
            folder.mkdir(parents=True)
            for modality in MODALITIES:
                image = nib.load(source / f"{case_id}_{modality}.nii.gz")
                if num_slices is not None:
                    start = (image.shape[2] - num_slices) // 2
                    image = image.slicer[:, :, start : start + num_slices]
                image = reordered(turned(image, 17.0) if oblique else image, order)
                image.set_sform(image.affine, 1)
                image.set_qform(image.affine, 1)
                nib.save(image, folder / f"{name}_{modality}.nii.gz")


def check(
    source: Path, tmp_path: Path, orders: Sequence[str] = ORDERS, num_slices: int | None = None
) -> None:
    """Predict all copies of a case, or of its middle slices, and compare their masks."""
    data, out = tmp_path / "data", tmp_path / "out"
    write_copies(source, source.name, data, orders, num_slices)
    package = write_untrained(tmp_path / "package", source / f"{source.name}_t1.nii.gz")
    cases, problems = discover_cases(open_storage(data))
    assert problems == []
    assert len(cases) == 2 * len(orders)
    masks, failed = predict_cases(package, str(data), cases, str(out))
    assert failed == {}
    answers = []
    for case_id, path in masks.items():
        mask, image = nib.load(path), nib.load(data / case_id / f"{case_id}_t1.nii.gz")
        assert mask.shape == image.shape
        assert np.array_equal(mask.affine, image.affine)
        if not case_id.endswith("x"):
            answers.append(np.asarray(reordered(mask, "RAS").dataobj))
        else:
            # Turned back, the oblique copy has the other's axes.
            straight = nib.Nifti1Image(np.asarray(mask.dataobj), turned(mask, -17.0).affine)
            answers.append(np.asarray(reordered(straight, "RAS").dataobj))
    assert answers[0].any(), "an empty mask would overlay anyhow"
    for answer in answers[1:]:
        assert np.array_equal(answer, answers[0])


@pytest.mark.usefixtures("ray_local")
def test_copies_of_a_phantom_get_the_same_mask(phantom_data: Path, tmp_path: Path):
    check(phantom_data / "BraTS2021_90001", tmp_path)


@pytest.mark.real
@pytest.mark.usefixtures("ray_local")
def test_copies_of_a_real_case_get_the_same_mask(real_data: Path, tmp_path: Path):
    check(real_data / "brats2021" / "BraTS2021_00006", tmp_path, ("LPS", "PIR"), num_slices=40)
