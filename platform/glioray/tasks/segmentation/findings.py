"""The findings in a segmented case: volumes, diameters, lesions one by one, and how sure the model is of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist, squareform

from glioray.cases.fingerprint import Ranges, describe_differences, measure_fingerprint
from glioray.cases.labels import LABELS, REGION_LABELS
from glioray.cases.load import Case, brain_mask
from glioray.engine.serving import NOTICE
from glioray.slices.volumes import find_unlike_axis

Region = NDArray[np.bool_]

_MAX_LESIONS = 100
_LOW, _HIGH = 0.25, 0.75
_BRAIN_ML = (500, 2300)
_TUMOUR_SHARE = 0.4
_CONNECTED = np.ones((3, 3, 3), bool)


class Lesion(BaseModel):
    """A connected part of a region; voxels that touch at a corner belong together."""

    region: str
    volume_ml: float
    centroid_mm: tuple[float, float, float] = Field(description="in the scanner's coordinates, RAS+")
    diameter_mm: float = Field(description="largest distance between two of its voxels' centres, in 3-D")
    axial_diameters_mm: tuple[float, float] = Field(
        description="the longest diameter in one axial slice, and the longest that is perpendicular to it there"
    )
    axial_slice: int = Field(description="number of that slice along Z in RAS+ order, from 0")


class Certainty(BaseModel):
    """How sure the model is of a region."""

    volume_range_ml: tuple[float, float] = Field(
        description="of the voxels with a probability of at least .75, and of at least .25"
    )
    mean_probability: float | None = Field(
        description="of the voxels that were labelled, in [0, 1]; null where there are none"
    )


class Report(BaseModel):
    """A segmented case in numbers."""

    model: str = Field(description="the version that segmented, as models:/NAME/VERSION")
    superres: str | None = Field(
        None, description="the version that super-resolved the case before, as models:/NAME/VERSION"
    )
    volumes_ml: dict[str, float] = Field(
        description="by region: wt, tc, et (nested) and ncr, ed; rc (resection cavity) where the model labels it; wt "
        "alone where it was trained on masks of nothing else"
    )
    voxels: dict[str, int] = Field(description="voxel counts by region")
    spacing_mm: tuple[float, float, float] = Field(description="voxel edges along X, Y, Z in RAS+ order")
    lesions: list[Lesion] = Field(
        description=f"of the regions wt and et, the largest first; at most {_MAX_LESIONS} of each"
    )
    num_lesions: dict[str, int] = Field(description="how many there are, by region")
    certainty: dict[str, Certainty] = Field(description="by region")
    input_digests: dict[str, str] = Field(
        description="by modality, of the image's content: the same scan has the same one in any file"
    )
    flags: list[str] = Field(
        description="how the case differs from those of the training; empty where it does not"
    )
    notice: str = NOTICE


def measure_regions(
    mask: NDArray[np.uint8], regions: Sequence[str], num_labels: int, voxel_ml: float
) -> tuple[dict[str, float], dict[str, int]]:
    """Volumes in ml and voxels by region, of the regions that a model labels.

    Args:
        mask: (X, Y, Z) internal labels.
        regions: of `REGIONS` that the model was trained on; of others 0 ml would be no finding.
        num_labels: the classes of the model, background included; with the resection cavity as many as `LABELS`.
        voxel_ml: of a voxel.
    """
    labels = {name: REGION_LABELS[name] for name in REGION_LABELS if name in regions}
    if len(labels) == len(REGION_LABELS):
        labels |= {"ncr": (1,), "ed": (2,)}
    if num_labels == len(LABELS):
        labels["rc"] = (4,)
    counts = np.bincount(mask.ravel(order="K"), minlength=len(LABELS))
    voxels = {name: int(counts[list(numbers)].sum()) for name, numbers in labels.items()}
    return {name: round(count * voxel_ml, 4) for name, count in voxels.items()}, voxels


def find_lesions(
    mask: NDArray[np.uint8], region: str, affine: NDArray[np.float64]
) -> tuple[list[Lesion], int]:
    """The lesions of a region, the largest first and at most 100, and how many there are.

    Args:
        mask: (X, Y, Z) internal labels, RAS+.
        region: of `REGION_LABELS`.
        affine: (4, 4), voxels to mm.
    """
    inside = np.isin(mask, REGION_LABELS[region])
    parts, number = ndimage.label(inside, _CONNECTED)
    boxes = ndimage.find_objects(parts)
    sizes = np.bincount(parts.ravel(), minlength=number + 1)[1:]
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    lesions = []
    for index in np.argsort(-sizes, kind="stable")[:_MAX_LESIONS]:
        box = boxes[index]
        offset = np.array([along.start for along in box])
        lesions.append(_describe_lesion(parts[box] == index + 1, offset, region, affine, voxel_ml))
    return lesions, number


def _describe_lesion(
    part: Region, offset: NDArray[np.int64], region: str, affine: NDArray[np.float64], voxel_ml: float
) -> Lesion:
    places = np.argwhere(part) + offset
    points = places @ affine[:3, :3].T + affine[:3, 3]
    x, y, z = (float(mm) for mm in points.mean(axis=0))
    axial, where = max(
        ((_axial_diameters(points[places[:, 2] == plane]), int(plane)) for plane in np.unique(places[:, 2])),
        key=lambda found: found[0],
    )
    return Lesion(
        region=region,
        volume_ml=round(len(places) * voxel_ml, 4),
        centroid_mm=(round(x, 2), round(y, 2), round(z, 2)),
        diameter_mm=round(_diameter(points), 2),
        axial_diameters_mm=(round(axial[0], 2), round(axial[1], 2)),
        axial_slice=where,
    )


def _corners(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points among which the farthest two are; those of the convex hull where the points span one."""
    if len(points) <= points.shape[1] + 1:
        return points
    try:
        return points[ConvexHull(points).vertices]
    except QhullError:  # flat
        return points if len(points) < 2000 else points[np.unique(_extremes(points))]


