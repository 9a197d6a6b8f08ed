"""Synthetic brains in the layout of BraTS 2021, for demonstrations and tests.

A phantom has four contrasts, cortex, ventricles, deep nuclei, vessels, white-matter spots, and nested
tumours of various sizes. It shares the difficulties of real cases: vessels and choroid plexus enhance
like ET, spots in FLAIR look like oedema, oedema may be faint, and every file has its own bias field,
Rician noise and intensity scale. A good score on phantoms shows that the software works, not that the
model is of medical use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from glioray.cases.conventions import CONVENTIONS
from glioray.cases.labels import from_internal
from glioray.cases.nifti import encode_volume
from glioray.config import MODALITIES
from glioray.errors import UsageError
from glioray.storage import Storage

_FILE_NAMES = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair"}

# Brightness in T1, T1c, T2 and FLAIR, relative to normal white matter in T1 near 0.85.
_TISSUES = {
    "csf": (0.25, 0.27, 1.40, 0.20),
    "grey": (0.60, 0.66, 0.80, 0.78),
    "white": (0.85, 0.88, 0.58, 0.62),
    "vessel": (0.55, 1.45, 0.45, 0.55),
    "spot": (0.72, 0.75, 0.95, 1.10),
    "ncr": (0.38, 0.42, 1.20, 0.75),
    "ed": (0.60, 0.63, 1.08, 1.18),
    "et": (0.58, 1.38, 0.98, 1.02),
}


@dataclass(frozen=True, kw_only=True)
class _Tumour:
    """Ranges for the random shape of a tumour.

    Attributes:
        radius_mm: of the whole tumour.
        core: radius of the core as a fraction of the whole tumour's radius.
        rim: thickness of the enhancing rim as a fraction of the core's radius; 0 for no ET.
    """

    radius_mm: tuple[float, float]
    core: tuple[float, float]
    rim: tuple[float, float]


_KINDS = (
    _Tumour(radius_mm=(18, 26), core=(0.5, 0.7), rim=(0.25, 0.5)),
    _Tumour(radius_mm=(9, 13), core=(0.5, 0.7), rim=(0.4, 0.8)),
    _Tumour(radius_mm=(22, 30), core=(0.6, 0.8), rim=(0, 0)),
    _Tumour(radius_mm=(26, 33), core=(0.4, 0.6), rim=(0.2, 0.35)),
    _Tumour(radius_mm=(20, 26), core=(0.3, 0.5), rim=(0.03, 0.08)),
    _Tumour(radius_mm=(15, 24), core=(0.75, 0.95), rim=(0.5, 1.0)),
)
"""Typical, small, without ET, large, with hardly any ET, with little oedema; cases take them in turn."""


@dataclass(frozen=True)
class Phantom:
    """A synthetic case.

    Attributes:
        images: (4, X, Y, Z) int16 in RAS+, in the order of `config.MODALITIES`; 0 outside the brain.
        mask: (X, Y, Z) uint8 internal labels.
        spacing_mm: edge of the cubic voxels.
    """

    images: np.ndarray
    mask: np.ndarray
    spacing_mm: float


def write_phantoms(
    storage: Storage,
    *,
    num_cases: int = 6,
    seed: int = 0,
    shape: tuple[int, int, int] = (96, 96, 64),
    spacing_mm: float | None = None,
) -> list[str]:
    """Write synthetic cases in the layout of BraTS 2021 and return their ids.

    Files are `BraTS2021_90000/BraTS2021_90000_{t1,t1ce,t2,flair,seg}.nii.gz` and so on.

    Args:
        storage: receives the files.
        num_cases: at most 10000.
        seed: the same seed and shape give the same bytes.
        shape: (X, Y, Z) of each volume.
        spacing_mm: edge of the cubic voxels; by default a head just fits (2 mm for the default shape).

    Raises:
        UsageError: fewer than 16 voxels along an axis, or too many cases.
    """
    if not 0 <= num_cases <= 10000:
        raise UsageError(f"num_cases is {num_cases}; expected 0 to 10000")
    case_ids = [f"BraTS2021_{90000 + index}" for index in range(num_cases)]
    for index, case_id in enumerate(case_ids):
        phantom = make_phantom(index, seed=seed, shape=shape, spacing_mm=spacing_mm)
        edge = phantom.spacing_mm
        # BraTS stores x towards the left and y towards the back.
        affine = np.diag([-edge, -edge, edge, 1.0])
        affine[1, 3] = (shape[1] - 1) * edge
        for modality, image in zip(MODALITIES, phantom.images, strict=True):
            data = encode_volume(image[::-1, ::-1], affine)
            storage.write(f"{case_id}/{case_id}_{_FILE_NAMES[modality]}.nii.gz", data)
        mask = from_internal(phantom.mask, CONVENTIONS["brats-et4"])
        storage.write(f"{case_id}/{case_id}_seg.nii.gz", encode_volume(mask[::-1, ::-1], affine))
    return case_ids


def make_phantom(
    index: int,
    *,
    seed: int = 0,
    shape: tuple[int, int, int] = (96, 96, 64),
    spacing_mm: float | None = None,
) -> Phantom:
    """The phantom with that index; see `write_phantoms`."""
    if min(shape) < 16:
        raise UsageError(f"shape is {shape}; expected at least 16 voxels along each axis of a phantom")
    edge = spacing_mm or max(192 / shape[0], 192 / shape[1], 128 / shape[2])
    scene = _Scene(np.random.default_rng([seed, index]), shape, edge)
    mask = scene.tumour(_KINDS[index % len(_KINDS)])
    if scene.rng.random() < 0.25:
        second = scene.tumour(_KINDS[1])
        mask = np.where(mask > 0, mask, second)
    return Phantom(images=scene.images(mask), mask=mask, spacing_mm=edge)


class _Scene:
    """One head: its coordinates in mm from its centre, its tissues, and its random generator."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int, int], edge_mm: float) -> None:
        self.rng, self.shape, self.edge_mm = rng, shape, edge_mm
        axes = [((np.arange(n) - (n - 1) / 2) * edge_mm).astype(np.float32) for n in shape]
        self.x, self.y, self.z = np.meshgrid(*axes, indexing="ij", sparse=True)
        # As large as the volume allows, but no larger than a human head.
        fit = min(1.0, *(n * edge_mm / mm for n, mm in zip(shape, (150, 184, 124), strict=True)))
        radii = np.array([66, 82, 57]) * fit * rng.uniform(0.93, 1.05, 3)
        self.size_mm = fit
        rho = np.sqrt((self.x / radii[0]) ** 2 + (self.y / radii[1]) ** 2 + (self.z / radii[2]) ** 2)
        self.depth = (1 - rho + 0.03 * self.noise(14 * fit)) * np.float32(radii.min())
        self.brain = self.depth > 0
        self.csf, self.grey, self.vessels, self.spots = self._tissues()

    def noise(self, smooth_mm: float, *, mirrored: bool = True) -> np.ndarray:
        """Smooth noise of mean 0 and deviation 1; `mirrored` makes left and right similar."""
        sigma = smooth_mm / self.edge_mm
        # Very smooth noise is drawn on a coarse grid, which is much faster and looks the same.
        step = max(1, int(sigma / 2))
        coarse = [n // step + 2 for n in self.shape]
        field = gaussian_filter(self.rng.standard_normal(coarse, dtype=np.float32), sigma / step, truncate=3)
        if step > 1:
            factors = [n / m for n, m in zip(self.shape, coarse, strict=True)]
            field = zoom(field, factors, order=1)
        field = field[tuple(slice(n) for n in self.shape)]
        if mirrored:
            field = 0.75 * (field + field[::-1]) + 0.6 * field
        return (field - field.mean()) / (field.std() + 1e-12)

    def ellipsoid(self, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        """A field that is 1 on the surface of an ellipsoid and less inside; arguments in mm."""
        s = self.size_mm
        parts = zip((self.x, self.y, self.z), centre, radii, strict=True)
        return np.sqrt(sum(((axis - c * s) / (r * s)) ** 2 for axis, c, r in parts))

    def soft(self, field: np.ndarray, width: float) -> np.ndarray:
        """A soft threshold in [0, 1]: 1 where the field is well above 0."""
        return np.clip(field / width + 0.5, 0, 1)

    def _tissues(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        rng, s = self.rng, self.size_mm
        folds = self.noise(3.5 * s)
        grey = self.soft((5 + 4 * folds) * s - self.depth, 3 * s)
        deep = [self.ellipsoid((side * 17, 4, 0), (8, 14, 9)) for side in (-1, 1)]
        grey = np.maximum(grey, self.soft(1 - np.minimum(*deep) + 0.1 * folds, 0.3))
        sulci = self.soft(0.25 - np.abs(self.noise(4 * s)), 0.2) * self.soft(11 * s - self.depth, 6 * s)
        fissure = self.soft(1.5 * s - np.abs(self.x), 2 * s) * self.soft(22 * s - self.depth, 8 * s)
        width = rng.uniform(0.6, 1.5)
        horns = [self.ellipsoid((side * (6 + 4 * width), -4, 8), (6 * width, 28, 13)) for side in (-1, 1)]
        ventricles = np.minimum(*horns) - 0.12 * self.noise(8 * s)
        csf = np.maximum.reduce([sulci * 0.9, fissure, self.soft(1 - ventricles, 0.25)])
        # Two smooth fields cross 0 together along thin winding lines.
        lines = np.hypot(self.noise(7 * s), self.noise(7 * s))
        vessels = self.soft(0.16 - lines, 0.1)
        sinus = np.hypot(self.x, self.depth - 2 * s) - 3.5 * s
        vessels = np.maximum(vessels, self.soft(-sinus, 2 * s) * ((self.y < 0) | (self.z > 0)))
        plexus = self.soft(0.55 - ventricles, 0.2) * self.soft(self.noise(3 * s) - 0.6, 0.4)
        vessels = np.maximum(vessels, plexus)
        caps = self.soft(1.35 - ventricles, 0.2) * self.soft(self.noise(5 * s) - 0.4, 0.5)
        spots = self.soft(self.noise(2.5 * s) - rng.uniform(2.6, 3.6), 0.4) * self.soft(
            self.depth - 12 * s, 4 * s
        )
        return csf, grey, vessels, np.maximum(caps, spots) * rng.uniform(0.3, 1.0)

    def tumour(self, kind: _Tumour) -> np.ndarray:
        """(X, Y, Z) uint8 internal labels of one tumour at a random place in the white matter."""
        rng, s = self.rng, self.size_mm
        room = np.flatnonzero((self.depth > 14 * s) & (self.csf < 0.1) & (self.grey < 0.5))
        place = np.unravel_index(rng.choice(room), self.shape)
        centre = np.array([(i - (n - 1) / 2) * self.edge_mm for i, n in zip(place, self.shape, strict=True)])
        radius = rng.uniform(*kind.radius_mm) * s
        whole = 1 - self._blob(centre, radius)
        # Oedema follows the white matter and stops at grey matter and fluid.
        oedema = whole - 0.35 * self.grey - 2 * self.csf
        core_radius = radius * rng.uniform(*kind.core)
        core_centre = centre + rng.uniform(-0.5, 0.5, 3) * (radius - core_radius)
        core = (1 - self._blob(core_centre, core_radius)) - 0.5 * self.csf
        rim = rng.uniform(*kind.rim)
        # The rim has an uneven thickness and gaps.
        inner = core - rim * (1 + 0.6 * self.noise(core_radius / 2, mirrored=False))
        mask = np.zeros(self.shape, dtype=np.uint8)
        mask[(oedema > 0) & self.brain] = 2
        in_core = (core > 0) & self.brain
        mask[in_core] = 1
        if rim > 0:
            mask[in_core & (inner <= 0)] = 3
        return mask

    def _blob(self, centre: np.ndarray, radius: float) -> np.ndarray:
        stretch = self.rng.uniform(0.75, 1.3, 3)
        parts = zip((self.x, self.y, self.z), centre, stretch, strict=True)
        distance = np.sqrt(
            sum(((axis - np.float32(c)) / np.float32(radius * k)) ** 2 for axis, c, k in parts)
        )
        return distance + 0.2 * self.noise(max(radius / 3, self.edge_mm), mirrored=False)

    def images(self, mask: np.ndarray) -> np.ndarray:
        """(4, X, Y, Z) int16 images of the head with the tumours of `mask`."""
        rng = self.rng
        contrast = {"ncr": rng.uniform(0.6, 1.0), "ed": rng.uniform(0.35, 1.0), "et": rng.uniform(0.5, 1.0)}
        blur = 0.6 / max(self.edge_mm, 0.6)
        shares = {
            name: gaussian_filter((mask == label).astype(np.float32), blur) * contrast[name]
            for label, name in ((1, "ncr"), (2, "ed"), (3, "et"))
        }
        texture = {name: 0.12 * self.noise(3 * self.size_mm) for name in shares}
        channels = [self._image(channel, shares, texture) for channel in range(len(MODALITIES))]
        return np.stack(channels)

    def _image(
        self, channel: int, shares: dict[str, np.ndarray], texture: dict[str, np.ndarray]
    ) -> np.ndarray:
        rng = self.rng

        def of(tissue: str) -> float:
            return _TISSUES[tissue][channel] * rng.uniform(0.94, 1.06)

        image = of("white") * (1 + 0.03 * self.noise(6 * self.size_mm)) + self.grey * (
            of("grey") - of("white")
        )
        image += self.spots * (of("spot") - image)
        image += self.csf * (of("csf") - image)
        for name, share in shares.items():
            image += share * (of(name) * (1 + texture[name]) - image)
        image += self.vessels * (of("vessel") - image)
        image = gaussian_filter(image * self.brain, 0.5)
        image *= np.exp(rng.uniform(0.05, 0.2) * self.noise(45 * self.size_mm))
        sigma = rng.uniform(0.02, 0.06)
        real, imaginary = rng.standard_normal((2, *self.shape), dtype=np.float32) * np.float32(sigma)
        image = np.hypot(image + real, imaginary)
        # Scanners have no common unit: the brightest tissue may be a few hundred or many thousand.
        scale = np.exp(rng.uniform(np.log(200), np.log(8000)))
        return (np.clip(image * scale, 1, 32767) * self.brain).astype(np.int16)
