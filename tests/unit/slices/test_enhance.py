"""Skull stripping, N4 and CLAHE by the real packages, on heads with a known truth."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from glioray.cases.layouts import discover_cases
from glioray.cases.load import Case, brain_mask, load_case
from glioray.cases.nifti import read_volume, to_canonical
from glioray.cases.phantom import make_phantom
from glioray.config import PreprocessConfig
from glioray.errors import CaseError, UsageError
from glioray.slices.enhance import equalize, estimate_bias_field, extract_brain
from glioray.slices.preprocess import preprocess
from glioray.slices.volumes import prepare_volume
from glioray.storage import open_storage

MakeCase = Callable[..., Case]
SIZE = {"size": (32, 32)}


@pytest.fixture
def skull_head() -> Path:
    """The folder of ch2.nii.gz and ch2bet.nii.gz, from Debian's mricron-data."""
    value = os.environ.get("GLIORAY_SKULL_HEAD", "")
    if not value:
        pytest.skip(
            "needs a head with its skull: set GLIORAY_SKULL_HEAD to mricron-data's folder of templates"
        )
    return Path(value)


@pytest.fixture
def threads_of_itk() -> Iterator[Callable[[int], None]]:
    """Set ITK's number of threads for the whole process, for the duration of a test."""
    process = importlib.import_module("SimpleITK").ProcessObject
    before = process.GetGlobalDefaultNumberOfThreads()
    yield process.SetGlobalDefaultNumberOfThreads
    process.SetGlobalDefaultNumberOfThreads(before)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    volume = read_volume(path.read_bytes(), name=path.name)
    return to_canonical(volume.array, volume.affine)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def stub_deepbet(monkeypatch: pytest.MonkeyPatch, found: Callable[[np.ndarray], np.ndarray]) -> None:
    """A replacement for deepbet that returns a given brain."""
    model = SimpleNamespace(run_model=found, postprocess=lambda mask: mask)
    module = SimpleNamespace(BrainExtraction=lambda no_gpu: model)
    monkeypatch.setitem(sys.modules, "deepbet", module)


def test_a_head_loses_its_skull(skull_head: Path, make_case: MakeCase) -> None:
    head, affine = read(skull_head / "ch2.nii.gz")
    brain = read(skull_head / "ch2bet.nii.gz")[0] > 0
    images = np.stack([head.astype(np.int16), 2000 - head.astype(np.int16)])
    mask = np.zeros(head.shape, np.uint8)
    mask[90:100, 110:120, 90:100] = 1
    changes = {"affine": affine, "spacing_mm": (1.0, 1.0, 1.0), "modalities": ("t1", "t2")}
    case = replace(make_case(), images=images, mask=mask, **changes)
    stripped = prepare_volume(case, PreprocessConfig(modalities=("t2", "t1"), skull_strip=True))
    found = brain_mask(stripped.images)
    assert dice(found, brain) > 0.9
    assert stripped.mask is mask
    np.testing.assert_array_equal(stripped.images, np.where(found, images[::-1], 0))


@pytest.mark.contracts
def test_a_phantom_is_all_brain() -> None:
    phantom = make_phantom(1, shape=(48, 48, 32))
    brain = brain_mask(phantom.images)
    assert dice(extract_brain(phantom.images[0], (4.0, 4.0, 4.0), "P"), brain) > 0.95


