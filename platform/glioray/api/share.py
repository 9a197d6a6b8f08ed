"""Write a model where others load it from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glioray.api.models import resolve_model
from glioray.api.places import absolute_uri, out_uri, storage_uri, use_tracking
from glioray.api.requests import ShareRequest
from glioray.api.verbs import as_verb
from glioray.engine.card import CARD_FILE, model_card
from glioray.engine.package import SPEC_FILE, WEIGHTS_FILE, halve_weights
from glioray.engine.portable import package_hash, write_zip
from glioray.errors import UsageError
from glioray.storage import join_uri, open_storage, split_uri
from glioray.tasks import open_package


@dataclass(frozen=True)
class ShareResult:
    """A model that was written.

    Attributes:
        model_uri: the model; a registered model's version rather than its alias.
        uri: what others give as their model: the place with the hash, as `PLACE#sha256=HEX`.
        sha256: of `model.json` followed by `model.safetensors`.
        files: URIs of what was written.
        card: Markdown.
    """

    model_uri: str
    uri: str
    sha256: str
    files: tuple[str, ...]
    card: str = field(repr=False)
    exit_code: int = 0

    @property
    def answer(self) -> dict[str, Any]:
        """The JSON answer of the job."""
        return {"model": self.model_uri, "uri": self.uri, "sha256": self.sha256, "files": list(self.files)}


def preview(request: ShareRequest) -> dict[str, Any]:
    """The card and the hash; writes nothing.

    Raises:
        UsageError, ModelError: as `share`.
    """
    out_uri(request.out)
    with _prepared(request) as (uri, digest, files):
        return {"model": uri, "sha256": digest, "card": files[CARD_FILE].decode()}


@as_verb(ShareRequest)
def share(request: ShareRequest) -> ShareResult:
    """Write a model of any task with a card, as a folder or one zip file.

    Returns:
        ShareResult: where the files are, and the hash by which others check them.

    Raises:
        UsageError: a request that is not valid.
        ModelError: there is no such model.
        StorageError: a page cannot be read, or the place cannot be written.
    """
    out = out_uri(request.out)
    with _prepared(request) as (uri, digest, files), tempfile.TemporaryDirectory() as folder:
        if out.endswith(".zip"):
            archive = Path(folder) / "package.zip"
            write_zip(files, archive)
            parent, name = split_uri(out)
            with open(archive, "rb") as data:
                open_storage(parent).write(name, data)
            written = [out]
        else:
            storage = open_storage(out)
            for name, content in files.items():
                storage.write(name, content)
            written = [join_uri(storage.uri, name) for name in files]
    return ShareResult(uri, f"{out}#sha256={digest}", digest, tuple(written), files[CARD_FILE].decode())


@contextmanager
def _prepared(request: ShareRequest) -> Iterator[tuple[str, str, dict[str, bytes]]]:
    """The model's URI, its hash, and the files by name."""
    about = "" if request.about is None else _read_text(request.about, "--about")
    pages = [_read_text(page, "--evaluation") for page in request.evaluation]
    with use_tracking(storage_uri(request.storage)), tempfile.TemporaryDirectory() as folder:
        package = open_package(resolve_model(request.model), Path(folder))
        if request.half:
            halve_weights(package.folder)
        digest = package_hash(package.folder)
        files = {name: (package.folder / name).read_bytes() for name in (SPEC_FILE, WEIGHTS_FILE)}
        card = model_card(
            package,
            title=request.title or package.spec.config.recipe,
            digest=digest,
            num_bytes=len(files[WEIGHTS_FILE]),
            licence=request.licence,
            about=about,
            evaluations=pages,
        )
        yield package.uri, digest, {CARD_FILE: card.encode(), **files}


def _read_text(uri: str, flag: str) -> str:
    parent, name = split_uri(absolute_uri(uri, flag))
    try:
        return open_storage(parent).read(name).decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{flag} is '{uri}', which is not text ({error.reason}); give a Markdown file"
        ) from error