def _extremes(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of the extreme points of a flat set, in many directions."""
    centred = points - points.mean(axis=0)
    axes = np.linalg.svd(centred[:: max(1, len(points) // 2000)], full_matrices=False)[2][:2]
    angles = np.linspace(0, np.pi, 180, endpoint=False)
    along = centred @ axes.T @ np.stack([np.cos(angles), np.sin(angles)])
    return np.concatenate([along.argmax(axis=0), along.argmin(axis=0)])


def _diameter(points: NDArray[np.float64]) -> float:
    corners = _corners(points)
    return float(pdist(corners).max(initial=0.0))


def _axial_diameters(points: NDArray[np.float64]) -> tuple[float, float]:
    """The longest diameter of one slice's points (N, 3) in mm, and the longest perpendicular to it."""
    if len(points) < 2:
        return 0.0, 0.0
    flat = points - points[0]
    # The slice's own two axes, as its plane may be oblique to the scanner's.
    axes = np.linalg.svd(flat, full_matrices=False)[2][:2]
    corners = _corners(flat @ axes.T)
    distances = squareform(pdist(corners))
    first, second = np.unravel_index(distances.argmax(), distances.shape)
    longest = float(distances[first, second])
    if longest == 0:
        return 0.0, 0.0
    direction = (corners[second] - corners[first]) / longest
    across = corners @ np.array([-direction[1], direction[0]])
    return longest, float(np.ptp(across))


def measure_certainty(
    probs: Mapping[str, NDArray[np.float32]], mask: NDArray[np.uint8], voxel_ml: float
) -> dict[str, Certainty]:
    """How sure a model is of each region.

    Args:
        probs: region -> (X, Y, Z) probabilities in [0, 1].
        mask: (X, Y, Z) internal labels.
        voxel_ml: of a voxel.
    """
    result = {}
    for region, values in probs.items():
        labelled = values[np.isin(mask, REGION_LABELS[region])]
        sure, possible = (round(int((values >= bound).sum()) * voxel_ml, 4) for bound in (_HIGH, _LOW))
        mean = round(float(labelled.mean()), 4) if labelled.size else None
        result[region] = Certainty(volume_range_ml=(sure, possible), mean_probability=mean)
    return result


def flag_case(
    case: Case,
    mask: NDArray[np.uint8],
    spacing_mm: Sequence[float],
    ranges: Ranges | None = None,
    resampling: str | None = None,
    *,
    is_scan: bool = True,
) -> list[str]:
    """How a case differs from those that a model is for, each in a sentence.

    Args:
        case: as it was read.
        mask: (X, Y, Z) internal labels.
        spacing_mm: of the training cases, along X, Y, Z.
        ranges: of the training cases' fingerprints.
        resampling: how the case was resampled to that on request, in a sentence.
        is_scan: whether the case is as scanned; one that was super-resolved has no noise of its own.
    """
    flags = list(case.notes)
    brain = brain_mask(case.images)
    brain_ml = float(brain.sum()) * case.voxel_ml
    low, high = _BRAIN_ML
    if is_implausible := not low <= brain_ml <= high:
        flags.append(
            f"{brain_ml:.0f} ml are not background; a brain without its skull has {low:g} to {high:g} ml"
        )
    fits = find_unlike_axis(case.spacing_mm, spacing_mm) is None
    if resampling is not None:
        flags.append(resampling)
    elif not fits:
        own, trained = (" x ".join(f"{mm:.2f}" for mm in edges) for edges in (case.spacing_mm, spacing_mm))
        flags.append(f"voxels of {own} mm, where the model learned from {trained} mm")
    if ranges:
        found = measure_fingerprint(case.images, case.modalities, case.spacing_mm)
        if is_implausible:
            found.pop("brain_ml", None)
        flags.extend(describe_differences(found, ranges, case.modalities, with_grain=fits and is_scan))
    tumour_ml = float((mask > 0).sum()) * case.voxel_ml
    if not tumour_ml:
        flags.append("no tumour was found")
    elif tumour_ml > _TUMOUR_SHARE * brain_ml:
        flags.append(f"{100 * tumour_ml / brain_ml:.0f} % of the brain was labelled as tumour")
    return flags
