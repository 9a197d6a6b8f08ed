"""A segmentation model that answers files with files: the endpoint's mask without an endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from glioray.cases.conventions import LABELS, LabelConvention, find_convention
from glioray.cases.labels import from_internal
from glioray.cases.load import load_case_from_bytes
from glioray.cases.nifti import encode_mask
from glioray.config import MODALITIES, REGIONS
from glioray.engine.serving import LIMITS, check_uploads
from glioray.engine.task import FilesModel
from glioray.errors import UsageError
from glioray.tasks.segmentation.package import ModelSpec
from glioray.tasks.segmentation.predictor import Predictor


class MaskOfFiles:
    """Answers a case's NIfTI files with its mask, as .nii.gz on the input's own grid.

    Args:
        package: folder of the model.
    """

    def __init__(self, package: Path) -> None:
        self.predictor = Predictor.load(package)

    def __call__(
        self, files: Mapping[str, bytes], *, labels: str = "", resample: bool = False
    ) -> dict[str, bytes]:
        """{"mask": bytes} of one case.

        Args:
            files: by modality, or one 4-D "image".
            labels: numbers of the mask, as the endpoint takes them; by default those of BraTS.
            resample: as the endpoint takes it: a case of voxels that the model was not trained on.

        Raises:
            UsageError: a file is missing or not taken, or no such convention.
            CaseError: the files are no case.
            ModelError: the case does not fit the model.
        """
        modalities = self.predictor.spec.config.preprocess.modalities
        check_uploads(files, modalities)
        convention = choose_convention(labels, self.predictor.spec)
        case = load_case_from_bytes(dict(files), modalities=modalities, limits=LIMITS)
        mask = from_internal(self.predictor.predict(case, resample=resample), convention)
        return {"mask": encode_mask(mask, like=case.reference)}


def choose_convention(labels: str | None, spec: ModelSpec) -> LabelConvention:
    """The convention of the mask. Raises: UsageError where it is unknown or lacks a label of the model."""
    has_cavity = spec.out_channels == len(LABELS)
    convention = find_convention(labels or ("brats2024" if has_cavity else "brats-et4"))
    if has_cavity and convention.regions == REGIONS and "rc" not in convention.parts.values():
        raise UsageError(
            f"labels is '{convention.name}', which has no number for the resection cavity that the model labels; send "
            "labels=brats2024"
        )
    return convention


def describe_files(spec: ModelSpec) -> FilesModel:
    """The inputs and outputs of a model's `MaskOfFiles`."""
    modalities = spec.config.preprocess.modalities
    has_image = set(modalities) == set(MODALITIES)
    inputs = dict.fromkeys(modalities, not has_image) | ({"image": False} if has_image else {})
    options: dict[str, str | bool] = {"labels": choose_convention("", spec).name, "resample": False}
    return FilesModel(f"{__name__}:MaskOfFiles", inputs, ("mask",), options)
