"""The super-resolution task: what the engine calls."""

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
from glioray.errors import ModelError, UsageError
from glioray.losses.perceptual import PerceptualLoss
from glioray.nets.gan import build_discriminator, build_generator
from glioray.nets.gan.discriminators import MIN_SIZE
from glioray.tasks.superres.case_metrics import evaluate_case
from glioray.tasks.superres.collapse import describe_evaluation, fault_word
from glioray.tasks.superres.comparison import SuperResComparison
from glioray.tasks.superres.config import COLLAPSE_COMPONENTS, DEAD, GanConfig
from glioray.tasks.superres.evaluation import evaluate_superres
from glioray.tasks.superres.export import export_superres
from glioray.tasks.superres.extractors import resolve_extractor
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.package import FORMAT, SuperResSpec, parse_superres
from glioray.tasks.superres.promotion import compare_superres
from glioray.tasks.superres.recipes import GAN_RECIPES
from glioray.tasks.superres.search import SuperResSearch
from glioray.tasks.superres.training import prepare_gan, run_cases


class SuperResTask:
    """Increases the resolution of slices: a generator trained by pixels, then against a discriminator."""

    name = "superres"
    package_format = FORMAT
    registered_name = "glioray-superres"
    purpose = "Super-resolution of brain MRI"
    output: Literal["labels", "images"] = "images"
    config_type = GanConfig
    recipes = GAN_RECIPES
    default_recipe = "mri_small"
    comparison: Comparison = SuperResComparison()
    search: Search = SuperResSearch()

    def configure(
        self, config: GanConfig, short: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> GanConfig:
        paths = {"segmenter": "use.segmenter", "pretrained": "pretrain.source", "use_weight": "use.weight"}
        own = {paths[name]: value for name, value in short.items()}
        if "pretrained" in short:
            # From a trained generator, a run is adversarial from its first step unless a setting says otherwise.
            own["pretrain.share"] = 0.0
        return with_settings(config, own | dict(settings))

    def check(self, config: GanConfig) -> None:
        check_gan_buildable(config)

    def complete(self, plan: RunPlan) -> RunPlan:
        return plan

    def cases(self, plan: RunPlan) -> tuple[list[CaseEntry], list[CaseEntry]]:
        return run_cases(plan)

    def prepare(self, plan: RunPlan, ranks: Ranks, fill: Fill, device: torch.device) -> Prepared:
        return prepare_gan(plan, ranks, fill, device)

    def parse_spec(self, text: str | bytes) -> SuperResSpec:
        return parse_superres(text)

    def load(self, folder: Path, device: str | None = None) -> SuperResolver:
        return SuperResolver.load(folder, device)

    def export(self, folder: Path) -> Export:
        return export_superres(folder)

    def verdict(self, metrics: Mapping[str, float]) -> Verdict:
        if "collapse_score" not in metrics:
            return Verdict({"collapse": "unjudged", "reason": ""})
        reason = COLLAPSE_COMPONENTS[int(metrics["collapse_reason"])]
        if metrics["is_collapsed"]:
            return Verdict({"collapse": fault_word(reason), "reason": reason}, is_rejected=True)
        return Verdict({"collapse": "healthy", "reason": reason if metrics["collapse_score"] > 0 else ""})

    def check_promotable(self, spec: SuperResSpec, name: str) -> dict[str, str]:
        check_healthy(spec, name)
        return {"collapse": spec.collapse, "recipe": spec.config.recipe}

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
        return evaluate_superres(package, manifest, split=split, segmenter=segmenter, out=out)

    def evaluate_case(
        self, model: SuperResolver, case: Case, *, metrics: str = "brats2023", resample: bool = False
    ) -> dict[str, dict[str, float]]:
        return evaluate_case(model, case).images

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
        raise ModelError(
            f"the model {package.uri} makes images, expected one that labels voxels; send its cases to the endpoint's "
            "/v1/superresolve"
        )

    def compare_to_champion(self, packages: Mapping[str, ModelPackage], manifest: Manifest | None) -> Outcome:
        return compare_superres(packages, manifest)

    def routes(self, endpoint: Endpoint) -> Routes:
        # Training needs no web framework.
        from glioray.tasks.superres.routes import make_routes

        return make_routes(endpoint)


def check_gan_buildable(config: GanConfig) -> None:
    """Fail fast on networks or extractors that cannot be built.

    Raises:
        UsageError: names the setting.
    """
    channels, hr, lr = config.num_channels, config.degrade.hr_size, config.degrade.lr_size
    try:
        with torch.device("meta"), torch.no_grad():
            generator, critic = config.generator, config.discriminator
            net = build_generator(generator.name, channels=channels, **generator.options)
            net(torch.zeros(2, channels, lr, lr), (hr, hr))
            built = build_discriminator(critic.name, channels=channels, **critic.options)
        # Spectral norm cannot run on the meta device, so the size is checked here.
        smallest = getattr(built, "min_size", MIN_SIZE)
        if hr < smallest:
            raise ValueError(
                f"discriminator '{critic.name}' sees {hr} pixels a side and needs {smallest} or more"
            )
    except ValueError as error:
        raise UsageError(f"{error}; see --set generator, discriminator and degrade") from error
    loss, judge = config.loss, config.collapse
    # A U-Net's encoder comes from the registry, which only the run itself asks.
    if loss.perceptual_weight > 0 and not (loss.extractor == "unet" and loss.extractor_weights):
        extractor = resolve_extractor(loss.extractor, weights=loss.extractor_weights)
        if extractor is not None and loss.layers:
            try:
                PerceptualLoss(extractor.features, loss.layers)
            except ValueError as error:
                raise UsageError(f"loss.{error}") from error
    if judge.judge != "auto":
        resolve_extractor(judge.judge, weights=judge.judge_weights)


def check_healthy(spec: SuperResSpec, name: str) -> None:
    """Refuse a model whose training ended collapsed or dead, or that was never scored.

    Raises:
        ModelError: says why.
    """
    if spec.collapse == "collapsed":
        score = spec.metrics.get("collapse_score")
        shown = "" if score is None else f", score {score:.2f}"
        raise ModelError(
            f"{name} has collapsed ({spec.reason}{shown}) and cannot be promoted; train it again with a lower "
            "optim_g.lr, or promote another"
        )
    if spec.collapse == DEAD:
        raise ModelError(
            f"{name} is dead ({describe_evaluation(spec.metrics)}) and cannot be promoted; train it again with a lower "
            "optim_g.lr, or promote another"
        )
    if spec.collapse != "healthy":
        raise ModelError(
            f"{name} was never scored for collapse and cannot be promoted; train it up to a validation"
        )
