"""What a super-resolution model makes of stacks and of cases: grids, units, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from glioray.cases.load import Case, brain_mask
from glioray.errors import CaseError, ModelError
from glioray.slices.preprocess import PLANE_AXES, preprocess
from glioray.slices.volumes import resample
from glioray.tasks.superres.degrade import degrade, upsample
from glioray.tasks.superres.model import SuperResolver, plane_of

Make = Callable[..., SuperResolver]


def _coarse(case: Case, plane: str, factor: int) -> Case:
    """The case with its pixels joined, as a scanner of lower resolution sees it."""
    x, y, z = (
        n if axis == PLANE_AXES[plane][0] else n // factor for axis, n in enumerate(case.images.shape[1:])
    )
    step = np.array(case.images.shape[1:]) / (x, y, z)
    to_old = np.diag([*step, 1.0])
    to_old[:3, 3] = step / 2 - 0.5
    spacing = tuple(float(mm * s) for mm, s in zip(case.spacing_mm, step, strict=True))
    images = np.stack([resample(image, (x, y, z)) for image in case.images])
    # Where less than half is brain, it is none.
    inside = resample(brain_mask(case.images), (x, y, z)) >= 0.5
    return replace(
        case, images=images * inside, mask=None, affine=case.affine @ to_old, spacing_mm=spacing[:3]
    )  # type: ignore[arg-type]


def test_a_stack_is_degraded_as_in_training(make_resolver: Make, case: Case):
    resolver = make_resolver()
    (stack,) = preprocess(case, resolver.spec.config.preprocess)
    pair = resolver.stack(stack)
    hr = torch.from_numpy(stack.images.astype(np.float32))
    assert pair.lr.shape == (*hr.shape[:2], 12, 12)
    torch.testing.assert_close(pair.lr, degrade(hr, (12, 12), resolver.spec.config.degrade))
    torch.testing.assert_close(pair.bicubic, upsample(pair.lr, (48, 48)))
    torch.testing.assert_close(pair.sr, resolver.images(pair.lr, (48, 48)))
    assert pair.sr.dtype == torch.float32
    assert not torch.equal(pair.sr, pair.bicubic)


def test_a_stack_may_be_of_any_ratio_and_its_noise_is_the_same_each_time(make_resolver: Make, case: Case):
    resolver = make_resolver(**{"degrade.lr_size": 28, "degrade.hr_size": 48, "degrade.noise": 0.05})
    (stack,) = preprocess(case, resolver.spec.config.preprocess, whole=True)
    one, two = resolver.stack(stack), resolver.stack(stack)
    assert one.lr.shape[-2:] == (28, 28)
    assert torch.equal(one.lr, two.lr)
    assert torch.equal(one.sr, two.sr)
    quiet = make_resolver(**{"degrade.lr_size": 28, "degrade.hr_size": 48}).stack(stack)
    assert 0.04 < float((one.lr - quiet.lr).std()) < 0.06


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_super_resolved_case_fills_the_same_box(make_resolver: Make, case: Case, plane: str):
    coarse = _coarse(case, plane, 2)
    resolver = make_resolver(**{"degrade.lr_size": 24, "degrade.hr_size": 48})
    fine = resolver.super_resolve(coarse)
    assert plane_of(coarse) == plane
    assert fine.images.shape == case.images.shape
    assert fine.images.dtype == np.float32
    np.testing.assert_allclose(fine.affine, case.affine, atol=1e-9)
    np.testing.assert_allclose(fine.spacing_mm, case.spacing_mm)
    # The intensities are the case's own, and what is brain is where it was.
    for new, old in zip(fine.images, case.images, strict=True):
        assert np.corrcoef(new.ravel(), np.asarray(old, float).ravel())[0, 1] > 0.9
    assert np.mean(brain_mask(fine.images) == brain_mask(case.images)) > 0.97
    centres = [
        np.array([np.average(g, weights=c.images[0].astype(float)) for g in np.indices(c.images.shape[1:])])
        for c in (fine, coarse)
    ]
    world = [c.affine[:3, :3] @ at + c.affine[:3, 3] for c, at in zip((fine, coarse), centres, strict=True)]
    np.testing.assert_allclose(*world, atol=0.25)


def test_whole_numbers_stay_whole_and_the_size_may_be_any(make_resolver: Make, case: Case):
    coarse = _coarse(case, "axial", 2)
    coarse = replace(coarse, images=np.rint(coarse.images).astype(np.int16))
    fine = make_resolver().super_resolve(coarse, size=(41, 37))
    assert fine.images.shape == (4, 37, 41, coarse.images.shape[3])
    assert fine.images.dtype == np.int16
    assert fine.reference.shape == fine.images.shape[1:]
    np.testing.assert_allclose(np.linalg.norm(fine.affine[:3, :3], axis=0), fine.spacing_mm)
    np.testing.assert_allclose(fine.spacing_mm[0] * 37, coarse.spacing_mm[0] * coarse.images.shape[1])
    assert set(np.unique(fine.images[:, ~brain_mask(fine.images)])) <= {0}


def test_super_resolving_takes_the_units_that_preprocessing_makes(make_resolver: Make, case: Case):
    """Of a case whose every slice is one window, the images that the generator gets are those of training."""
    resolver = make_resolver(**{"preprocess.percentiles": [1.0, 99.0]})
    seen: list[torch.Tensor] = []
    plain = resolver.images

    def watched(lr: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        seen.append(lr)
        return plain(lr, *rest, **more)

    resolver.images = watched  # type: ignore[method-assign]
    resolver.super_resolve(case, plane="axial")
    (stack,) = preprocess(case, resolver.spec.config.preprocess, whole=True)
    volumes = stack.restore(np.moveaxis(stack.images, 1, 0)).astype(np.float32)
    wanted = volumes.transpose(3, 0, 2, 1)
    wanted = wanted[brain_mask(case.images).any((0, 1))]
    np.testing.assert_allclose(seen[0].numpy(), wanted, atol=1e-3)


def test_a_model_of_one_channel_takes_any_modality_and_one_of_several_its_own(
    make_resolver: Make, case: Case
):
    one = replace(case, images=case.images[2:3], modalities=case.modalities[2:3])
    all_fine, fine = (make_resolver().super_resolve(c, plane="axial") for c in (case, one))
    # The brain is where any modality has some: with fewer of them its edge may be another.
    assert np.mean(np.isclose(fine.images[0], all_fine.images[2], rtol=1e-2, atol=2)) > 0.95
    with pytest.raises(CaseError, match="no t1; expected t1, t1c, t2, flair"):
        make_resolver(channels="joint").super_resolve(one)


def test_what_fits_what_warns_and_what_is_refused(make_resolver: Make, case: Case):
    resolver = make_resolver()

    def of(mm: float) -> Case:
        return replace(case, spacing_mm=(mm, mm, 1.0))

    own = case.spacing_mm[0]
    assert resolver.check_fit(of(4 * own)) is None
    assert resolver.check_fit(of(6 * own)) is None
    assert "but the model was trained to make" in (resolver.check_fit(of(9 * own)) or "")
    assert "but the model was trained to make" in (resolver.check_fit(of(2.2 * own)) or "")
    with pytest.raises(ModelError, match=r"axial pixels of 1\.00 x 1\.00 mm.*high resolution already; send"):
        resolver.check_fit(of(1.0))
    assert "already" in (resolver.check_fit(of(1.0), force=True) or "")
    whole = make_resolver(**{"degrade.cut": "whole", "preprocess.size": [96, 96]})
    assert whole.check_fit(of(8 * own)) is None


def test_the_plane_of_thick_slices_and_of_a_single_one(case: Case):
    def of(*mm: float) -> Case:
        return replace(case, spacing_mm=mm)  # type: ignore[arg-type]

    assert plane_of(of(1.0, 1.0, 1.0)) == "axial"
    assert plane_of(of(0.9, 0.9, 5.0)) == "axial"
    assert plane_of(of(0.9, 5.0, 0.9)) == "coronal"
    assert plane_of(of(4.0, 4.0, 1.0)) == "axial"
    assert plane_of(replace(of(3.0, 1.0, 1.0), images=case.images[:, :, :1])) == "coronal"


def test_equalised_contrast_cannot_be_undone(make_resolver: Make, case: Case):
    with pytest.raises(ModelError, match=r"preprocess\.clahe"):
        make_resolver(**{"preprocess.clahe": 0.02}).super_resolve(case)


def test_images_are_made_few_at_a_time_where_they_are_large(make_resolver: Make):
    resolver = make_resolver()
    sizes: list[tuple[int, ...]] = []
    resolver.generator().register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    lr = torch.rand(5, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    together = resolver.images(lr, (96, 96))
    assert [shape[0] for shape in sizes] == [5]
    large = resolver.images(lr, (600, 600))
    assert [shape[0] for shape in sizes[1:]] == [2, 2, 1]
    torch.testing.assert_close(large[3:4], resolver.images(lr[3:4], (600, 600)))
    torch.testing.assert_close(together[3:4], resolver.images(lr[3:4], (96, 96)))
