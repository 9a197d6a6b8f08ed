"""Metrics of a case with many lesions, against figures of the published packages on the same case."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from glioray.metrics import panoptic
from glioray.metrics.panoptic import brats2026_metrics, find_panoptica
from glioray.metrics.surface import element_hd95_mm

needs_panoptica = pytest.mark.skipif(
    importlib.util.find_spec("panoptica") is None, reason="needs infra/no-deps-panoptica.txt"
)

SHAPE = (76, 72, 40)
REGIONS = {"et": (3,), "rc": (4,), "tc": (1, 3), "wt": (1, 2, 3)}


def _ball(at: tuple[int, int, int], radius: int) -> NDArray[np.bool_]:
    x, y, z = np.ogrid[tuple(slice(-middle, size - middle) for middle, size in zip(at, SHAPE, strict=True))]
    return x * x + y * y + z * z <= radius * radius


def many_lesions() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(truth, prediction) in the labels of BraTS 2023: 18 lesions, some of which are missed, moved, shrunk, joined or
    split, and three false ones.
    """
    truth, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)

    def draw(mask: NDArray[np.uint8], at: tuple[int, int, int], radius: int) -> None:
        mask[_ball(at, radius + 1) & (mask == 0)] = 2
        mask[_ball(at, radius)] = 3
        if radius > 2:
            mask[_ball(at, radius - 2)] = 1

    for number in range(18):
        row, column = divmod(number, 6)
        x, y, z = 8 + 12 * column, 12 + 24 * row, 10 + 4 * (number % 5)
        radius = 1 + number % 4
        draw(truth, (x, y, z), radius)
        if number % 5 == 1:
            draw(prediction, (x + 1, y, z), radius)
        elif number % 5 == 2:
            draw(prediction, (x, y, z), max(radius - 1, 1))
        elif number % 5 == 3:
            draw(prediction, (x, y, z), radius)
        elif number % 5 == 4:
            draw(prediction, (x + 2, y - 1, z), radius)
    for at in ((20, 24, 5), (50, 48, 34), (70, 66, 4)):
        draw(prediction, at, 2)
    prediction[20:46, 36, 14] = 3  # joins what lies in its way
    prediction[:, :, 22] = 0  # splits or cuts
    return truth, prediction


# brats-evaluation 0.0.10 with panoptica 2.1.7 and numpy 2.2.6, `--config mets`, on NIfTI files of 1 mm voxels.
OFFICIAL = {
    "et": (0.5111796453353894, 0.4357320638432364, 13.92838827718412, 0.4985134900663466, 0.8394321703552963,
           1.9540317648564869, 13, 7, 5),
    "tc": (0.5608203677510608, 0.30735352900867974, 13.980332024072911, 0.5285213924472316, 0.8246216524304557,
           2.1974324076111666, 13, 7, 5),
    "wt": (0.5980288097043215, 0.3110544314215172, 13.92838827718412, 0.6198085480559202, 0.8173013943799956,
           1.8146282826075495, 14, 6, 4),
}  # fmt: skip
# Of lesions, on voxels of 0.5 x 1.2 x 2 mm: the package takes the edges of a file in reverse order, (2, 1.2, 0.5).
OFFICIAL_FLAT = {
    "et": (0.6764832063889151, 2.5427632343314418),
    "tc": (0.6185064501619384, 3.1120844170509296),
    "wt": (0.610915925068738, 2.117004285838397),
}
NAMES = ("dice", "nsd", "hd95_mm", "lesion_dice", "lesion_nsd", "lesion_hd95_mm", "found", "false", "missed")

# DeepMind's surface-distance 0.1, which the code of BraTS 2023 calls: robust Hausdorff distance at 95 %.
DEEPMIND = {
    (1.0, 1.0, 1.0): (13.92838827718412, 14.317821063276353, 14.317821063276353),
    (0.5, 1.2, 2.0): (15.977797094718658, 16.175289796476598, 15.184202316881846),
}


