"""Comparison of two files' voxel grids, whatever axis order each of them is stored in."""

from __future__ import annotations

import numpy as np

from glioray.cases.nifti import Header, Volume, format_mm, qform_of, to_canonical

_GRID_TOLERANCE = 0.05  # as a fraction of the smallest voxel edge, at any corner of the volume


def describe_grid_difference(a: Volume | Header, b: Volume | Header) -> str | None:
    """Describe how the grid of `b` differs from that of `a`; None if they are the same.

    Grids are compared in RAS+ order. Affines may differ by a twentieth of a voxel at any corner, which is
    rounding.
    """
    one, two = (v if isinstance(v, Header) else v.header for v in (a, b))
    if _stored_alike(one, two):
        return None
    (shape_a, affine_a), (shape_b, affine_b) = _ras_grid(one), _ras_grid(two)
    shift = _largest_shift(shape_a, affine_a, affine_b)
    if shape_a == shape_b and shift <= _tolerance_mm(one):
        return None
    if _is_lost(two) and not _is_lost(one):
        return f"has lost its orientation (its affine is the identity), but {one.name} has one"
    if _is_lost(one) and not _is_lost(two):
        return f"has an orientation, but {one.name} has lost its own (its affine is the identity)"
    if shape_a != shape_b:
        return f"has {shape_b} voxels (in RAS order), but {one.name} has {shape_a}"
    return f"lies up to {shift:.3g} mm away from {one.name}, with spacing {format_mm(two.spacing_mm)} mm"


def ras_view(array: np.ndarray, header: Header, like: Header) -> np.ndarray:
    """The array in RAS+ order, oriented as `like` if both have the same stored grid.

    At 45 degrees two axes are equally close, and rounding alone could orient two such files differently.
    """
    return to_canonical(array, like.affine if _stored_alike(header, like) else header.affine)[0]


def describe_qform(header: Header) -> list[str]:
    """One note if a file's qform is not its sform, which is used; else none."""
    qform = qform_of(header)
    if qform is None or (shift := _largest_shift(header.shape[:3], header.affine, qform)) <= _tolerance_mm(
        header
    ):
        return []
    where = f"lies up to {shift:.3g} mm away from" if np.isfinite(shift) else "is unusable, unlike"
    return [f"the qform of {header.name} {where} its sform, which is used"]


def _stored_alike(a: Header, b: Header) -> bool:
    shape = a.shape[:3]
    return shape == b.shape[:3] and _largest_shift(shape, a.affine, b.affine) <= _tolerance_mm(a)


def _tolerance_mm(header: Header) -> float:
    return _GRID_TOLERANCE * min(header.spacing_mm)


def _largest_shift(shape: tuple[int, ...], affine_a: np.ndarray, affine_b: np.ndarray) -> float:
    """The largest distance in mm between matching corners of two volumes of the same shape."""
    ends = np.array([*(n - 1 for n in shape), 1])
    corners = np.array([(x, y, z, 1) for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * ends
    return float(np.linalg.norm(corners @ (affine_b - affine_a).T, axis=1).max())


def _ras_grid(header: Header) -> tuple[tuple[int, ...], np.ndarray]:
    # A broadcast array has the shape but takes no memory.
    array, affine = to_canonical(np.broadcast_to(np.uint8(0), header.shape[:3]), header.affine)
    return array.shape, affine


def _is_lost(header: Header) -> bool:
    return not header.has_orientation or bool(np.allclose(header.affine, np.eye(4)))
