"""From a request's body to the files and fields in it, never holding more than the limit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass, field

from fastapi import HTTPException, Request
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from glioray.cases.labels import CONVENTIONS, LabelConvention
from glioray.config import MODALITIES
from serve.fields import Sharpening, as_sharpening, choice, flag

FILES = (*MODALITIES, "image")
LABELS_FIELD = "labels"
DEFAULT_LABELS = "brats-et4"
GRIDS = ("fine", "input")
SHARPENING_FIELDS = ("scale", "size", "blend", "plane", "force")
SEGMENT_FIELDS = (LABELS_FIELD, "superresolve", "grid", *SHARPENING_FIELDS)
_MAX_PARTS = 16
_MAX_FIELD_BYTES = 1024


@dataclass(frozen=True)
class Upload:
    """The files of a case by the name of their field, and what shall be done with it.

    Attributes:
        parts: the files.
        convention: that the mask shall have.
        sharpening: how the case is made sharper before it is segmented; None for not at all.
        grid: of the mask of a case that was made sharper: "fine" or "input".
    """

    parts: dict[str, bytes]
    convention: LabelConvention
    sharpening: Sharpening | None = None
    grid: str = "fine"


@dataclass(frozen=True)
class SuperResUpload:
    """The files by the name of their field, and how they shall be made sharper."""

    parts: dict[str, bytes]
    sharpening: Sharpening


@dataclass(frozen=True)
class _Form:
    files: dict[str, bytes] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)


def expected_files(modalities: Collection[str]) -> str:
    """What to send to a model of these modalities, in words."""
    names = [name for name in MODALITIES if name in modalities]
    files = f"send the file{'s' if len(names) > 1 else ''} {', '.join(names)}"
    return f"{files}, or one 4-D file image" if takes_image(modalities) else files


def takes_image(modalities: Collection[str]) -> bool:
    """Whether one 4-D file will do: it holds all four modalities."""
    return set(modalities) == set(MODALITIES)


async def read_upload(request: Request, max_bytes: int, modalities: Collection[str] = MODALITIES) -> Upload:
    """What a request to segment brings to a model of these modalities.

    Raises:
        HTTPException: 400 for a broken form, 413 for a large one, 415 for none, 422 for the wrong parts.
    """
    wanted = [name for name in MODALITIES if name in modalities]
    taken = [*wanted, "image"] if takes_image(modalities) else wanted
    form = await _read_form(request, max_bytes, taken, SEGMENT_FIELDS, expected_files(modalities))
    _check_complete(form.files, wanted, expected_files(modalities))
    sharpening = None
    if flag(form.fields, "superresolve"):
        sharpening = as_sharpening(form.fields)
    else:
        lost = [name for name in ("grid", *SHARPENING_FIELDS) if name in form.fields]
        if lost:
            raise _unfit(f"{lost[0]} was sent without superresolve; send superresolve=true beside it")
    label = choice(form.fields, LABELS_FIELD, tuple(CONVENTIONS)) or DEFAULT_LABELS
    grid = choice(form.fields, "grid", GRIDS) or GRIDS[0]
    return Upload(form.files, CONVENTIONS[label], sharpening, grid)


async def read_superres_upload(
    request: Request, max_bytes: int, modalities: Collection[str], joint: bool
) -> SuperResUpload:
    """What a request to make sharper brings.

    Args:
        request: it.
        max_bytes: of its body.
        modalities: that the model was trained on.
        joint: it takes them all together; otherwise any of the four will do, or one image of whatever kind.

    Raises:
        HTTPException: as `read_upload`.
    """
    if joint:
        wanted = [name for name in MODALITIES if name in modalities]
        taken, expected = (
            [*wanted, "image"] if takes_image(modalities) else wanted,
            expected_files(modalities),
        )
    else:
        wanted, taken = [], list(FILES)
        expected = f"send some of the files {', '.join(MODALITIES)}, or one file image"
    form = await _read_form(request, max_bytes, taken, SHARPENING_FIELDS, expected)
    _check_complete(form.files, wanted, expected)
    if not form.files:
        raise _unfit(f"no file was sent; {expected}")
    return SuperResUpload(form.files, as_sharpening(form.fields))


async def _read_form(
    request: Request, max_bytes: int, files: Sequence[str], fields: Sequence[str], expected: str
) -> _Form:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        found = f"the body is {media_type or 'of no stated type'}"
        raise HTTPException(415, f"{found}; {expected} as multipart/form-data")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > max_bytes:
        raise _too_large(max_bytes)
    parser = MultiPartParser(
        request.headers,
        _counted(request, max_bytes),
        max_files=_MAX_PARTS,
        max_fields=_MAX_PARTS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(
            400, f"the body is not a whole multipart form ({error.message.rstrip('.')}); send it again"
        ) from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the body ended early; send it again") from error
    try:
        return await _sort(form, files, fields, expected)
    finally:
        await form.close()


async def _counted(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > max_bytes:
            raise _too_large(max_bytes)
        yield chunk


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(
        413, f"the body is larger than {max_bytes / 1e6:g} MB; compress the files as .nii.gz or crop them"
    )


async def _sort(form: FormData, files: Sequence[str], fields: Sequence[str], expected: str) -> _Form:
    """The form's files and fields, each of them one that is taken, and once."""
    items = form.multi_items()
    names = [name for name, _ in items]
    for name, value in items:
        if name not in (*FILES, *fields):
            raise _unfit(
                f"the field '{name[:40]}' is not known; {expected}, and {', '.join(fields)} if you wish"
            )
        if name in FILES and name not in files:
            raise _unfit(f"the model does not take {name}; {expected}")
        if names.count(name) > 1:
            raise _unfit(f"the field '{name}' was sent {names.count(name)} times; send it once")
        if name in FILES and isinstance(value, str):
            raise _unfit(f"the field '{name}' is text; send it as a file")
        if name in fields and not isinstance(value, str):
            raise _unfit(f"{name} is a file; send it as text")
    return _Form(
        {name: await value.read() for name, value in items if not isinstance(value, str)},
        {name: value for name, value in items if isinstance(value, str)},
    )


def _check_complete(files: Collection[str], wanted: Sequence[str], expected: str) -> None:
    """Refuses what is not `wanted` in whole, or one image in place of it."""
    sent = [name for name in FILES if name in files]
    if "image" in sent and len(sent) > 1:
        raise _unfit(f"both image and {', '.join(sent[:-1])} were sent; {expected}, not both")
    missing = [] if "image" in sent else [name for name in wanted if name not in sent]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise _unfit(f"{', '.join(missing)} {verb} missing; {expected}")


def _unfit(detail: str) -> HTTPException:
    return HTTPException(422, detail)
