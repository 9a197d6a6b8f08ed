"""The segmentation task: what the engine calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from glioray.cases.casefiles import CaseFiles
from glioray.cases.load import Case
from glioray.cases.manifest import CaseEntry, Manifest
from glioray.config import with_settings
from glioray.engine.collectives import Ranks
from glioray.engine.comparison import Comparison
from glioray.engine.promotion import Outcome
from glioray.engine.run import Fill, RunPlan
from glioray.engine.search import Search
from glioray.engine.serving import Endpoint, Routes
from glioray.engine.task import Export, ModelPackage, Prepared, Verdict
from glioray.errors import UsageError
from glioray.losses import build_loss
from glioray.nets import build_net
from glioray.tasks.segmentation.balance import check_balance
from glioray.tasks.segmentation.case_metrics import evaluate_case
from glioray.tasks.segmentation.comparison import SegmentationComparison
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.entrants import entrant_config, product_entrants
from glioray.tasks.segmentation.evaluation import evaluate_segmentation
from glioray.tasks.segmentation.files import describe_files
from glioray.tasks.segmentation.package import FORMAT, ModelSpec, parse_spec, read_package
from glioray.tasks.segmentation.prediction import predict_cases
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.segmentation.promotion import compare_segmentation
from glioray.tasks.segmentation.recipes import RECIPES
from glioray.tasks.segmentation.search import SegmentationSearch
from glioray.tasks.segmentation.training import balanced, prepare_segmentation, run_cases


class SegmentationTask:
    """Labels every voxel of a case: whole tumour, tumour core, enhancing tumour."""

    name = "segmentation"
    package_format = FORMAT
    registered_name = "glioray-unet"
    purpose = "Brain-tumour segmentation"
    output: Literal["labels", "images"] = "labels"
    config_type = RunConfig
    recipes = RECIPES
    default_recipe = "unet_small"
    comparison: Comparison = SegmentationComparison()
    search: Search = SegmentationSearch()

    def configure(
        self, config: RunConfig, short: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> RunConfig:
        parts = [[short[name]] if name in short else [] for name in ("net", "loss", "optimizer")]
        return with_settings(entrant_config(config, product_entrants(*parts)[0]), settings)

    def check(self, config: RunConfig) -> None:
        check_buildable(config)

    def complete(self, plan: RunPlan) -> RunPlan:
        return balanced(plan)

    def cases(self, plan: RunPlan) -> tuple[list[CaseEntry], list[CaseEntry]]:
        return run_cases(plan)

    def prepare(self, plan: RunPlan, ranks: Ranks, fill: Fill, device: torch.device) -> Prepared:
        return prepare_segmentation(plan, ranks, fill, device)

    def parse_spec(self, text: str | bytes) -> ModelSpec:
        return parse_spec(text)

    def load(self, folder: Path, device: str | None = None) -> Predictor:
        return Predictor.load(folder, device)

    def export(self, folder: Path) -> Export:
        spec, net = read_package(folder)
        # The example has the slices' size: the export keeps guards about it (such as whether the network pads), so one
        # made from smaller images may refuse the model's own slices.
        preprocess = spec.config.preprocess
        example = torch.zeros(1, preprocess.num_channels, *preprocess.size)
        cases = {
            case_id: {region: {"dice": value} for region, value in dice.items()}
            for case_id, dice in spec.val_cases.items()
        }
        artifacts = {"validation_cases.json": spec.val_cases}
        return Export(net, example, artifacts, files=describe_files(spec), cases=cases)

    def verdict(self, metrics: Mapping[str, float]) -> Verdict:
        return Verdict()

    def check_promotable(self, spec: ModelSpec, name: str) -> dict[str, str]:
        return {}

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
        return evaluate_segmentation(package, manifest, split=split, out=out, rule=metrics, resample=resample)

    def evaluate_case(
        self, model: Predictor, case: Case, *, metrics: str = "brats2023", resample: bool = False
    ) -> dict[str, dict[str, float]]:
        return evaluate_case(model, case, rule=metrics, resample=resample)[0]

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
        return predict_cases(
            package.folder,
            data,
            cases,
            out,
            labels=labels,
            with_uncertainty=with_uncertainty,
            resample=resample,
            on_case=on_case,
        )

    def compare_to_champion(self, packages: Mapping[str, ModelPackage], manifest: Manifest | None) -> Outcome:
        return compare_segmentation(packages, manifest)

    def routes(self, endpoint: Endpoint) -> Routes:
        # Training needs no web framework.
        from glioray.tasks.segmentation.routes import make_routes

        return make_routes(endpoint)


def check_buildable(config: RunConfig) -> None:
    """Fail fast on a network or loss that cannot be built.

    Raises:
        UsageError: names the setting.
    """
    try:
        with torch.device("meta"):
            build_net(config.net.name, in_channels=1, out_channels=1, **config.net.options)
        build_loss(
            config.loss.name,
            target=config.loss.target,
            side_weights=config.loss.side_weights,
            presence_weight=config.loss.presence_weight,
            **config.loss.options,
        )
    except ValueError as error:
        raise UsageError(f"{error}; see --set net.name, net.options, loss.name and loss.options") from error
    check_balance(config.loss)