def test_skull_stripping_uses_t1_and_leaves_the_mask(
    make_case: MakeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T1 if it is selected, since a served model receives only the selected modalities."""
    case = replace(make_case(dtype="float32", background=(5, 5, 5, 5)), spacing_mm=(5.0, 5.0, 5.0))
    case = replace(case, modalities=("flair", "t1", "t2", "t1c"))
    brain = brain_mask(case.images)
    seen = []

    def find(head: np.ndarray) -> np.ndarray:
        seen.append(head.copy())
        return brain.astype(np.float32)

    stub_deepbet(monkeypatch, find)
    found = prepare_volume(case, PreprocessConfig(modalities=("flair", "t1"), skull_strip=True))
    np.testing.assert_array_equal(seen[0], case.images[1])
    np.testing.assert_array_equal(found.images[0], np.where(brain, case.images[0], 0))
    assert found.mask is case.mask
    config = PreprocessConfig(modalities=("t2", "flair"), skull_strip=True)
    served = replace(case, modalities=("t2", "flair"), images=case.images[[2, 0]])
    for sent in (case, served):
        prepare_volume(sent, config)
        np.testing.assert_array_equal(seen[-1], case.images[2])


@pytest.mark.parametrize(("edge_mm", "volume"), [(1.0, "66"), (7.0, "22638")])
def test_an_implausible_brain_volume_is_rejected(
    monkeypatch: pytest.MonkeyPatch, edge_mm: float, volume: str
) -> None:
    stub_deepbet(monkeypatch, np.ones_like)
    with pytest.raises(
        CaseError, match=rf"A: skull stripping left {volume} ml; expected a brain of 600 to 2300"
    ):
        extract_brain(np.ones((44, 50, 30)), (edge_mm,) * 3, "A")


def test_a_head_without_a_brain_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(head: np.ndarray) -> np.ndarray:
        raise AssertionError("Not enough foreground")

    stub_deepbet(monkeypatch, give_up)
    with pytest.raises(CaseError, match="skull stripping left 0 ml"):
        extract_brain(np.ones((8, 8, 8)), (1.0, 1.0, 1.0), "A")


def shaded_head() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(image, brain, field): two tissues and a coil gain from 0.7 to 1.3."""
    shape = (24, 26, 20)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    brain = x**2 + y**2 + z**2 < 0.9
    rng = np.random.default_rng(0)
    tissue = np.where(gaussian_filter(rng.standard_normal(shape), 1.5) > 0, 1000, 600)
    field = 1 + 0.3 * (x + y + 0.5 * z) / 2.5
    return (tissue + rng.normal(0, 20, shape)) * field * brain, brain, field


def test_n4_recovers_a_known_field() -> None:
    image, brain, field = shaded_head()
    found = estimate_bias_field(image, brain, (8.0, 8.0, 8.0), "A")
    assert (found.shape, found.dtype) == (image.shape, np.float32)
    assert np.corrcoef(found[brain], field[brain])[0, 1] > 0.99
    assert found[brain].mean() == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(found, estimate_bias_field(image, brain, (8.0, 8.0, 8.0), "A"))


@pytest.mark.contracts
def test_n4_does_not_depend_on_the_number_of_threads(threads_of_itk: Callable[[int], None]) -> None:
    phantom = make_phantom(1, shape=(96, 96, 64))
    brain = brain_mask(phantom.images)
    found = []
    for count in (1, 4):
        threads_of_itk(count)
        found.append(estimate_bias_field(phantom.images[0], brain, (1.0, 1.0, 1.0), "A"))
    np.testing.assert_array_equal(*found)


def test_n4_corrects_every_modality_inside_the_brain(make_case: MakeCase) -> None:
    image, brain, _ = shaded_head()
    case = replace(
        make_case(),
        images=np.stack([image, 3 * image]),
        mask=None,
        spacing_mm=(8.0,) * 3,
        modalities=("t1", "t2"),
    )
    found = prepare_volume(case, PreprocessConfig(modalities=("t1", "t2"), n4=True))
    assert found.images.dtype == np.float32
    assert not found.images[:, ~brain].any()
    expected = image / estimate_bias_field(image, brain, (8.0,) * 3, "A")
    np.testing.assert_allclose(found.images[0][brain], expected[brain], rtol=1e-4)
    np.testing.assert_allclose(found.images[1], 3 * found.images[0], rtol=1e-2)


@pytest.mark.real
def test_a_field_added_to_a_real_case_is_recovered(real_data: Path) -> None:
    storage = open_storage(str(real_data))
    files = next(f for f in discover_cases(storage)[0] if f.layout == "brats2021")
    case = load_case(storage, files, with_mask=False)
    case = prepare_volume(case, PreprocessConfig(modalities=("t2",), spacing_mm=(8.0, 8.0, 8.0)))
    brain = brain_mask(case.images)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in brain.shape), indexing="ij")
    planted = 1 + 0.15 * (x - y * z + z)
    before, after = (
        estimate_bias_field(case.images[0] * factor, brain, case.spacing_mm, case.case_id)
        for factor in (1, planted)
    )
    assert np.corrcoef((after / before)[brain], planted[brain])[0, 1] > 0.97


