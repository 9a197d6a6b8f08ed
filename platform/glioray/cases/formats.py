"""Recognise files that are not what their names say, and advise."""

from __future__ import annotations

from dataclasses import dataclass

_HEAD_BYTES = 1024
_NIFTI = "convert it to NIfTI, with dcm2niix or SimpleITK for instance"
_PICTURE = "use the NIfTI file that it was drawn from"
_UNPACK = "unpack it and use the files in it"


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: with an article.
        advice: what to do with such a file where NIfTI is expected.
        is_picture: whether it holds a 2-D picture, which may stand where a slice is expected.
    """

    name: str
    advice: str
    is_picture: bool = False


_LFS = Format("a git-lfs pointer, not the file itself", "fetch the file with 'git lfs pull'")
_ANNEX = Format("a git-annex pointer, not the file itself", "fetch the file with 'git annex get'")
_PAGE = Format("a web page or a server's error message", "download the file again, with the access it needs")
_GZIP = Format("compressed twice, gzip within gzip", "decompress it once with gunzip")
POINTERS = (_LFS, _ANNEX)
"""The first bytes of placeholders for files that were not fetched."""

TIFF = Format("a TIFF picture", _PICTURE, is_picture=True)

# (offset, bytes there, format); the first that matches.
_SIGNATURES: tuple[tuple[int, bytes, Format], ...] = (
    (0, b"version https://git-lfs", _LFS),
    (0, b"/annex/objects/", _ANNEX),
    (0, b"../.git/annex/objects/", _ANNEX),
    (0, b".git/annex/objects/", _ANNEX),
    (0, b"\xff\xd8\xff", Format("a JPEG picture", _PICTURE, is_picture=True)),
    (0, b"\x89PNG\r\n\x1a\n", Format("a PNG picture", _PICTURE, is_picture=True)),
    (0, b"GIF8", Format("a GIF picture", _PICTURE, is_picture=True)),
    (0, b"BM", Format("a BMP picture", _PICTURE, is_picture=True)),
    (0, b"II*\0", TIFF),
    (0, b"MM\0*", TIFF),
    (8, b"WEBP", Format("a WebP picture", _PICTURE, is_picture=True)),
    (0, b"\0\0\0\x0cjP  ", Format("a JPEG 2000 picture", _PICTURE, is_picture=True)),
    (0, b"%PDF", Format("a PDF document", _PICTURE)),
    (128, b"DICM", Format("a DICOM file", _NIFTI)),
    (0, b"NRRD", Format("an NRRD file", _NIFTI)),
    (0, b"\x89HDF", Format("an HDF5 or MINC file", _NIFTI)),
    (0, b"CDF", Format("a NetCDF or MINC file", _NIFTI)),
    (0, b"ObjectType", Format("a MetaImage header", _NIFTI)),
    (0, b"\x93NUMPY", Format("a NumPy array", "save it as NIfTI with its affine, with nibabel for instance")),
    (0, b"PK\x03\x04", Format("a ZIP archive", _UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", Format("a 7z archive", _UNPACK)),
    (0, b"Rar!", Format("a RAR archive", _UNPACK)),
    (257, b"ustar", Format("a tar archive", _UNPACK)),
    (0, b"BZh", Format("compressed with bzip2", "decompress it with bunzip2, or compress it with gzip")),
    (0, b"\xfd7zXZ", Format("compressed with xz", "decompress it with unxz, or compress it with gzip")),
    (0, b"\x28\xb5\x2f\xfd", Format("compressed with zstd", "decompress it with unzstd, or use gzip")),
    (0, b"\x1f\x8b", _GZIP),
)


def identify(head: bytes) -> Format | None:
    """The kind of file that begins with these bytes, or None for a kind that is not known here; never NIfTI.

    Args:
        head: the beginning of a file, decompressed if the file is gzip.
    """
    for offset, signature, kind in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return kind
    text = head[:_HEAD_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return _PAGE if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<error", b'{"')) else None
