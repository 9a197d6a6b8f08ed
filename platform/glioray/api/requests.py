"""The requests of the verbs: one frozen, validated type for each; its fields are the flags of the jobs.

A field's description is the help text of its flag and its line in the reference. Importing this module starts
nothing heavy: no torch, no Ray.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from glioray.cases.conventions import CONVENTIONS, EXPECTED_LABELS, find_convention
from glioray.errors import UsageError
from glioray.serialization import explain


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Uri = Annotated[str, BeforeValidator(_as_text)]
"""A folder (text or `pathlib.Path`), `s3://bucket/prefix`, or a model's URI."""

Uris = Annotated[tuple[Uri, ...], Field(strict=False)]

SEPARATED_BY_COMMAS = "separated by commas"

Names = Annotated[tuple[str, ...], Field(strict=False), SEPARATED_BY_COMMAS]
"""On the command line one flag with commas; a name may have options, as in `unetpp:width=16,norm=batch`."""

Texts = Annotated[tuple[str, ...], Field(strict=False)]
"""On the command line a flag that may be repeated."""

Count = Annotated[int, Field(ge=1)]


def _as_model_name(value: str) -> str:
    if not value.strip(" .") or {"/", ":"} & set(value):
        raise ValueError("a name without '/' and ':'")
    return value


ModelName = Annotated[str, AfterValidator(_as_model_name)]
"""Of a registered model, as MLflow takes it."""


def _as_shares(value: tuple[float, float, float]) -> tuple[float, float, float]:
    if min(value) < 0 or not math.isclose(sum(value), 1.0, abs_tol=1e-6):
        raise ValueError("three numbers of at least 0 that add up to 1")
    return value


Shares = Annotated[tuple[float, float, float], Field(strict=False), AfterValidator(_as_shares)]
"""Of train, val and test."""

Settings = Mapping[str, Any]
"""Values by dotted setting, such as {"optim.lr": 0.001}."""

Points = Annotated[tuple[Settings, ...], Field(strict=False)]

_MODEL_FORMS = (
    "starter, models:/NAME@alias, models:/NAME/VERSION, runs:/ID/model, a run's folder, or a folder, zip file or https "
    "address that share.py wrote"
)


def _as_convention(name: str) -> str:
    try:
        return find_convention(name).name
    except UsageError:
        raise ValueError(EXPECTED_LABELS) from None


Labels = Annotated[str, AfterValidator(_as_convention)]
"""A name of `cases.labels.CONVENTIONS`, or what each number marks, such as 1=ed,2=et,3=ncr."""


def split_workers(value: int | str) -> tuple[int | None, int]:
    """The fewest and the most ranks of N (None and N) or MIN:MAX.

    Raises:
        ValueError: it is neither.
    """
    fewest, _, most = str(value).rpartition(":")
    if not most.isdigit() or (fewest and not fewest.isdigit()) or not 1 <= int(fewest or 1) <= int(most):
        raise ValueError("a number of at least 1, or two such as 2:8")
    return int(fewest) if fewest else None, int(most)


def _as_workers(value: int | str) -> int | str:
    split_workers(value)
    return value


WorkerRange = Annotated[int | str, AfterValidator(_as_workers)]
"""A number of ranks, or the fewest and the most as in "2:8"."""


EvaluationRule = Literal["brats2023", "brats2026"]
"""`engine.evaluation.RULES`."""


def as_flag(default: Any, description: str, metavar: str = "", only: str = "", **limits: Any) -> Any:
    """A field and its flag.

    Args:
        default: of the field.
        description: help text.
        metavar: stands for the value in the help text.
        only: the task whose recipes the field belongs to; empty for every task.
        **limits: of pydantic's `Field`, such as `ge`.
    """
    extra: dict[str, Any] = {"metavar": metavar, "only": only}
    return Field(default, description=description, json_schema_extra=extra, **limits)


