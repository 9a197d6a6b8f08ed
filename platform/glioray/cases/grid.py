"""Whether two files lie on the same voxels, however each of them is stored."""

from __future__ import annotations

import numpy as np

from glioray.cases.nifti import Header, Volume, mm_text, to_canonical

_GRID_TOLERANCE = 0.05  # Of the smallest voxel edge, at any corner of the volume.


def same_grid(a: Volume | Header, b: Volume | Header) -> str | None:
    """None where both lie on the same voxels once in RAS+ order; otherwise how `b` differs from `a`, in words.

    Affines may differ by a twentieth of a voxel at any corner: rounding, not another grid.
    """
    one, two = (v if isinstance(v, Header) else v.header for v in (a, b))
    if _stored_alike(one, two):
        return None
    (shape_a, affine_a), (shape_b, affine_b) = _ras_grid(one), _ras_grid(two)
    shift = _largest_shift(shape_a, affine_a, affine_b)
    if shape_a == shape_b and shift <= _tolerance_mm(one):
        return None
    if _is_lost(two) and not _is_lost(one):
        return f"has lost its orientation (no affine but the identity) while {one.name} has one"
    if _is_lost(one) and not _is_lost(two):
        return f"has an orientation while {one.name} has lost its own (no affine but the identity)"
    if shape_a != shape_b:
        return f"is {shape_b} voxels (in RAS order) but {one.name} is {shape_a}"
    return f"lies up to {shift:.3g} mm away from {one.name}, with spacing {mm_text(two.spacing_mm)} mm"


def ras_view(array: np.ndarray, header: Header, like: Header) -> np.ndarray:
    """`to_canonical`'s array, in the same order as `like` wherever both are stored alike.

    At 45 degrees two axes are equally near, and rounding alone could turn two files differently.
    """
    return to_canonical(array, like.affine if _stored_alike(header, like) else header.affine)[0]


def _stored_alike(a: Header, b: Header) -> bool:
    shape = a.shape[:3]
    return shape == b.shape[:3] and _largest_shift(shape, a.affine, b.affine) <= _tolerance_mm(a)


def _tolerance_mm(header: Header) -> float:
    return _GRID_TOLERANCE * min(header.spacing_mm)


def _largest_shift(shape: tuple[int, ...], affine_a: np.ndarray, affine_b: np.ndarray) -> float:
    """The largest distance in mm between the corners of two volumes of that shape."""
    ends = np.array([*(n - 1 for n in shape), 1])
    corners = np.array([(x, y, z, 1) for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * ends
    return float(np.linalg.norm(corners @ (affine_b - affine_a).T, axis=1).max())


def _ras_grid(header: Header) -> tuple[tuple[int, ...], np.ndarray]:
    # A broadcast array has the shape and holds no voxels.
    array, affine = to_canonical(np.broadcast_to(np.uint8(0), header.shape[:3]), header.affine)
    return array.shape, affine


def _is_lost(header: Header) -> bool:
    return not header.has_orientation or bool(np.allclose(header.affine, np.eye(4)))
