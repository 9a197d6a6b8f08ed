"""A super-resolution model that answers files with files: the endpoint's image without an endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from glioray.config import MODALITIES
from glioray.engine.serving import check_one_kind, check_uploads
from glioray.engine.task import FilesModel
from glioray.errors import UsageError
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.package import SuperResSpec
from glioray.tasks.superres.uploads import (
    SuperResOptions,
    encode_result,
    plan_super_resolution,
    read_input,
)


class ImageOfFiles:
    """Answers NIfTI files, or a PNG, with the image at high resolution.

    Args:
        package: folder of the model.
    """

    def __init__(self, package: Path) -> None:
        self.resolver = SuperResolver.load(package)

    def __call__(self, files: Mapping[str, bytes], **options: float | bool) -> dict[str, bytes]:
        """{"image": bytes} of one input: NIfTI of one modality, a zip of several, a PNG of a PNG.

        Args:
            files: by modality, or one "image".
            options: "blend" and "force" of `SuperResOptions`.

        Raises:
            UsageError: a file is missing or not taken.
            CaseError: the files are no input, or the result would be too large.
            ModelError: the input does not fit the model.
        """
        check_files(files, self.resolver.spec)
        sent = read_input(files, self.resolver.spec)
        chosen = SuperResOptions(**options)  # type: ignore[arg-type]
        plan = plan_super_resolution(self.resolver, sent, chosen)
        fine = self.resolver.super_resolve(sent.case, plane=plan.plane, blend=chosen.blend, size=plan.size)
        return {"image": encode_result(fine, sent)[0]}


def check_files(files: Mapping[str, bytes], spec: SuperResSpec) -> None:
    """Refuse files that the model does not take together.

    Raises:
        UsageError: a file is missing or not taken, or none was sent.
    """
    if spec.config.num_channels > 1:
        check_uploads(files, spec.config.preprocess.modalities)
        return
    expected = f"send some of the files {', '.join(MODALITIES)}, or one file image"
    check_one_kind(files, expected)
    if not files:
        raise UsageError(f"no file was sent; {expected}")


def list_modalities(spec: SuperResSpec) -> tuple[str, ...]:
    """The modalities that a model takes of a case: all where each is an image of its own."""
    return MODALITIES if spec.config.channels == "each" else spec.config.preprocess.modalities


def describe_files(spec: SuperResSpec) -> FilesModel:
    """The inputs and outputs of a model's `ImageOfFiles`."""
    joint = spec.config.num_channels > 1
    modalities = spec.config.preprocess.modalities if joint else MODALITIES
    has_image = set(modalities) == set(MODALITIES)
    inputs = dict.fromkeys(modalities, not has_image) | ({"image": False} if has_image else {})
    options = {"blend": float("gan" in spec.stages), "force": False}
    return FilesModel(f"{__name__}:ImageOfFiles", inputs, ("image",), options)