class Request(BaseModel):
    """Base of all requests: frozen, without unknown fields, without conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Build a request.

        Raises:
            UsageError: an unknown field, or a value that is not allowed.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            raise UsageError(explain(error, cls)) from None


class _Stored(Request):
    storage: Uri | None = as_flag(
        None, "where runs keep their checkpoints (default: GLIORAY_STORAGE or ~/glioray)", "URI"
    )


class _Tracked(_Stored):
    experiment: str = as_flag("glioray", "MLflow experiment", "NAME")


class _Data(Request):
    data: Uri | None = as_flag(
        None, "folder, s3://bucket/prefix, or a manifest.json by prepare (default: GLIORAY_DATA)", "URI"
    )


class _Labelled(_Data):
    labels: Labels | None = as_flag(
        None,
        f"what the numbers in the masks mark: {', '.join(CONVENTIONS)}, or such as 1=ed,2=et,3=ncr (default: what names "
        "and numbers tell; asked for where several fit)",
        "NAME",
    )


class _Configured(_Tracked, _Labelled):
    """The fields of all requests that train."""

    recipe: str | None = as_flag(
        None,
        "recipe to start from, such as unet_small or mri_small; a name that does not exist lists them all",
        "NAME",
    )
    task: str | None = as_flag(None, "task, where no recipe is named", "NAME")
    segmenter: Uri | None = as_flag(
        None,
        "segmentation model that evaluates the end of a run: its Dice on super-resolved images, beside that on "
        "bicubic and on real ones",
        "URI",
        only="superres",
    )
    run_name: str | None = as_flag(None, "name of the run; the same name resumes it", "NAME")
    workers: WorkerRange | None = as_flag(
        None,
        "data-parallel ranks of a training (default: the recipe's); with MIN:MAX it begins with at least MIN, goes on "
        "with them when nodes are lost and takes in those that come",
        "N|MIN:MAX",
    )
    worker_cpus: float | None = as_flag(
        None, "CPUs that each rank reserves (default: an equal part of the cluster's)", "C", gt=0
    )
    worker_gpus: float | None = as_flag(
        None, "GPUs that each rank reserves (default: 1 where the cluster has any)", "G", ge=0
    )
    gpu_type: str | None = as_flag(
        None, "run on nodes whose label ray.io/accelerator-type is this, such as A100 or H200", "TYPE"
    )
    wait_minutes: float = as_flag(
        10.0, "minutes to wait for a cluster that has no room, such as one that grows with demand", "M", ge=0
    )
    seed: int | None = as_flag(None, "seed of weights, order and augmentation (default: the recipe's)", "S")
    fold: int | str | None = as_flag(
        None, "validate on fold K and train on the others; 'all' trains on every case", "K|all"
    )
    save_minutes: float = as_flag(
        5.0, "minutes between two saves of a training's state: what a run loses that dies", "M", gt=0
    )
    set: Settings = as_flag(
        {}, "override one setting of the recipe, such as optim.lr=0.001; may be repeated", "KEY=VALUE"
    )


class _Trained(_Configured):
    net: str | None = as_flag(
        None,
        "network in place of the recipe's, such as unetpp:width=32,deep_supervision=true",
        "NAME[:OPTION=VALUE,…]",
        only="segmentation",
    )
    loss: str | None = as_flag(
        None, "loss in place of the recipe's", "NAME[:OPTION=VALUE,…]", only="segmentation"
    )
    optimizer: str | None = as_flag(
        None,
        "optimiser in place of the recipe's, such as sgd:lr=0.01,schedule=poly",
        "NAME[:OPTION=VALUE,…]",
        only="segmentation",
    )
    pretrained: Uri | None = as_flag(
        None,
        "super-resolution model whose PSNR generator training starts from, in place of a stage of its own",
        "URI",
        only="superres",
    )
    max_epochs: int | None = as_flag(None, "epochs of a training; without --minutes, no time limit then", "N")
    minutes: float | None = as_flag(None, "training time in minutes; of a search, all trials together", "M")


class TrainRequest(_Trained):
    """Train one model by a recipe, tracked in MLflow; the same `run_name` resumes it."""


class TuneRequest(_Trained):
    """Search the settings of a recipe, and register the best model."""

    use_weight: float | None = as_flag(
        None,
        "weight of the segmenter's gain in Dice over bicubic images in the objective (default: 0)",
        "W",
        only="superres",
    )
    trials: Count = as_flag(4, "trials of the search", "N")
    concurrent: Count | None = as_flag(
        None, "trials at once (default: as many as there are CPUs or GPUs)", "N"
    )
    name: ModelName | None = as_flag(None, "registered model (default: the task's own name)", "NAME")
    mode: Literal["search", "pareto", "pbt"] = as_flag(
        "search",
        "search (one objective, with ASHA), pareto (quality against PSNR gain, or Dice against the arithmetic of a "
        "slice) or pbt (a population, whose budget is in epochs)",
        "MODE",
    )
    point: Points = as_flag(
        (),
        "a trial to begin with: its differences from the recipe, such as optim.lr=0.01; may be repeated",
        "KEY=VALUE,…",
    )
    search: Texts | Settings = as_flag(
        (),
        "search a setting beside, or in place of its entry in, the recipe's own space: log:LOW:HIGH, LOW:HIGH, "
        "int:LOW:HIGH or choices separated by commas, such as optim.lr=log:1e-4:1e-2 or net.options.width=16,32,48; "
        "'none' drops the recipe's own space; may be repeated",
        "KEY=VALUES",
    )


class CompareRequest(_Configured):
    """Compare entrants around a recipe: equal budget, same data and seeds, one ranking."""

    out: Uri | None = as_flag(None, "where the report is written too: a folder or s3://bucket/prefix", "URI")
    nets: Names = as_flag(
        (), "networks; 'recipe' is the recipe's own", "A,B:OPTION=VALUE,…", only="segmentation"
    )
    losses: Names = as_flag((), "losses (default: the recipe's)", "A,B,…", only="segmentation")
    optimizers: Names = as_flag(
        (), "optimisers (default: the recipe's)", "A,B:lr=0.01,…", only="segmentation"
    )
    width: Count | None = as_flag(
        None, "width of every network, to cut a study down", "W", only="segmentation"
    )
    entrants: Names = as_flag(
        (),
        "super-resolution recipes, with settings of their own (default: srgan_small,esrgan_small,"
        "esrgan_small_rmsprop; with --recipe srgan_goat the rows of its study)",
        "A,B:KEY=VALUE,…",
        only="superres",
    )
    folds: int | None = as_flag(
        None,
        "folds of the cross-validation, without the patients of a manifest's test split (default: 5)",
        "K",
        ge=2,
    )
    seeds: Count | None = as_flag(
        None,
        "runs of each entrant (on each fold), each from another seed (default: 1 with folds, 3 without)",
        "N",
    )
    minutes_each: float | None = as_flag(None, "budget of each run, in minutes; validation counts", "M")
    slices_each: Count | None = as_flag(None, "budget of each run, in training slices", "N")
    concurrent: Count | None = as_flag(None, "runs at once (default: as many as there are CPUs or GPUs)", "N")


class EvaluateRequest(_Tracked, _Labelled):
    """Evaluate a model on a data set; means over cases with 95 % intervals by resampling patients."""

    model: Uri | None = as_flag(None, _MODEL_FORMS, "URI")
    out: Uri | None = as_flag(None, "where results are written: a folder or s3://bucket/prefix", "URI")
    split: Literal["unseen", "train", "val", "test", "labelled", "all"] = as_flag(
        "unseen", "unseen (cases of patients it was not trained on), train, val, test or labelled", "SPLIT"
    )
    segmenter: Uri | None = as_flag(
        None,
        "segmentation model that evaluates a super-resolution model by use, or none (default: the champion of "
        "glioray-unet, where there is one)",
        "URI",
    )
    metrics: EvaluationRule = as_flag(
        "brats2023",
        "rule by which lesions of masks are evaluated: brats2023, or brats2026 to add the metrics of BraTS 2026 (needs "
        "panoptica)",
        "RULE",
    )
    resample: bool = as_flag(
        False,
        "resample cases whose voxel size is far from that of training, and the result back; they fail otherwise",
    )


class PredictRequest(_Stored, _Data):
    """Write the model's mask of every case, on the case's own grid and in its own label convention."""

    model: Uri | None = as_flag(None, _MODEL_FORMS, "URI")
    out: Uri | None = as_flag(None, "where results are written: a folder or s3://bucket/prefix", "URI")
    labels: Labels | None = as_flag(
        None,
        f"numbers of the labels in the masks: {', '.join(CONVENTIONS)}, or such as 1=ed,2=et,3=ncr (default: those of "
        "the case's own mask or collection)",
        "NAME",
    )
    uncertainty: bool = as_flag(
        False, "write CASE_uncertainty.nii.gz too: 0 (sure) to 1, the entropy of the prediction"
    )
    resample: bool = as_flag(
        False,
        "resample cases whose voxel size is far from that of training, and the result back; they fail otherwise",
    )


class PrepareRequest(_Tracked, _Labelled):
    """Check every case and write a manifest: checksums, patient-level splits, label statistics."""

    out: Uri | None = as_flag(None, "where results are written: a folder or s3://bucket/prefix", "URI")
    seed: int | None = as_flag(None, "seed of the split, with --shuffle (default: 0)", "S")
    ratios: Shares = as_flag((0.8, 0.2, 0.0), "shares of train, val and test among patients", "SHARE")
    folds: int = as_flag(5, "folds for cross-validation", "K", ge=2)
    shuffle: bool = as_flag(False, "split in a seeded order rather than in the order of ids")
    report: bool = as_flag(
        False, "write report.html too: labels, areas, intensities, pictures; and log them to MLflow"
    )
    recipe: str | None = as_flag(
        None, "recipe whose preprocessing the report shows (default: unet_small)", "NAME"
    )
    save_minutes: float = as_flag(
        5.0, "minutes between two saves of a training's state: what a run loses that dies", "M", gt=0
    )
    set: Settings = as_flag(
        {}, "override one setting of that recipe, such as preprocess.clahe=0.02; may be repeated", "KEY=VALUE"
    )


class PromoteRequest(_Stored, _Labelled):
    """Make a model the champion if it beats the present one on the same cases."""

    model: Uri | None = as_flag(
        None, "models:/NAME/VERSION, models:/NAME@alias or runs:/ID/model, which is registered first", "URI"
    )
    name: ModelName | None = as_flag(
        None,
        "registered model, for a run's model (default: glioray-unet, or glioray-superres for super-resolution)",
        "NAME",
    )


class EnsembleRequest(_Tracked):
    """Join several segmentation models into one that averages their probabilities, and register it."""

    model: Uris = as_flag(
        (),
        "a member: models:/NAME@alias, models:/NAME/VERSION, runs:/ID/model or a run's folder; repeat for each",
        "URI",
    )
    checkpoints: bool = as_flag(
        False, "each --model is a run's folder; all checkpoints that it kept become members"
    )
    name: ModelName = as_flag("glioray-unet", "registered model", "NAME")
    run_name: str | None = as_flag(None, "name of the run", "NAME")


class ShareRequest(_Stored):
    """Write a model's package and its card to a place from which others load it."""

    model: Uri | None = as_flag(None, _MODEL_FORMS, "URI")
    out: Uri | None = as_flag(
        None, "a folder or s3://bucket/prefix for the model's files, or a file that ends in .zip", "URI"
    )
    title: str | None = as_flag(None, "heading of the card (default: the recipe)", "TEXT")
    licence: str | None = as_flag(
        None, "licence that the card states, such as cc-by-4.0 (default: none stated)", "NAME"
    )
    about: Uri | None = as_flag(
        None,
        "Markdown file for the card: the data with the attribution that they ask for, intended use, limits",
        "URI",
    )
    half: bool = as_flag(False, "store weights as 16-bit floats: half the size, and rounded to three digits")
    evaluation: Uris = as_flag(
        (), "Markdown page of evaluate.py or compare.py for the card; may be repeated", "URI"
    )


class CalibrateRequest(_Stored, _Labelled):
    """Check the bounds of the collapse score on your own data: planted collapses are found, healthy images are not."""

    model: Uri | None = as_flag(
        None,
        "super-resolution model whose generators are further healthy outputs; it brings its recipe",
        "URI",
    )
    out: Uri | None = as_flag(None, "where results are written: a folder or s3://bucket/prefix", "URI")
    recipe: str | None = as_flag(None, "super-resolution recipe (default: mri)", "NAME")
    seed: int | None = as_flag(None, "seed of the split, where the data have no manifest (default: 0)", "S")
    split: Literal["train", "val", "test", "labelled", "all"] = as_flag(
        "val", "cases to use: val, train, test, labelled or all", "SPLIT"
    )
    save_minutes: float = as_flag(
        5.0, "minutes between two saves of a training's state: what a run loses that dies", "M", gt=0
    )
    set: Settings = as_flag(
        {}, "override one setting of the recipe, such as collapse.threshold=0.4; may be repeated", "KEY=VALUE"
    )
