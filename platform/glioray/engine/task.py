"""The contract of a task: all that the engine asks of what is learned.

A task is one folder below `glioray.tasks` and one line in `glioray.tasks.TASKS`. Its class has no state: one
instance is made where it is needed, and travels to workers by reference. The engine (the loop, checkpoints, Ray,
MLflow) calls what is declared here and nothing else, so that a further task changes no engine file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from glioray.config import TaskConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from glioray.cases.casefiles import CaseFiles
    from glioray.cases.load import Case
    from glioray.cases.manifest import CaseEntry, Manifest
    from glioray.engine.collectives import Ranks
    from glioray.engine.comparison import Comparison
    from glioray.engine.loop import Feed, Learner
    from glioray.engine.promotion import Outcome
    from glioray.engine.run import Fill, RunPlan
    from glioray.engine.search import Search
    from glioray.engine.serving import Endpoint, Routes

History = Sequence[Mapping[str, float]]
"""The metrics of each validation of a run so far, in order."""


class Spec(Protocol):
    """The content of `model.json`: a model without its weights.

    A spec may state `train_images` too: the digests of the images it was trained on (`CaseEntry.image_digests`), so
    that they do not evaluate it under other names.

    Attributes:
        config: the whole config of the run that trained it.
        train_patients: patients whose cases it was trained on; they must not evaluate it.
        manifest_hash: of the data it was trained on.
        metrics: of its last validation.
    """

    @property
    def config(self) -> Any: ...

    @property
    def train_patients(self) -> tuple[str, ...]: ...

    @property
    def manifest_hash(self) -> str: ...

    @property
    def metrics(self) -> dict[str, float]: ...

    def to_json(self) -> str:
        """The text of `model.json`; its "format" names the task it belongs to."""


class Model(Protocol):
    """A trained model in memory, on one device; safe to call from one thread at a time."""

    @property
    def spec(self) -> Any: ...

    def predict(self, case: Case) -> Any:
        """The model's answer to one case: what that is, is the task's."""


class LabellingSpec(Spec, Protocol):
    """A model that labels voxels, as other tasks may use it; its config has `preprocess`.

    Attributes:
        regions: of WT, TC and ET, those that its training masks labelled; its labels say nothing of the others.
    """

    @property
    def regions(self) -> tuple[str, ...]: ...


class LabellingModel(Protocol):
    """A model of a task whose `output` is "labels"."""

    @property
    def spec(self) -> Any: ...

    def predict(self, case: Case) -> NDArray[np.uint8]:
        """(X, Y, Z) internal labels (`cases.labels.LABELS`) of a case, RAS+, in its own voxels.

        Raises:
            ModelError: the case's voxels differ too much from those of the training.
            CaseError: the case holds no brain.
        """


@dataclass(frozen=True)
class Prepared:
    """One rank's part of a training run.

    Attributes:
        learner: what the loop drives.
        feed: this rank's batches.
        figures: by their path in MLflow, from the metrics of all validations so far; each replaces the one before.
            Called on the first rank only.
        series: figures of the latest validation, by name; MLflow keeps one for each validation. Called on the first
            rank only.
        left_out: case id -> why it can no longer be decoded, of the cases that the run goes without; equal on all ranks.
    """

    learner: Learner
    feed: Feed
    figures: Callable[[History], Mapping[str, Figure]]
    series: Callable[[], Mapping[str, Figure]] = dict
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FilesModel:
    """A model that answers files with files: what MLflow's python_function of it does.

    Attributes:
        load: "module:name" of a class or function that takes a package's folder and returns a callable. That takes a
            mapping of files, by name, and the options by keyword, and returns a mapping of files.
        inputs: names of the files -> whether each must be there.
        outputs: names of the files that are returned.
        options: default by name.
    """

    load: str
    inputs: Mapping[str, bool]
    outputs: tuple[str, ...]
    options: Mapping[str, str | float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Export:
    """A model as MLflow logs it, beside its package.

    Attributes:
        net: the network with its weights; (B, C, H, W) to (B, K, H', W').
        example: an input (B, C, H, W) of the size that the model is for; its values do not matter.
        artifacts: further JSON values of the run, by path.
        files: how the model answers files; None where its python_function takes arrays, as the network does.
        cases: metrics of the last validation by case id, then by region or modality, for the model's card.
    """

    net: torch.nn.Module
    example: torch.Tensor
    artifacts: Mapping[str, Any] = field(default_factory=dict)
    files: FilesModel | None = None
    cases: Mapping[str, dict[str, dict[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelPackage:
    """A model's package in a local folder.

    Attributes:
        task: the task that its format names.
        folder: of `model.safetensors` and `model.json`.
        spec: its description.
        uri: where it came from, as errors and answers name it.
    """

    task: Task
    folder: Path
    spec: Any
    uri: str


@dataclass(frozen=True)
class Verdict:
    """What the metrics of a run's last validation say of its model.

    Attributes:
        answer: added to the JSON answer of the job.
        is_rejected: whether the model is unusable, such as a collapsed generator; the job then fails.
    """

    answer: Mapping[str, Any] = field(default_factory=dict)
    is_rejected: bool = False


class Task(Protocol):
    """A kind of model: how it is trained, evaluated, searched and served.

    Attributes:
        name: in `glioray.tasks.TASKS`, and `task` of its configs.
        package_format: "format" in the `model.json` of its models.
        registered_name: the registered model that its jobs use by default.
        purpose: what such a registered model says of itself in MLflow.
        output: what its models make of a case: "labels" (a mask) or "images" (a case).
        config_type: the class of its configs.
        recipes: functions that build a config, by name; names are unique over all tasks.
        default_recipe: the recipe of a request that names the task alone.
        comparison: how runs of several configs are judged, ranked and reported.
        search: what a search varies and compares.
    """

    name: str
    package_format: str
    registered_name: str
    purpose: str
    output: Literal["labels", "images"]
    config_type: type[TaskConfig]
    recipes: Mapping[str, Callable[[], Any]]
    default_recipe: str
    comparison: Comparison
    search: Search

    def configure(self, config: Any, short: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
        """The config with what a request overrides, all at once.

        Args:
            config: of the recipe.
            short: fields of the request that only this task knows, such as `net` or `pretrained`; those not given
                are absent.
            settings: by dotted name; they take precedence over `short`.

        Raises:
            UsageError: a setting that does not exist, or a value that is not allowed.
        """

    def check(self, config: Any) -> None:
        """Fail fast, before Ray starts, on networks, losses or weights that cannot be built or found.

        Raises:
            UsageError: names the setting.
        """

    def complete(self, plan: RunPlan) -> RunPlan:
        """The plan with the settings that follow from its data, such as class weights."""

    def cases(self, plan: RunPlan) -> tuple[list[CaseEntry], list[CaseEntry]]:
        """The cases that a run trains on, and those that it validates on: all that `prepare` brings into the cache.

        Raises:
            DataError: there is nothing to validate on where the task needs that.
        """

    def prepare(self, plan: RunPlan, ranks: Ranks, fill: Fill, device: torch.device) -> Prepared:
        """Build this rank's learner and batches.

        Args:
            plan: the run, after `complete`.
            ranks: all ranks of the run, and which one this is.
            fill: brings cases into this node's slice cache.
            device: of this rank.

        Raises:
            DataError: there is nothing to train on, or nothing to validate on where the task needs that, or too many
                cases can no longer be decoded.
        """

    def parse_spec(self, text: str | bytes) -> Any:
        """Parse the `model.json` of one of its models.

        Raises:
            ModelError: another format, or settings that this version does not know.
        """

    def load(self, folder: Path, device: str | None = None) -> Any:
        """Load a model from its package: on the given device, or on a GPU where there is one.

        Raises:
            ModelError: a file is missing or damaged, or the weights do not fit.
        """

    def export(self, folder: Path) -> Export:
        """Prepare a package for MLflow.

        Raises:
            ModelError: as `load`.
        """

    def verdict(self, metrics: Mapping[str, float]) -> Verdict:
        """What the metrics of a run's last validation say of its model."""

    def check_promotable(self, spec: Any, name: str) -> dict[str, str]:
        """Refuse a model that must not be registered or become champion; returns tags of its registered version.

        Args:
            spec: of the model.
            name: of the model in a message.

        Raises:
            ModelError: such as a generator that collapsed.
        """

    def evaluate(
        self,
        package: ModelPackage,
        manifest: Manifest,
        *,
        split: str,
        segmenter: ModelPackage | None = None,
        out: str | None = None,
        metrics: str = "brats2023",
        resample: bool = False,
    ) -> dict[str, Any]:
        """Evaluate a model on whole cases, all over the cluster; Ray must be up.

        Args:
            package: the model.
            manifest: the data.
            split: "unseen" (cases of patients that no model involved was trained on), or as `Manifest.select` takes
                it.
            segmenter: for a task whose output is "images", a model that labels the images that are made; None to
                evaluate the images alone. None for other tasks.
            out: a folder or `s3://` URI for files to read, such as evaluation.json and evaluation.md.
            metrics: of `evaluation.RULES`, by which lesions of masks are evaluated.
            resample: label cases whose voxel size is far from that of training, by resampling them and the result back;
                False for a task whose output is "images".

        Returns:
            The JSON answer of jobs/evaluate.py: among others "model", "split", "mean", "intervals", "cases", "failed",
            with `out` "files", and "exit_code". Beside it, not as JSON, "report": the files to read, path -> bytes.

        Raises:
            DataError: no case is left, or none could be evaluated.
            UsageError: no such split, or a segmenter that cannot label what the model makes.
        """

    def evaluate_case(
        self, model: Any, case: Case, *, metrics: str = "brats2023", resample: bool = False
    ) -> dict[str, dict[str, float]]:
        """Metrics of one case in memory, by region or modality.

        Args:
            model: of `load`.
            case: with a mask where the task needs one.
            metrics: as for `evaluate`.
            resample: as for `evaluate`.

        Raises:
            CaseError: the case has no mask, or holds no brain.
        """

    def predict(
        self,
        package: ModelPackage,
        data: str,
        cases: Sequence[CaseFiles],
        out: str,
        *,
        labels: str | None = None,
        with_uncertainty: bool = False,
        resample: bool = False,
        on_case: Callable[[dict[str, Any]], None] | None = None,
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Write a mask for each case, all over the cluster; Ray must be up.

        Cases whose masks an earlier job left in `out` are not done again, where `engine.case_records` says that the same
        model made them of the same files with the same options.

        Args:
            package: the model.
            data: the URI below which the cases lie.
            cases: their files.
            out: a folder or `s3://` URI.
            labels: a label convention (`cases.labels.find_convention`); by default that of the case's own mask or layout.
            with_uncertainty: write each case's uncertainty too.
            resample: as for `evaluate`.
            on_case: is called with each case's {"case_id", "mask" or "error"} as it comes, first with those that are
                there; an exception that it raises ends the work.

        Returns:
            Case id -> URI of the mask, also of those that were there, and case id -> reason of the cases that failed.

        Raises:
            ModelError: models of this task make no masks.
        """

    def compare_to_champion(self, packages: Mapping[str, ModelPackage], manifest: Manifest | None) -> Outcome:
        """Decide whether a candidate may replace the champion; see `engine.promotion.compare_to_champion`.

        Args:
            packages: of this task: the "candidate" and, where there is one, the "champion".
            manifest: evaluate both now, on those of these cases that neither was trained on; None to compare the
                metrics of their last validations.

        Raises:
            ModelError: the candidate must not be promoted.
            UsageError: they cannot be compared as they are.
            DataError: too few cases are left to evaluate on.
        """

    def routes(self, endpoint: Endpoint) -> Routes:
        """Make the HTTP routes of a served model, with FastAPI.

        Args:
            endpoint: the model that is served, the queue, and a router with the endpoint's limits.
        """