def test_n4_rejects_normalised_intensities(make_case: MakeCase) -> None:
    case = make_case()
    case.images[2][brain_mask(case.images)] -= 5000
    with pytest.raises(
        CaseError, match=r"A: \d\d % of the brain in t2 is negative; .* set preprocess\.n4 to false"
    ):
        prepare_volume(case, PreprocessConfig(n4=True))
    flat = np.ones((20, 20, 1), np.float32)
    with pytest.raises(CaseError, match=r"N4 fits no field to a brain of \(20, 20, 1\) voxels"):
        estimate_bias_field(flat, flat > 0, (1.0, 1.0, 1.0), "A")


def test_clahe_equalises_contrast_inside_the_brain_only(make_case: MakeCase) -> None:
    image, brain, _ = shaded_head()
    values = np.asarray(image, np.float32)
    values[~brain] = -7
    even = equalize(values, brain, 0.02)
    assert (even.dtype, even.min(), even.max()) == (np.float32, 0, 1)
    assert not even[~brain].any()
    # Order is preserved locally, and more grey levels are used.
    core = (slice(10, 14), slice(11, 15), slice(8, 12))
    ranks = [np.argsort(np.argsort(v[core].ravel())) for v in (values, even)]
    assert np.corrcoef(*ranks)[0, 1] > 0.9
    scaled = (values[brain] - values[brain].min()) / np.ptp(values[brain])
    entropies = [
        -sum(p * np.log(p) for p in np.histogram(v, 64, (0, 1))[0] / v.size if p)
        for v in (scaled, even[brain])
    ]
    assert entropies[1] > entropies[0]
    np.testing.assert_array_equal(even, equalize(values, brain, 0.02))
    assert not equalize(np.full((4, 4, 4), 3, np.float32), np.ones((4, 4, 4), bool), 0.1).any()


def test_clahe_is_applied_before_z_scores(make_case: MakeCase) -> None:
    case = make_case(radii=(13, 17, 11))
    brain = brain_mask(case.images)
    plain, even = (preprocess(case, PreprocessConfig(**SIZE, clahe=c), whole=True)[0] for c in (0, 0.05))
    values = even.restore(even.images.swapaxes(0, 1)).astype(np.float64)
    assert not values[:, ~brain].any()
    np.testing.assert_allclose(values[:, brain].mean(axis=1), 0, atol=2e-3)
    np.testing.assert_allclose(values[:, brain].std(axis=1), 1, atol=2e-3)
    assert not np.array_equal(plain.images, even.images)
    raw = preprocess(case, PreprocessConfig(**SIZE, clahe=0.05, normalize="none"), whole=True)[0]
    assert 0 == raw.images.min() < raw.images.max() <= 1


@pytest.mark.parametrize(
    ("setting", "module"), [("skull_strip", "deepbet"), ("n4", "SimpleITK"), ("clahe", "skimage.exposure")]
)
def test_a_missing_package_is_named(
    make_case: MakeCase, monkeypatch: pytest.MonkeyPatch, setting: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    config = PreprocessConfig(**SIZE, **{setting: 0.1 if setting == "clahe" else True})
    package = module.partition(".")[0]
    with pytest.raises(
        UsageError, match=rf"preprocess\.{setting} needs {package}.* extra 'prepare' of pyproject"
    ):
        preprocess(replace(make_case(), images=np.abs(make_case().images)), config)
