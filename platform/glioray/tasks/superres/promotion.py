"""A super-resolution model against the champion: neither may have collapsed, and quality decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glioray.cases.load import load_case
from glioray.cases.manifest import CaseEntry, Manifest
from glioray.engine.evaluation import files_of, patients_of, select_cases
from glioray.engine.promotion import CANDIDATE, CHAMPION, Outcome, check_same_cases, compare_scores
from glioray.engine.task import ModelPackage
from glioray.errors import ModelError, UsageError
from glioray.reports.case_metrics import CaseMetrics
from glioray.slices.preprocess import preprocess
from glioray.storage import open_storage
from glioray.tasks.superres.collapse import CollapseReport
from glioray.tasks.superres.evaluation import evaluate_cases
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.package import SuperResSpec
from glioray.tasks.superres.panel import pick_panel
from glioray.tasks.superres.panel_judge import PanelJudge
from glioray.tasks.superres.training import panel_cases


def compare_superres(packages: Mapping[str, ModelPackage], manifest: Manifest | None) -> Outcome:
    """Compare collapse scores and quality; see `engine.promotion.compare_to_champion`.

    Raises:
        ModelError: the candidate has collapsed, or its training was not checked for collapse.
        UsageError: the two do different things, or their recorded quality does not compare.
        DataError: no patient is new to both, or too few images are left for a panel.
        CaseError: a case of the panel cannot be used.
    """
    specs: dict[str, SuperResSpec] = {role: package.spec for role, package in packages.items()}
    packages[CANDIDATE].task.check_promotable(specs[CANDIDATE], f"the {CANDIDATE}")
    if CHAMPION in specs:
        _check_comparable(specs)
    if manifest is None:
        return compare_scores("quality", *_recorded_quality(specs))
    entries = select_cases(manifest, specs, labelled=False)
    reports = {
        role: report_collapse(package.folder, manifest.data, entries) for role, package in packages.items()
    }
    bad = [role for role, spec in specs.items() if reports[role].score >= spec.config.collapse.threshold]
    if CANDIDATE in bad:
        report = reports[CANDIDATE]
        raise ModelError(
            f"the {CANDIDATE} has collapsed on unseen cases ({report.reason}, score {report.score:.2f}) and cannot be "
            "promoted, although its training ended healthy; promote another"
        )
    # One distance for both, whatever each was judged by at its training.
    judge = specs[CANDIDATE].config
    results = {
        role: evaluate_cases(package.folder, None, manifest.data, entries, judge=judge)
        for role, package in packages.items()
    }
    images = {role: result.images for role, result in results.items()}
    check_same_cases(images)
    modalities = _common_modalities(images)
    quality = {
        role: float(np.mean([metrics[name]["quality"] for metrics in cases.values() for name in modalities]))
        if cases
        else None
        for role, cases in images.items()
    }
    answer = {
        "quality": quality,
        "collapse": {
            role: {"score": report.score, "reason": report.reason} for role, report in reports.items()
        },
        "judge": results[CANDIDATE].judge,
        "modalities": modalities,
        "cases": sorted(images[CANDIDATE]),
    }
    if not images[CANDIDATE]:
        raise UsageError("none of the unseen cases could be evaluated; the reasons are above")
    if CHAMPION in bad:
        return Outcome(wins=True, reason="the champion has collapsed on unseen cases", answer=answer)
    return compare_scores("quality", quality, answer)


def report_collapse(package: Path, data: str, entries: Sequence[CaseEntry]) -> CollapseReport:
    """Score the collapse of a model's last generator on a panel of these cases.

    Args:
        package: folder of the model.
        data: the URI below which the cases lie.
        entries: the cases.

    Raises:
        CaseError: a case cannot be used.
        DataError: the cases give too few images.
    """
    resolver = SuperResolver.load(package)
    config = resolver.spec.config
    picked = panel_cases(entries)
    storage = open_storage(data)
    stacks = [preprocess(load_case(storage, files), config.preprocess) for files in files_of(picked)]
    panel = pick_panel(stacks, patients_of(picked), config)
    judge = PanelJudge(panel, config)
    return judge.score(resolver.images(judge.lr, (panel.hr.shape[-2], panel.hr.shape[-1])))


def _check_comparable(specs: Mapping[str, SuperResSpec]) -> None:
    """Raises: UsageError for models of different degradations: a gain over bicubic belongs to one of them."""
    kinds = {}
    for role, spec in specs.items():
        degrade, prepared = spec.config.degrade, spec.config.preprocess
        blur = f" of sigma {degrade.sigma:g}" if degrade.name == "gaussian" else ""
        kind = f"x{degrade.scale:.3g} of {degrade.name}{blur} with noise {degrade.noise:g} in {prepared.planes[0]} slices"
        if prepared.spacing_mm is not None:
            kind += f" of voxels of {' x '.join(f'{mm:g}' for mm in prepared.spacing_mm)} mm"
        if degrade.cut == "whole":
            kind += f", {' x '.join(map(str, prepared.size))} brought to {degrade.hr_size} pixels"
        kinds[role] = kind
    if kinds[CANDIDATE] != kinds[CHAMPION]:
        raise UsageError(
            f"the candidate makes {kinds[CANDIDATE]} and the champion {kinds[CHAMPION]}, whose gains do not compare; "
            "register it under another --name"
        )


def _recorded_quality(specs: Mapping[str, SuperResSpec]) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Each model's quality at its last validation, and the answer that it makes.

    Raises:
        UsageError: they were validated on different images, or by different distances.
    """
    quality = {role: spec.metrics.get("quality") for role, spec in specs.items()}
    collapse = {
        role: {"score": spec.metrics.get("collapse_score"), "reason": spec.reason}
        for role, spec in specs.items()
    }
    settings = [_validation_settings(spec) for spec in specs.values()]
    if CHAMPION in specs and (settings[0] != settings[1] or None in quality.values()):
        raise UsageError(
            "candidate and champion were not judged on the same validation images by the same distance; give "
            "--data to evaluate both on the same cases"
        )
    return quality, {"quality": quality, "collapse": collapse}


def _validation_settings(spec: SuperResSpec) -> tuple[object, ...]:
    """The settings that determine the images of a model's validations and the distance that they are judged by."""
    config, panel = spec.config, spec.config.collapse
    data = (spec.manifest_hash, spec.train_patients, config.preprocess, config.degrade, config.channels)
    return (*data, panel.num_slices, panel.per_patient, panel.apart_mm, spec.extractors.get("judge"))


def _common_modalities(images: Mapping[str, Mapping[str, CaseMetrics]]) -> list[str]:
    """The modalities that every model made of every case, since some are easier than others.

    Raises:
        UsageError: there is none.
    """
    made = [set(metrics) - {"mean"} for cases in images.values() for metrics in cases.values()]
    common = sorted(set.intersection(*made)) if made else []
    if made and not common:
        raise UsageError(
            "candidate and champion have no modality in common, so that nothing compares them; register it under "
            "another --name"
        )
    return common
