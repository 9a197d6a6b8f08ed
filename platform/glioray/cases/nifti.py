"""NIfTI decoding and encoding: fast, bounded, and strict about damaged files.

The only module that imports nibabel, for headers and orientations. Voxels are decoded here, since nibabel
allocates whatever a header claims, silently accepts surplus data, NaN in affines and an infinite slope, and
decompresses three times slower. Compression, version and byte order are read from the first bytes of a
file, never from its name. Header and size are checked before anything is decompressed, so that a bomb or a
false header costs no memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NoReturn

import deflate
import numpy as np
from nibabel import Nifti1Header, Nifti2Header
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from glioray.cases.formats import identify
from glioray.cases.inflate import GZIP_MAGIC, TrailingBytesError, inflate, peek
from glioray.errors import CaseError

HEADER_BYTES = 544
"""Bytes of a decompressed file that hold the header of either NIfTI version."""

_NUMBERS = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_MAX_EXTENSION_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Limits:
    """The largest file that is decoded.

    Attributes:
        max_voxels: voxels in one channel.
        max_channels: channels in a 4-D file.
        max_bytes: size of the decompressed voxel data.
    """

    max_voxels: int = 512**3
    max_channels: int = 4
    max_bytes: int = 2**30


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class Header:
    """A validated header.

    Attributes:
        name: the file, for messages.
        shape: (X, Y, Z) or (X, Y, Z, C), in stored order; a 2-D image has Z = 1.
        dtype: of the voxels as stored, including the byte order.
        affine: (4, 4) float64, from voxel index in stored order to mm in RAS+.
        offset: the start of the voxel data in bytes.
        slope: factor of the stored numbers; 1 if they are not scaled.
        intercept: added to the scaled numbers; 0 if they are not scaled.
        has_orientation: whether the sform or the qform is set.
        nibabel_header: nibabel's object.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    affine: np.ndarray
    offset: int
    slope: float
    intercept: float
    has_orientation: bool
    nibabel_header: Any = field(repr=False)

    @property
    def size_bytes(self) -> int:
        """The size of the whole decompressed file."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edges along the stored axes."""
        x, y, z = (float(edge) for edge in voxel_sizes(self.affine))
        return x, y, z


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A decoded file.

    Attributes:
        array: (X, Y, Z) or (X, Y, Z, C) in stored order; in the stored type, or float32 if the header
            scales it.
        header: of the file.
    """

    array: np.ndarray
    header: Header

    @property
    def name(self) -> str:
        """The file, for messages."""
        return self.header.name

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z) in stored order."""
        x, y, z = self.header.shape[:3]
        return x, y, z

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) float64, from voxel index in stored order to mm in RAS+."""
        return self.header.affine

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edges along the stored axes."""
        return self.header.spacing_mm


def read_header(data: bytes, *, name: str, case_id: str = "", limits: Limits = DEFAULT_LIMITS) -> Header:
    """Parse and validate the header of a file; reads only the first bytes.

    Args:
        data: the file or its beginning, compressed or not.
        name: the file, for messages.
        case_id: the case, for messages.
        limits: the largest sizes that the header may claim.

    Raises:
        CaseError: not NIfTI, an unusable header, or sizes beyond `limits`.
    """
    return _HeaderReader(name, case_id, limits).read(data)


def read_volume(data: bytes, *, name: str, case_id: str = "", limits: Limits = DEFAULT_LIMITS) -> Volume:
    """Decode a file; the arguments are those of `read_header`.

    Raises:
        CaseError: not NIfTI, an unusable header, sizes beyond `limits`, a damaged or truncated stream, or
            more or fewer bytes than the header claims.
    """
    header = read_header(data, name=name, case_id=case_id, limits=limits)
    raw = _expand(data, header, case_id)
    if len(raw) != header.size_bytes:
        raise CaseError(case_id, name, *_describe_length(len(raw), header, compressed=raw is not data))
    flat = np.frombuffer(raw, dtype=header.dtype, offset=header.offset)
    if not header.dtype.isnative:
        flat = flat.astype(header.dtype.newbyteorder("="))
    array = flat.reshape(header.shape, order="F")
    if (header.slope, header.intercept) != (1.0, 0.0):
        array = array.astype(np.float32) * np.float32(header.slope) + np.float32(header.intercept)
    return Volume(array=array, header=header)