@needs_panoptica
@pytest.mark.contracts
def test_brats_2026_equals_its_official_package():
    truth, prediction = many_lesions()
    for region, figures in OFFICIAL.items():
        pair = (np.isin(mask, REGIONS[region]) for mask in (truth, prediction))
        expected = {f"brats2026_{name}": value for name, value in zip(NAMES, figures, strict=True)}
        assert brats2026_metrics(*pair, (1.0, 1.0, 1.0)) == pytest.approx(expected, abs=1e-5)
    for region, (nsd, hd95) in OFFICIAL_FLAT.items():
        pair = (np.isin(mask, REGIONS[region]) for mask in (truth, prediction))
        found = brats2026_metrics(*pair, (2.0, 1.2, 0.5))
        assert (found["brats2026_lesion_nsd"], found["brats2026_lesion_hd95_mm"]) == pytest.approx(
            (nsd, hd95), abs=1e-5
        )


@needs_panoptica
def test_brats_2026_of_empty_regions():
    empty, there, apart = np.zeros(SHAPE, bool), _ball((20, 20, 20), 4), _ball((50, 50, 20), 4)
    counts = [f"brats2026_{name}" for name in NAMES[6:]]
    assert brats2026_metrics(empty, empty, (1.0, 1.0, 1.0)) == dict.fromkeys(counts, 0)
    worst = dict(zip(NAMES[:6], (0, 0, 373) * 2, strict=True))
    for truth, prediction, numbers in (
        (there, empty, (0, 0, 1)),
        (empty, there, (0, 1, 0)),
        (there, apart, (0, 1, 1)),
    ):
        expected = {f"brats2026_{name}": value for name, value in worst.items()}
        expected |= dict(zip(counts, numbers, strict=True))
        assert brats2026_metrics(truth, prediction, (1.0, 1.0, 1.0)) == expected


@needs_panoptica
def test_distances_of_whole_regions_are_in_mm():
    truth, prediction = _ball((20, 20, 20), 6), _ball((22, 20, 20), 6)
    one, half = (brats2026_metrics(truth, prediction, (edge,) * 3) for edge in (1.0, 0.5))
    assert one["brats2026_hd95_mm"] == 2 * half["brats2026_hd95_mm"] > 1
    assert one["brats2026_lesion_hd95_mm"] == 2 * half["brats2026_lesion_hd95_mm"]
    assert one["brats2026_nsd"] == half["brats2026_nsd"]


@needs_panoptica
def test_panoptica_prints_nothing(capfd: pytest.CaptureFixture[str]):
    brats2026_metrics(_ball((20, 20, 20), 4), _ball((21, 20, 20), 4), (1.0, 1.0, 1.0))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["plotly", "cc3d", "panoptica"])
def test_a_package_that_panoptica_needs_is_missing(name: str, monkeypatch: pytest.MonkeyPatch):
    usual: Callable[..., Any] = importlib.import_module

    def without(wanted: str) -> Any:
        if wanted == name:
            raise ModuleNotFoundError(f"No module named '{name}'")
        return usual("math")

    monkeypatch.setattr(panoptic.importlib, "import_module", without)
    with pytest.raises(ImportError, match=name):
        find_panoptica()


def test_hd95_of_surface_elements_equals_deepminds():
    truth, prediction = many_lesions()
    for spacing, figures in DEEPMIND.items():
        for region, expected in zip(("et", "tc", "wt"), figures, strict=True):
            pair = [np.isin(mask, REGIONS[region]) for mask in (truth, prediction)]
            assert element_hd95_mm(*pair, spacing) == pytest.approx(expected, abs=1e-9)
            assert element_hd95_mm(*pair[::-1], spacing) == pytest.approx(expected, abs=1e-9)


def test_hd95_of_surface_elements_of_empty_regions():
    empty, there = np.zeros(SHAPE, bool), _ball((0, 70, 20), 4)
    assert element_hd95_mm(empty, empty, (1.0, 1.0, 1.0)) == 0
    assert element_hd95_mm(there, there, (1.0, 1.0, 1.0)) == 0
    for pair in ((there, empty), (empty, there)):
        assert element_hd95_mm(*pair, (1.0, 1.0, 1.0)) == 374
