"""Models by their URI: loaded, named, joined, registered."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glioray.api.places import model_source, storage_uri, use_tracking
from glioray.cases.load import Case
from glioray.engine.checkpoint import kept_folders
from glioray.engine.evaluation import check_resample, check_rule
from glioray.engine.on_mlflow.registry import PACKAGE_FILES, register_model, resolve_version
from glioray.engine.task import ModelPackage
from glioray.errors import ModelError, UsageError
from glioray.storage import join_uri, open_storage
from glioray.tasks import open_package


class LoadedModel:
    """A trained model in memory; safe to call from one thread at a time.

    Attributes:
        uri: where it came from; a registered model's version rather than its alias.
        task: the name of its task.
        spec: what its `model.json` says: config, patients it was trained on, metrics of its last validation.
    """

    def __init__(
        self, package: ModelPackage, folder: tempfile.TemporaryDirectory[str], device: str | None
    ) -> None:
        self.uri, self.task, self.spec = package.uri, package.task.name, package.spec
        self._package, self._folder = package, folder
        self._model = package.task.load(package.folder, device)

    def predict(self, case: Case, *, resample: bool = False) -> Any:
        """Predict one case.

        Args:
            case: of `load_case`.
            resample: segment a case whose voxel size is far from that of training, by resampling it; the mask comes
                back on the case's own grid.

        Returns: of a segmentation model the mask, (X, Y, Z) uint8 internal labels in RAS+ on the case's own grid;
        of a super-resolution model the case in high resolution.

        Raises:
            ModelError: the case's voxels or modalities are not what the model was trained on.
            CaseError: the case holds no brain.
            UsageError: `resample` for a super-resolution model.
        """
        check_resample(resample, self._package.task.output)
        return self._model.predict(case, resample=True) if resample else self._model.predict(case)

    def evaluate(
        self, case: Case, *, metrics: str = "brats2023", resample: bool = False
    ) -> dict[str, dict[str, float]]:
        """Evaluate one case: metrics by region of a segmentation model, by modality of a super-resolution model.

        A super-resolution model degrades the case first, as in its training.

        Args:
            case: of `load_case`, with a mask for a segmentation model.
            metrics: "brats2026" adds the metrics of BraTS 2026 to those of masks; needs panoptica.
            resample: as for `predict`.

        Raises:
            UsageError: metrics that do not exist or that the model has not, or panoptica is missing; or as `predict`.
            ModelError: the case's voxels or modalities are not what the model was trained on.
            CaseError: the case has no mask, or holds no brain.
        """
        check_rule(metrics, self._package.task.output)
        check_resample(resample, self._package.task.output)
        return self._package.task.evaluate_case(self._model, case, metrics=metrics, resample=resample)

    def save(self, folder: str | Path) -> Path:
        """Write the model's package into a folder, from which `load_model` loads it again; returns the folder."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name in PACKAGE_FILES:
            shutil.copyfile(self._package.folder / name, target / name)
        return target

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.uri}: {self.task}, recipe {self.spec.config.recipe}>"


def load_model(uri: str | Path, *, device: str | None = None, storage: str | None = None) -> LoadedModel:
    """Load a trained model of any task.

    Args:
        uri: `starter` or `starter-superres`, which are part of glioray; `models:/NAME@alias`, `models:/NAME/VERSION`,
            `runs:/ID/model`, a run's folder, a folder that `LoadedModel.save` wrote, or a folder, zip file or https
            address of `share`; a folder may be `s3://bucket/prefix`. With `#sha256=HEX` the hash is checked.
        device: of torch, such as "cpu"; by default a GPU where there is one.
        storage: where runs are kept, for a `models:/` or `runs:/` URI without MLFLOW_TRACKING_URI.

    Raises:
        ModelError: no such model, or a file that is missing or damaged.
        StorageError: MLflow or the storage cannot be reached.
    """
    folder = tempfile.TemporaryDirectory(prefix="glioray-model-")
    text = str(uri)
    if text.startswith(("models:", "runs:")):
        with use_tracking(storage_uri(storage)):
            package = open_package(resolve_version(text), Path(folder.name))
    else:
        package = open_package(text, Path(folder.name))
    return LoadedModel(package, folder, device)


def resolve_model(uri: str | None) -> str:
    """The version that a model's URI stands for now.

    Raises:
        UsageError: it is not given.
        ModelError: there is no such model.
    """
    if not uri:
        raise UsageError(
            "no model given; give --model, such as models:/glioray-unet@champion or a run's folder"
        )
    return resolve_version(uri)


def resolve_members(models: Sequence[str], *, checkpoints: bool) -> list[str]:
    """The versions that the members of an ensemble stand for now.

    Args:
        models: their URIs.
        checkpoints: the URIs are runs' folders; every checkpoint that was kept there is a member.

    Raises:
        UsageError: none is given, one is given twice, or one is not a run's folder where that is expected.
        ModelError: there is no such model, or a run has no checkpoint.
    """
    if not models:
        raise UsageError("no model given; give --model once for each member, such as a run's folder")
    # One folder has many spellings, and its model would count twice.
    members = [resolve_version(str(model_source(uri, "--model"))) for uri in models]
    if checkpoints:
        members = [uri for run in members for uri in _kept_checkpoints(run)]
    twice = [uri for uri in members if members.count(uri) > 1]
    if twice:
        raise UsageError(f"'{twice[0]}' is given twice; give each member once")
    return members


def _kept_checkpoints(run: str) -> list[str]:
    if run.startswith(("models:", "runs:")):
        raise UsageError(
            f"'{run}' is not a run's folder, where checkpoints lie; give that, or leave out --checkpoints"
        )
    storage = open_storage(run)
    kept = kept_folders(storage)
    if not kept:
        raise ModelError(f"'{storage.uri}' holds no checkpoint; give the folder of a run that saved some")
    return [join_uri(storage.uri, folder) for folder in kept]


def resolve_registered(uri: str | None, name: str | None) -> tuple[str, str]:
    """Name and version of a registered model; a run's model is registered first.

    Args:
        uri: of the model.
        name: to register a run's model under; by default its task's own.

    Raises:
        UsageError: a folder: only the model of a run can be registered.
        ModelError: there is no such model, or a run's model must not be promoted.
    """
    if not uri:
        raise UsageError("no model given; give --model, such as models:/glioray-unet/3 or runs:/ID/model")
    if uri.startswith("runs:/"):
        uri = _register_run(uri, name)
    if not uri.startswith("models:/"):
        raise UsageError(f"'{uri}' is not a registered model; give models:/NAME/VERSION or runs:/ID/model")
    found, _, version = resolve_version(uri).removeprefix("models:/").rpartition("/")
    return found, version


def _register_run(uri: str, name: str | None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        package = open_package(uri, Path(folder))
    task, run_id = package.task, uri.removeprefix("runs:/").split("/")[0]
    tags = task.check_promotable(package.spec, uri)
    return register_model(name or task.registered_name, run_id, tags, purpose=task.purpose)
