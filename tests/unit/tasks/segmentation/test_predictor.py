"""Whole cases: equal to slices one by one, to their mirror images and to the mean of planes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from glioray.cases.load import Case
from glioray.config import PreprocessConfig
from glioray.errors import CaseError, ModelError
from glioray.slices.preprocess import SliceStack, preprocess
from glioray.slices.volumes import probs_on_grid
from glioray.tasks.segmentation.package import write_package
from glioray.tasks.segmentation.postprocess import decode_labels
from glioray.tasks.segmentation.predictor import Predictor, uncertainty

Predictors = Callable[..., Predictor]


def _manual(predictor: Predictor, case: Case, planes: tuple[str, ...] = ("axial",)) -> NDArray[np.float32]:
    """(C, X, Y, Z) probabilities, a slice at a time and put back voxel by voxel."""
    total = np.zeros((predictor.spec.out_channels, *case.images.shape[1:]), np.float32)
    axes = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 1, 2)}
    for plane in planes:
        (stack,) = preprocess(case, predictor.spec.config.preprocess.replace(planes=(plane,)), whole=True)
        for number, image in enumerate(stack.images):
            with torch.no_grad():
                logits = predictor.net(torch.as_tensor(image, dtype=torch.float32)[None])[0]
            if predictor.spec.config.loss.target == "classes":
                probs = logits.softmax(0).numpy()
            else:
                probs = logits.sigmoid().numpy()
            for row in range(probs.shape[1]):
                for column in range(probs.shape[2]):
                    at = [number + stack.origin[0], row + stack.origin[1], column + stack.origin[2]]
                    place = [0, 0, 0]
                    for axis, index in zip(axes[plane], at, strict=True):
                        place[axis] = index
                    if all(0 <= p < n for p, n in zip(place, case.images.shape[1:], strict=True)):
                        total[:, *place] += probs[:, row, column]
    return total / len(planes)


def _differing(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """The share of voxels that differ: rounding may tip one that sits on a threshold."""
    return float((first != second).mean())


@pytest.mark.parametrize("loss", ["region_dice_bce", "dice_ce"])
@pytest.mark.parametrize("planes", [("axial",), ("axial", "coronal", "sagittal")], ids="-".join)
@pytest.mark.contracts
def test_equals_slices_one_by_one(make_predictor: Predictors, case: Case, loss: str, planes: tuple[str, ...]):
    predictor = make_predictor(**{"loss.name": loss, "preprocess.planes": list(planes)})
    labels = predictor.predict(case)
    probs = _manual(predictor, case, planes)
    expected = decode_labels(probs, predictor.spec.config.loss.target, (0.5, 0.5, 0.5))
    assert labels.shape == case.images.shape[1:]
    assert labels.dtype == np.uint8
    assert len(np.unique(expected)) >= 3  # there is something to get wrong
    assert _differing(labels, expected) < 1e-4


@pytest.mark.parametrize("neighbours", [0, 1])
def test_batched_equals_one_by_one(make_predictor: Predictors, case: Case, neighbours: int):
    settings = {"preprocess.neighbours": neighbours, "postprocess.mirror": [True, True]}
    expected = make_predictor(batch_size=1, **settings).predict(case)
    for batch_size in (5, 1000):
        assert _differing(make_predictor(batch_size=batch_size, **settings).predict(case), expected) < 1e-4


def _mirrored(stack: SliceStack, axis: int) -> SliceStack:
    return replace(stack, images=np.ascontiguousarray(np.flip(stack.images, 2 + axis)), mask=None)


@pytest.mark.parametrize("mirror", [(True, False), (False, True), (True, True)], ids=str)
def test_the_mirrored_average_does_not_mind_mirroring(
    make_predictor: Predictors, case: Case, mirror: tuple[bool, bool]
):
    predictor = make_predictor(**{"postprocess.mirror": list(mirror)})
    plain = make_predictor()
    (stack,) = preprocess(case, predictor.spec.config.preprocess, whole=True)
    for axis in (0, 1):
        turned = _mirrored(stack, axis)
        invariant = np.flip(predictor._probs(turned), 2 + axis)
        if mirror[axis]:
            np.testing.assert_allclose(invariant, predictor._probs(stack), atol=1e-5)
        else:
            assert np.abs(invariant - predictor._probs(stack)).max() > 0.01
        assert np.abs(np.flip(plain._probs(turned), 2 + axis) - plain._probs(stack)).max() > 0.01


def test_left_and_right_are_not_mirrored_where_there_are_none(make_predictor: Predictors, case: Case):
    settings = {"preprocess.planes": ["sagittal"]}
    (stack,) = preprocess(case, PreprocessConfig(planes=("sagittal",), size=(48, 48)), whole=True)
    plain, mirrored = (
        make_predictor(**settings, **{"postprocess.mirror": [False, columns]})._probs(stack)
        for columns in (False, True)
    )
    assert np.array_equal(plain, mirrored)


def test_several_planes_are_the_mean_of_each(make_predictor: Predictors, case: Case):
    planes = ["axial", "coronal", "sagittal"]
    predictor = make_predictor(**{"preprocess.planes": planes})
    stacks = preprocess(case, predictor.spec.config.preprocess, whole=True)
    probs = np.mean([stack.restore(predictor._probs(stack)) for stack in stacks], axis=0)
    assert _differing(predictor.predict(case), decode_labels(probs, "regions", (0.5, 0.5, 0.5))) < 1e-4
    single = [make_predictor(**{"preprocess.planes": [plane]}).predict(case) for plane in planes]
    assert _differing(single[0], single[1]) > 0.01


def test_the_rules_of_the_model_are_followed(make_predictor: Predictors, case: Case):
    plain = make_predictor().predict(case)
    assert (plain == 3).any()
    without = make_predictor(**{"postprocess.min_et_ml": 1e6}).predict(case)
    assert not (without == 3).any()
    assert np.array_equal(without > 0, plain > 0)
    strict = make_predictor(**{"postprocess.thresholds": [0.999, 0.5, 0.5]}).predict(case)
    assert (strict > 0).sum() < (plain > 0).sum()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("ratio", [0.6, 1.7])
def test_voxels_of_another_size_are_refused(make_predictor: Predictors, case: Case, axis: int, ratio: float):
    spacing = list(case.spacing_mm)
    spacing[axis] *= ratio
    name, found, expected = "XYZ"[axis], spacing[axis], case.spacing_mm[axis]
    sentence = (
        rf"case {case.case_id} has voxels of {found:.2f} mm along {name} but the model was trained on "
        rf"{expected:.2f} mm; send resample=true \(--resample in a job\)"
    )
    with pytest.raises(ModelError, match=sentence):
        make_predictor().predict(replace(case, spacing_mm=(spacing[0], spacing[1], spacing[2])))


def test_voxels_of_nearly_the_same_size_are_taken(make_predictor: Predictors, case: Case):
    x, y, z = case.spacing_mm
    assert make_predictor().predict(replace(case, spacing_mm=(x * 1.5, y / 1.5, z))).any()


def test_a_brain_larger_than_the_windows_is_predicted_as_a_whole(make_predictor: Predictors, case: Case):
    case = replace(case, images=case.images.repeat(2, axis=1).repeat(2, axis=2))
    predictor = make_predictor(**{"preprocess.size": [32, 32]})
    (stack,) = preprocess(case, predictor.spec.config.preprocess, whole=True)
    assert min(stack.images.shape[2:]) > 32  # the brain does not fit the window of training
    labels = predictor.predict(case)
    assert _differing(labels, decode_labels(_manual(predictor, case), "regions", (0.5, 0.5, 0.5))) < 1e-4
    (cut,) = preprocess(case, predictor.spec.config.preprocess)
    window = cut.restore(np.ones(cut.images.shape[:1] + cut.images.shape[2:], bool))
    assert (labels[~window] > 0).any()


def test_a_case_without_a_brain(make_predictor: Predictors, case: Case):
    with pytest.raises(CaseError, match="every voxel is background"):
        make_predictor().predict(replace(case, images=np.zeros_like(case.images)))


def test_load_predicts_what_was_written(make_predictor: Predictors, case: Case, tmp_path: Path):
    predictor = make_predictor()
    write_package(tmp_path, predictor.spec, predictor.net.state_dict())
    loaded = Predictor.load(tmp_path, "cpu")
    assert loaded.spec == predictor.spec
    assert np.array_equal(loaded.predict(case), predictor.predict(case))


def test_a_case_is_left_as_it_is(make_predictor: Predictors, case: Case):
    before: Any = case.images.copy()
    make_predictor().predict(case)
    assert np.array_equal(case.images, before)


def test_probabilities_are_what_labels_come_from(make_predictor: Predictors, case: Case):
    predictor = make_predictor(
        **{"postprocess.min_component_ml": 1.0, "postprocess.thresholds": [0.4, 0.5, 0.6]}
    )
    probs = predictor.probs(case)
    assert (probs.dtype, probs.shape) == (np.float32, (3, *case.images.shape[1:]))
    assert probs.min() >= 0
    assert probs.max() <= 1
    voxel_ml = float(np.prod(case.spacing_mm)) / 1000
    assert np.array_equal(predictor.decode(probs, voxel_ml), predictor.predict(case))


def test_a_resampled_case_is_answered_on_its_own_grid(make_predictor: Predictors, case: Case):
    x, y, z = case.spacing_mm
    predictor = make_predictor(**{"preprocess.spacing_mm": [x, y, 1.5 * z]})
    (stack,) = stacks = preprocess(case, predictor.spec.config.preprocess, whole=True)
    assert stack.shape == (48, 48, 16)
    probs = predictor.probs(case)
    assert probs.shape == (3, 48, 48, 24)
    np.testing.assert_allclose(probs, probs_on_grid(predictor.probs_of_stacks(stacks), (48, 48, 24)))
    labels = predictor.predict(case)
    assert labels.shape == (48, 48, 24)
    assert predictor.predict_stacks(stacks).shape == (48, 48, 16)
    # Rules in millilitres are by the case's own voxels.
    plain = make_predictor(**{"preprocess.spacing_mm": [x, y, 1.5 * z], "postprocess.min_et_ml": 0.0})
    et_ml = float((plain.predict(case) == 3).sum() * x * y * z) / 1000
    assert et_ml > 0
    for factor, has_et in ((0.99, True), (1.01, False)):
        strict = make_predictor(
            **{"preprocess.spacing_mm": [x, y, 1.5 * z], "postprocess.min_et_ml": et_ml * factor}
        )
        assert (strict.predict(case) == 3).any() == has_et


def test_a_model_that_resamples_takes_voxels_of_any_size(make_predictor: Predictors, case: Case):
    x, y, z = case.spacing_mm
    thick = replace(case, spacing_mm=(x, y, 4 * z))
    with pytest.raises(ModelError, match="along Z"):
        make_predictor().predict(thick)
    assert make_predictor(**{"preprocess.spacing_mm": [x, y, 1.5 * z]}).predict(thick).shape == (48, 48, 24)


def _entropy(*probs: float) -> float:
    return -sum(p * math.log(p) for p in probs if p > 0)


def test_uncertainty_of_classes_is_their_entropy():
    columns = [
        (0.25, 0.25, 0.25, 0.25),
        (0.0, 1.0, 0.0, 0.0),
        (0.5, 0.25, 0.25, 0.0),
        (0.0, 0.0, 0.0, 0.0),  # seen by no plane
        (0.2, 0.3, 0.0, 0.0),  # by one of two
    ]
    probs = np.array(columns, np.float32).T.reshape(4, 5, 1, 1)
    found = uncertainty(probs, "classes")
    assert (found.dtype, found.shape) == (np.float32, (5, 1, 1))
    expected = [1.0, 0.0, 1.5 * math.log(2) / math.log(4), 0.0, _entropy(0.7, 0.3) / math.log(4)]
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-6)


def test_uncertainty_of_regions_is_the_mean_of_three_questions():
    columns = [(0.5, 0.5, 0.5), (1.0, 0.0, 1.0), (0.5, 0.0, 0.0), (0.9, 0.4, 0.1), (1.0000001, -1e-9, 0.0)]
    probs = np.array(columns, np.float32).T.reshape(3, 1, 5, 1)
    found = uncertainty(probs, "regions")
    assert (found.dtype, found.shape) == (np.float32, (1, 5, 1))
    mixed = (2 * _entropy(0.9, 0.1) + _entropy(0.4, 0.6)) / (3 * math.log(2))
    np.testing.assert_allclose(found.ravel(), [1.0, 0.0, 1 / 3, mixed, 0.0], atol=1e-6)
    assert found.min() >= 0


def test_uncertainty_is_that_of_what_the_model_knows():
    """Trained on whole tumours alone, it has learned that TC and ET are nowhere, and is sure of that."""
    probs = np.array([[0.5, 0.0, 0.0], [0.9, 0.1, 0.0]], np.float32).T.reshape(3, 2, 1, 1)
    expected = [1.0, _entropy(0.9, 0.1) / math.log(2)]
    np.testing.assert_allclose(uncertainty(probs, "regions", ("wt",)).ravel(), expected, atol=1e-6)
    classes = np.array([[0.5, 0.0, 0.5, 0.0], [0.1, 0.1, 0.7, 0.1]], np.float32).T.reshape(4, 2, 1, 1)
    np.testing.assert_allclose(uncertainty(classes, "classes", ("wt",)).ravel(), expected, atol=1e-6)


@pytest.mark.parametrize("loss", ["region_dice_bce", "dice_ce"])
def test_uncertainty_of_a_case(make_predictor: Predictors, case: Case, loss: str):
    predictor = make_predictor(**{"loss.name": loss, "preprocess.planes": ["axial", "coronal"]})
    found = uncertainty(predictor.probs(case), predictor.spec.config.loss.target)
    assert found.dtype == np.float32
    assert 0 <= found.min() < 0.01
    assert 0.5 < found.max() <= 1
