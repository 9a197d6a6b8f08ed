"""From a request's body to the files and fields in it, never holding more than the limit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass

from fastapi import HTTPException, Request
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from glioray.cases.labels import CONVENTIONS, LabelConvention
from glioray.config import MODALITIES

FILES = (*MODALITIES, "image")
LABELS_FIELD = "labels"
DEFAULT_LABELS = "brats-et4"
_MAX_PARTS = 16
_MAX_FIELD_BYTES = 1024


@dataclass(frozen=True)
class Upload:
    """The files of a case by the name of their field, and the convention that its mask shall have."""

    parts: dict[str, bytes]
    convention: LabelConvention


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
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        raise HTTPException(
            415,
            f"the body is {media_type or 'of no stated type'}; {expected_files(modalities)} as multipart/form-data",
        )
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
        return Upload(await _files(form, modalities), _convention(form))
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


async def _files(form: FormData, modalities: Collection[str]) -> dict[str, bytes]:
    items, expected = form.multi_items(), expected_files(modalities)
    names = [name for name, _ in items]
    for name, value in items:
        if name not in (*FILES, LABELS_FIELD):
            raise _unfit(f"the field '{name[:40]}' is not known; {expected}, and {LABELS_FIELD} if you wish")
        if name in FILES and name not in modalities and not (name == "image" and takes_image(modalities)):
            raise _unfit(f"the model does not take {name}; {expected}")
        if names.count(name) > 1:
            raise _unfit(f"the field '{name}' was sent {names.count(name)} times; send it once")
        if name in FILES and isinstance(value, str):
            raise _unfit(f"the field '{name}' is text; send it as a file")
    sent = [name for name in FILES if name in names]
    if "image" in sent and len(sent) > 1:
        raise _unfit(f"both image and {', '.join(sent[:-1])} were sent; {expected}, not both")
    wanted = [name for name in MODALITIES if name in modalities]
    missing = [] if "image" in sent else [name for name in wanted if name not in sent]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise _unfit(f"{', '.join(missing)} {verb} missing; {expected}")
    return {name: await value.read() for name, value in items if not isinstance(value, str)}


def _convention(form: FormData) -> LabelConvention:
    name = form.get(LABELS_FIELD, DEFAULT_LABELS)
    if not isinstance(name, str) or name not in CONVENTIONS:
        found = f"'{name[:40]}'" if isinstance(name, str) else "a file"
        raise _unfit(f"{LABELS_FIELD} is {found}; expected one of {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def _unfit(detail: str) -> HTTPException:
    return HTTPException(422, detail)