def _describe_length(size: int, header: Header, *, compressed: bool) -> tuple[str, str]:
    """The problem of a file of another length than its header claims, and advice."""
    if size < header.size_bytes:
        return f"is truncated: {size} bytes, expected {header.size_bytes}", "copy or export it again"
    # Decompression ends after one byte too many.
    more = "has bytes" if compressed else f"has {size - header.size_bytes} bytes"
    found = f"is longer than its header claims: it {more} after the {header.size_bytes} that a header of {header.shape}"
    found += f" voxels of {header.dtype.name} accounts for"
    return found, "if shape and type are right, cut the rest off by saving it again; else correct the header"


def _expand(data: bytes, header: Header, case_id: str) -> bytes | bytearray:
    if data[:2] != GZIP_MAGIC:
        return data
    try:
        return inflate(data, header.size_bytes)
    except TrailingBytesError as error:
        advice = "decompress it with gunzip, which leaves them out, and compress it again"
        raise CaseError(case_id, header.name, str(error), advice) from error
    except ValueError as error:
        raise CaseError(case_id, header.name, str(error), "copy or export it again") from error


class _HeaderReader:
    """Reads and validates one header; every error names the file."""

    def __init__(self, name: str, case_id: str, limits: Limits) -> None:
        self.name, self.case_id, self.limits = name, case_id, limits

    def fail(self, found: str, advice: str = "export it again as NIfTI") -> NoReturn:
        raise CaseError(self.case_id, self.name, found, advice)

    def read(self, data: bytes) -> Header:
        return self.validate(self._parse(self._first_bytes(data)))

    def validate(self, header: Any) -> Header:
        shape = self._shape(header)
        dtype = self._dtype(header)
        self._check_size(shape, dtype)
        slope, intercept = self._scaling(header)
        return Header(
            name=self.name,
            shape=shape,
            dtype=dtype,
            affine=self._affine(header),
            offset=self._offset(header),
            slope=slope,
            intercept=intercept,
            has_orientation=bool(header["sform_code"] > 0 or header["qform_code"] > 0),
            nibabel_header=header,
        )

    def _first_bytes(self, data: bytes) -> bytes:
        if not data:
            self.fail("is empty (0 bytes)", "copy it again or delete it")
        try:
            first = peek(data, HEADER_BYTES)
        except ValueError as error:
            self.fail(str(error), "copy or export it again")
        if len(first) < 4:
            self.fail(f"ends within its header, after {len(first)} bytes", "copy or export it again")
        return first

    def _parse(self, first: bytes) -> Any:
        size = next(
            (n for n in (348, 540) if first[:4] in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), None
        )
        if size is None:
            kind = identify(first)
            if kind is not None:
                self.fail(f"is not NIfTI: it is {kind.name}", kind.advice)
            self.fail("is not NIfTI: it does not start with a NIfTI header")
        two = size == 540
        if len(first) < size:
            self.fail(f"ends within its header, after {len(first)} bytes", "copy or export it again")
        magic = first[4:8] if two else first[344:348]
        if magic[:2] == b"ni":
            self.fail("is the header of a .hdr/.img pair", "save both as one .nii or .nii.gz")
        if magic[:2] != b"n+":
            self.fail("is not NIfTI: the header has no NIfTI signature (is it Analyze?)")
        order = "<" if first[:4] == size.to_bytes(4, "little") else ">"
        return (Nifti2Header if two else Nifti1Header)(first[:size], endianness=order, check=False)

    def _shape(self, header: Any) -> tuple[int, ...]:
        dim = [int(n) for n in header["dim"]]
        if not 1 <= dim[0] <= 7:
            self.fail(f"claims {dim[0]} dimensions")
        shape = tuple(dim[1 : dim[0] + 1])
        if min(shape) < 1:
            self.fail(f"has a dimension of size 0: {shape}")
        spatial, further = (*shape, 1, 1)[:3], tuple(n for n in shape[3:] if n > 1)
        if len(shape) < 2 or len(further) > 1:
            self.fail(f"has the shape {shape}; expected (X, Y, Z) or (X, Y, Z, C)")
        return (*spatial, *further)

    def _dtype(self, header: Any) -> np.dtype[Any]:
        code = int(header["datatype"])
        if code not in _NUMBERS:
            kind = {
                1: "single bits",
                32: "complex numbers",
                128: "RGB",
                1536: "float128",
                1792: "complex numbers",
                2304: "RGBA",
            }
            self.fail(
                f"holds voxels of {kind.get(code, 'an unknown type')} (datatype {code}); expected integers or floats"
            )
        return np.dtype(_NUMBERS[code]).newbyteorder(header.endianness)

    def _check_size(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        voxels, channels = math.prod(shape[:3]), math.prod(shape[3:])
        limit = f"{self.limits.max_voxels} voxels and {self.limits.max_channels} channels"
        if voxels > self.limits.max_voxels:
            self.fail(
                f"claims {shape} voxels; expected at most {limit}", "resample or crop it, or check the header"
            )
        if channels > self.limits.max_channels:
            self.fail(
                f"claims {shape} voxels; expected at most {limit}",
                "store one volume in a file, and a mask as one volume of label numbers",
            )
        size = voxels * channels * dtype.itemsize
        if size > self.limits.max_bytes:
            self.fail(
                f"claims {size} bytes of voxels; expected at most {self.limits.max_bytes}",
                "store it as int16 or crop it",
            )

    def _offset(self, header: Any) -> int:
        first = header.single_vox_offset
        offset = float(header["vox_offset"])
        if offset == 0:
            return int(first)
        if not (math.isfinite(offset) and first <= offset <= _MAX_EXTENSION_BYTES and offset == int(offset)):
            self.fail(
                f"claims that its voxels start at byte {offset:g}; expected {first} to {_MAX_EXTENSION_BYTES}"
            )
        return int(offset)

    def _scaling(self, header: Any) -> tuple[float, float]:
        try:
            slope, intercept = header.get_slope_inter()
        except HeaderDataError as error:
            self.fail(f"has an unusable scaling ({error})")
        slope, intercept = (
            1.0 if slope is None else float(slope),
            0.0 if intercept is None else float(intercept),
        )
        # nibabel treats an infinite slope as no scaling.
        if math.isinf(header["scl_slope"]) or not math.isfinite(intercept):
            self.fail(
                f"has a scaling that is not finite (slope {header['scl_slope']}, intercept {intercept})"
            )
        return slope, intercept

    def _affine(self, header: Any) -> np.ndarray:
        try:
            with np.errstate(all="ignore"):
                affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        except (HeaderDataError, ValueError, ArithmeticError) as error:
            self.fail(f"has an unusable orientation ({error})", "set its sform or qform again")
        if not np.isfinite(affine).all():
            self.fail("has NaN or infinity in its affine", "set its sform or qform again")
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        if edges.min() < 1e-3 or edges.max() > 1e3:
            self.fail(f"has voxel edges of {format_mm(edges)} mm", "set its sform or qform again")
        if abs(np.linalg.det(affine[:3, :3] / edges)) < 1e-3:
            self.fail("has a singular affine: two of its axes coincide", "set its sform or qform again")
        return affine


def qform_of(header: Header) -> np.ndarray | None:
    """(4, 4), the affine of the qform that a file states beside its sform; NaN if unusable, None without both."""
    found = header.nibabel_header
    if not (found["sform_code"] > 0 and found["qform_code"] > 0):
        return None
    try:
        with np.errstate(all="ignore"):
            return np.asarray(found.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError, ArithmeticError):
        return np.full((4, 4), np.nan)


def to_canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A view of the array with its first three axes in RAS+ order, and its affine."""
    orientation = io_orientation(affine)
    return apply_orientation(array, orientation), affine @ inv_ornt_aff(orientation, array.shape[:3])


def restore_orientation(
    array_ras: np.ndarray, affine_original: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """The inverse of `to_canonical`: a view in the axis order of the original file.

    Args:
        array_ras: (X, Y, Z) in RAS+ order.
        affine_original: (4, 4) of the file as stored.
        shape: (X, Y, Z) of the file as stored.

    Raises:
        ValueError: the array in the file's axis order does not have that shape.
    """
    identity = np.array([[0, 1], [1, 1], [2, 1]])
    restored = apply_orientation(array_ras, ornt_transform(identity, io_orientation(affine_original)))
    if restored.shape != tuple(shape):
        raise ValueError(f"the array is {restored.shape} in the file's axis order; expected {tuple(shape)}")
    return restored


def encode_mask(mask_ras: np.ndarray, like: Volume | Header, *, compress: bool = True) -> bytes:
    """Encode labels as a NIfTI file on the grid of another file.

    Args:
        mask_ras: (X, Y, Z) uint8 in RAS+ order.
        like: the file that gives the affine, shape, axis order, version and form codes.
        compress: whether to write gzip.
    """
    return _encode_like(np.asarray(mask_ras, dtype=np.uint8), like, compress)


def encode_map(values_ras: np.ndarray, like: Volume | Header, *, compress: bool = True) -> bytes:
    """Encode float32 values, (X, Y, Z) in RAS+ order, as `encode_mask` encodes labels."""
    return _encode_like(np.asarray(values_ras, dtype=np.float32), like, compress)


def _encode_like(array_ras: np.ndarray, like: Volume | Header, compress: bool) -> bytes:
    source = like if isinstance(like, Header) else like.header
    array = restore_orientation(array_ras, source.affine, source.shape[:3])
    header = source.nibabel_header.copy()
    stored = tuple(int(n) for n in header["dim"][1 : int(header["dim"][0]) + 1])
    header.set_data_dtype(array.dtype)
    header.set_data_shape(stored if math.prod(stored) == array.size else array.shape)
    header["intent_code"], header["cal_min"], header["cal_max"] = 0, 0, 0
    header["descrip"] = b"glioray"
    return _encode(array, header, compress)


def encode_volume(array: np.ndarray, affine: np.ndarray, *, compress: bool = True) -> bytes:
    """Encode an array (X, Y, Z) or (X, Y, Z, C) as NIfTI-1, in its own data type."""
    return _encode(array, _nifti1_header(array.shape, array.dtype, affine), compress)


def make_header(
    shape: tuple[int, int, int], dtype: np.dtype[Any], affine: np.ndarray, *, name: str
) -> Header:
    """The header that `encode_volume` would write, for a volume that comes from no NIfTI file.

    Args:
        shape: (X, Y, Z) in stored order.
        dtype: of the voxels.
        affine: (4, 4) float64 from voxel index in stored order to mm in RAS+.
        name: of the volume, for messages.
    """
    header = _nifti1_header(shape, dtype, affine)
    return _HeaderReader(name, "", DEFAULT_LIMITS).validate(header)


def slice_axis(header: Header) -> int:
    """The axis in RAS+ order along which slices are stacked: the third stored axis."""
    return int(io_orientation(header.affine)[2, 0])


def _nifti1_header(shape: tuple[int, ...], dtype: np.dtype[Any], affine: np.ndarray) -> Nifti1Header:
    header = Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    return header


def _encode(array: np.ndarray, header: Any, compress: bool) -> bytes:
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["vox_offset"], header["magic"] = header.single_vox_offset, header.single_magic
    voxels = array.astype(header.get_data_dtype(), copy=False).tobytes(order="F")
    raw = header.binaryblock + bytes(header.single_vox_offset - header.sizeof_hdr) + voxels
    return bytes(deflate.gzip_compress(raw, 6)) if compress else raw


def format_mm(values: Any) -> str:
    """Lengths along the axes, formatted for messages: `1 x 1 x 6`."""
    return " x ".join(f"{value:.3g}" for value in values)
