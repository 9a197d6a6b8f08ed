"""What images look like whatever their scale: the same for the same scan, and another where a file is not what it says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from glioray.cases.fingerprint import (
    MIN_CASES,
    Fingerprint,
    describe_differences,
    find_ranges,
    join_ranges,
    measure_fingerprint,
)
from glioray.cases.layouts import discover_cases
from glioray.cases.load import brain_mask, load_case
from glioray.cases.phantom import make_phantom
from glioray.config import MODALITIES
from glioray.storage import open_storage

pytestmark = pytest.mark.contracts

SPACING_MM = (2.0, 2.0, 2.0)
PAIRS = list(itertools.combinations(range(4), 2))

Images = NDArray[np.float32]


@dataclass(frozen=True)
class _Scan:
    """A case of four images, or every third line along X of them."""

    images: Images
    spacing_mm: tuple[float, float, float]

    def measure(self, images: NDArray[np.generic] | None = None) -> Fingerprint:
        return measure_fingerprint(self.images if images is None else images, MODALITIES, self.spacing_mm)

    def permute(self, one: int, other: int) -> Fingerprint:
        order = list(range(4))
        order[one], order[other] = other, one
        return self.measure(self.images[order])

    def send_twice(self, one: int, other: int) -> Fingerprint:
        order = list(range(4))
        order[other] = one
        return self.measure(self.images[order])

    def replace(self, channel: int, change: Callable[[Images], NDArray[np.generic]]) -> Fingerprint:
        """With one image changed inside the brain."""
        brain = brain_mask(self.images)
        images = self.images.copy()
        images[channel] = 0
        images[channel][brain] = change(self.images[channel])[brain]
        return self.measure(images)


def _inverted(image: Images) -> Images:
    return np.asarray(image.max() + 1 - image)


def _noisy(image: Images) -> Images:
    return np.asarray(
        np.abs(image + np.random.default_rng(0).normal(0, image[image > 0].std(), image.shape)), np.float32
    )


def _ct(image: Images) -> Images:
    """Soft tissue in a narrow range, in noise as large."""
    inside = image[image > 0]
    scores = np.clip((image - np.median(inside)) / inside.std(), -2, 2)
    return np.asarray(35 + 2.5 * scores + np.random.default_rng(1).normal(0, 4, image.shape), np.float32)


def _shaded(image: Images) -> Images:
    return np.asarray(image * 3 ** np.linspace(-1, 1, image.shape[1])[None, :, None], np.float32)


def _flat(image: Images) -> Images:
    return np.full_like(image, 100)


@pytest.fixture(scope="module")
def phantoms() -> list[_Scan]:
    heads = [make_phantom(index, shape=(80, 80, 64), spacing_mm=2.0) for index in range(10)]
    return [_Scan(np.asarray(head.images, np.float32), SPACING_MM) for head in heads]


def _flags(found: Fingerprint, training: Sequence[_Scan]) -> list[str]:
    return describe_differences(found, find_ranges([scan.measure() for scan in training]), MODALITIES)


def test_neither_scale_nor_offset_count(phantoms: list[_Scan]) -> None:
    scan = phantoms[0]
    scaled = [3.7 * image + 40 for image in scan.images]
    brain = brain_mask(scan.images)
    assert scan.measure(np.where(brain, scaled, 0)) == pytest.approx(scan.measure(), rel=1e-3)


def test_few_cases_keep_no_ranges(phantoms: list[_Scan]) -> None:
    prints = [scan.measure() for scan in phantoms]
    assert find_ranges(prints[: MIN_CASES - 1]) == {}
    assert describe_differences(prints[8], {}, MODALITIES) == []
    ranges = find_ranges(prints[:MIN_CASES])
    assert ranges["brain_ml"] == tuple(sorted(p["brain_ml"] for p in prints[:MIN_CASES]))[:: MIN_CASES - 1]
    # An ensemble has seen what its members have seen.
    joined = join_ranges([ranges, find_ranges(prints[2:])])
    assert joined == find_ranges(prints)
    assert join_ranges([ranges, {}]) == {}


def test_a_case_without_a_brain_has_no_fingerprint() -> None:
    images = np.zeros((4, 20, 20, 20), np.int16)
    assert measure_fingerprint(images, MODALITIES, SPACING_MM) == {}
    images[:, 10, 10, 10:12] = 5
    found = measure_fingerprint(images, MODALITIES, SPACING_MM)
    assert describe_differences(found, {"median:t1": (0.4, 0.6), "brain_ml": (900, 1500)}, MODALITIES) == []


def test_faults_of_a_phantom_are_named(phantoms: list[_Scan]) -> None:
    scan, training = phantoms[0], phantoms[1:]
    assert _flags(scan.measure(), training) == []
    (twice, *_) = _flags(scan.send_twice(0, 2), training)
    assert twice == (
        "T1 is brighter where T2 is brighter (correlation 1.00), the training cases have "
        f"{_range(training, 'corr:t1,t2')}: was one sent twice?"
    )
    assert _flags(scan.replace(3, _flat), training)[0] == "FLAIR has one value all over the brain"
    assert any(
        "T1 is noisier than in the training cases" in flag
        for flag in _flags(scan.replace(0, _noisy), training)
    )
    swapped = _flags(scan.permute(0, 2), training)
    assert (
        swapped[0] == "T1 looks like the T2 of the training cases and T2 like their T1: are the two swapped?"
    )
    assert len(swapped) <= 3
    found = scan.measure() | {"brain_ml": 3500.0}
    assert _flags(found, training)[0].startswith("3500 ml are not background; the training cases have")


def _range(training: Sequence[_Scan], name: str) -> str:
    low, high = find_ranges([scan.measure() for scan in training])[name]
    return f"{low:.2f} to {high:.2f}"


def test_grain_is_not_compared_between_voxel_sizes(phantoms: list[_Scan]) -> None:
    ranges = find_ranges([scan.measure() for scan in phantoms[1:]])
    noisy = phantoms[0].replace(0, _noisy)
    kept = describe_differences(noisy, ranges, MODALITIES, with_grain=False)
    assert not [flag for flag in kept if "noisier" in flag]


def test_modalities_that_a_model_does_not_take_are_left_out(phantoms: list[_Scan]) -> None:
    ranges = find_ranges([scan.measure() for scan in phantoms[1:]])
    found = measure_fingerprint(phantoms[0].images[:2], ("t1", "t1c"), SPACING_MM)
    assert describe_differences(found, ranges, ("t1", "t1c")) == []


@pytest.fixture(scope="module")
def scans(real_data: Path) -> list[_Scan]:
    """Ten real cases, each as every third line along X."""
    storage = open_storage(real_data / "brats2021")
    cases = [load_case(storage, files) for files in discover_cases(storage)[0]]
    return [_Scan(np.asarray(case.images[:, :, 1::3, 1::3], np.float32), (1.0, 3.0, 3.0)) for case in cases]


@pytest.mark.real
def test_faults_of_real_cases_are_flagged_and_the_cases_are_not(scans: list[_Scan]) -> None:
    """Leave one out; the table in infra/docs/guides/serve.md has the counts."""
    prints = [scan.measure() for scan in scans]
    counts: dict[str, int] = {}

    def count(kind: str, found: Fingerprint, ranges: dict[str, tuple[float, float]]) -> None:
        counts[kind] = counts.get(kind, 0) + bool(describe_differences(found, ranges, MODALITIES))

    for number, scan in enumerate(scans):
        ranges = find_ranges([p for other, p in enumerate(prints) if other != number])
        count("as it is", prints[number], ranges)
        for one, other in PAIRS:
            alike = {MODALITIES[one], MODALITIES[other]} == {"t1", "t1c"}
            count("T1 and T1c swapped" if alike else "two others swapped", scan.permute(one, other), ranges)
            count("one sent twice", scan.send_twice(one, other), ranges)
        for channel in range(4):
            for kind, change in FAULTS.items():
                count(kind, scan.replace(channel, change), ranges)
    assert counts["as it is"] == 0
    for kind, least in LEAST.items():
        assert counts[kind] >= least, counts


FAULTS = {"inverted": _inverted, "flat": _flat, "CT-like": _ct, "noisy": _noisy, "shaded": _shaded}
# T1 and T1c look alike where little enhances, and a tumour shades a brain too.
LEAST = {
    "two others swapped": 50,
    "one sent twice": 60,
    "flat": 40,
    "CT-like": 40,
    "noisy": 40,
    "inverted": 30,
    "shaded": 15,
}
