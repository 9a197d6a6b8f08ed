"""Whether a model may take the champion's place: the judgement of `jobs/promote.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from glioray.cases.labels import CONVENTIONS
from glioray.cases.load import load_case
from glioray.cases.manifest import CaseEntry, Manifest
from glioray.engine.on_ray.batch import evaluate_cases, evaluate_superres_cases
from glioray.engine.task import ModelPackage
from glioray.errors import ModelError, UsageError
from glioray.slices.preprocess import SliceStack, preprocess
from glioray.sources import select_superres_cases, unseen_by_all
from glioray.storage import open_storage
from glioray.tasks.segmentation.case_metrics import CaseFigures, mean_region_dice
from glioray.tasks.superres.collapse import CollapseReport
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.package import SuperResSpec
from glioray.tasks.superres.panel import pick_panel
from glioray.tasks.superres.panel_judge import PanelJudge
from glioray.tasks.superres.training import panel_cases

CANDIDATE, CHAMPION = "candidate", "champion"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the judgement is.

    Attributes:
        wins: whether the candidate may become champion.
        reason: why, or why not.
        answer: what it rests on, for the job's answer.
    """

    wins: bool
    reason: str
    answer: dict[str, Any] = field(default_factory=dict)


def compare_to_champion(packages: Mapping[str, ModelPackage], manifest: Manifest | None) -> Outcome:
    """Whether the candidate beats the champion.

    Args:
        packages: of the "candidate" and, where there is one, of the "champion".
        manifest: cases to judge both on now, those among them that neither was trained on; None to go by what was
            recorded at training.

    Raises:
        ModelError: the candidate has collapsed, or the two are of different kinds.
        UsageError: they cannot be compared as they are.
        DataError: too few cases are left to judge on.
    """
    tasks = {package.task.name for package in packages.values()}
    if len(tasks) > 1:
        raise ModelError(
            "one of candidate and champion is a segmentation model, the other one of super-resolution; register "
            "each kind under a --name of its own"
        )
    if tasks == {"superres"}:
        return _weigh_superres(packages, manifest)
    return _weigh_segmentation(packages, manifest)


def _weigh_segmentation(packages: Mapping[str, ModelPackage], manifest: Manifest | None) -> Outcome:
    specs = {role: package.spec for role, package in packages.items()}
    if manifest is not None:
        entries = unseen_by_all(manifest, list(specs.values()))
        cases = {
            role: evaluate_cases(package.folder, manifest.data, entries)[0]
            for role, package in packages.items()
        }
        dice: dict[str, Any] = {
            role: {c: {r: f["dice"] for r, f in figures.items()} for c, figures in found.items()}
            for role, found in cases.items()
        }
    else:
        fitted = [role for role, spec in specs.items() if spec.config.postprocess.fit_thresholds]
        if fitted and CHAMPION in specs:
            raise UsageError(
                f"the thresholds of the {fitted[0]} were fitted on the cases that its Dice was recorded on, which "
                "flatters; give --data with patients that neither has seen"
            )
        dice = {role: spec.val_cases for role, spec in specs.items()}
    _check_same_cases(dice)
    scores = {role: mean_region_dice(found) if found else None for role, found in dice.items()}
    answer = {"dice_mean": scores, "cases": sorted(dice[CANDIDATE])}
    return _compared("mean Dice", scores, answer)


def _weigh_superres(packages: Mapping[str, ModelPackage], manifest: Manifest | None) -> Outcome:
    specs = {role: package.spec for role, package in packages.items()}
    packages[CANDIDATE].task.check_promotable(specs[CANDIDATE], f"the {CANDIDATE}")
    if CHAMPION in specs:
        _check_comparable(specs)
    if manifest is None:
        return _compared("quality", *_recorded(specs))
    entries = select_superres_cases(manifest, specs)
    reports = {role: panel_report(package.folder, manifest, entries) for role, package in packages.items()}
    shown = {role: {"score": report.score, "reason": report.reason} for role, report in reports.items()}
    bad = [role for role, spec in specs.items() if reports[role].score >= spec.config.collapse.threshold]
    if CANDIDATE in bad:
        raise ModelError(
            f"the {CANDIDATE} has collapsed on unseen cases ({reports[CANDIDATE].reason}, score "
            f"{reports[CANDIDATE].score:.2f}) and cannot be promoted, whatever its training said; promote another"
        )
    # By one distance, whatever each was judged by at its training.
    judge = specs[CANDIDATE].config
    judged = {
        role: evaluate_superres_cases(package.folder, None, manifest.data, entries, judge=judge)
        for role, package in packages.items()
    }
    images = {role: found.images for role, found in judged.items()}
    _check_same_cases(images)
    modalities = _common_modalities(images)
    quality = {
        role: float(np.mean([figures[name]["quality"] for figures in found.values() for name in modalities]))
        if found
        else None
        for role, found in images.items()
    }
    answer = {
        "quality": quality, "collapse": shown, "judge": judged[CANDIDATE].judge, "modalities": modalities,
        "cases": sorted(images[CANDIDATE]),
    }  # fmt: skip
    if not images[CANDIDATE]:
        raise UsageError("none of the unseen cases could be judged; the reasons are above")
    if CHAMPION in bad:
        return Outcome(wins=True, reason="the champion has collapsed on unseen cases", answer=answer)
    return _compared("quality", quality, answer)


def panel_report(package: Path, manifest: Manifest, entries: Sequence[CaseEntry]) -> CollapseReport:
    """The collapse score of a model's last generator on a panel of these cases.

    Raises:
        CaseError: a case cannot be used.
        DataError: the cases give too few images.
    """
    resolver = SuperResolver.load(package)
    config = resolver.spec.config
    picked = panel_cases(entries)
    stacks: list[tuple[SliceStack, ...]] = []
    for entry in picked:
        convention = None if entry.convention is None else CONVENTIONS[entry.convention]
        case = load_case(open_storage(manifest.data), entry.files, convention=convention)
        stacks.append(preprocess(case, config.preprocess))
    panel = pick_panel(stacks, {entry.case_id: entry.patient_id for entry in picked}, config)
    judge = PanelJudge(panel, config)
    return judge.score(resolver.images(judge.lr, (panel.hr.shape[-2], panel.hr.shape[-1])))


def _check_comparable(specs: Mapping[str, SuperResSpec]) -> None:
    """Raises: UsageError for models that do not do the same: a gain over bicubic is one at some degradation."""
    kinds = {}
    for role, spec in specs.items():
        cut, prepared = spec.config.degrade, spec.config.preprocess
        blur = f" of sigma {cut.sigma:g}" if cut.name == "gaussian" else ""
        made = f"x{cut.scale:.3g} of {cut.name}{blur} with noise {cut.noise:g} in {prepared.planes[0]} slices"
        if prepared.spacing_mm is not None:
            made += f" of voxels of {' x '.join(f'{mm:g}' for mm in prepared.spacing_mm)} mm"
        if cut.cut == "whole":
            made += f", {' x '.join(map(str, prepared.size))} brought to {cut.hr_size} pixels"
        kinds[role] = made
    if kinds[CANDIDATE] != kinds[CHAMPION]:
        raise UsageError(
            f"the candidate makes {kinds[CANDIDATE]} and the champion {kinds[CHAMPION]}, whose gains do not compare; "
            "register it under another --name"
        )


def _recorded(specs: Mapping[str, SuperResSpec]) -> tuple[dict[str, float | None], dict[str, Any]]:
    """The quality of each at its last validation, where that was of the same images by the same distance."""
    quality = {role: spec.metrics.get("quality") for role, spec in specs.items()}
    shown = {
        role: {"score": spec.metrics.get("collapse_score"), "reason": spec.reason}
        for role, spec in specs.items()
    }
    judged = [_judged_on(spec) for spec in specs.values()]
    if CHAMPION in specs and (judged[0] != judged[1] or None in quality.values()):
        raise UsageError(
            "candidate and champion were not judged on the same validation images by the same distance; give "
            "--data to judge both on the same cases"
        )
    return quality, {"quality": quality, "collapse": shown}


def _judged_on(spec: SuperResSpec) -> tuple[object, ...]:
    """What settles the images of a model's validations, and the distance that they were judged by."""
    config, panel = spec.config, spec.config.collapse
    data = (spec.manifest_hash, spec.train_patients, config.preprocess, config.degrade, config.channels)
    return (*data, panel.num_slices, panel.per_patient, panel.apart_mm, spec.extractors.get("judge"))


def _common_modalities(images: Mapping[str, Mapping[str, CaseFigures]]) -> list[str]:
    """Those of which every model made every case: some are easier than others.

    Raises:
        UsageError: there is none.
    """
    made = [set(figures) - {"mean"} for found in images.values() for figures in found.values()]
    common = sorted(set.intersection(*made)) if made else []
    if made and not common:
        raise UsageError(
            "candidate and champion have no modality in common, so that nothing compares them; register it under "
            "another --name"
        )
    return common


def _check_same_cases(judged: Mapping[str, Mapping[str, Any]]) -> None:
    if CHAMPION not in judged:
        return
    cases = {role: sorted(found) for role, found in judged.items()}
    if not cases[CANDIDATE] or cases[CANDIDATE] != cases[CHAMPION]:
        raise UsageError(
            f"the candidate was judged on {len(cases[CANDIDATE])} cases and the champion on "
            f"{len(cases[CHAMPION])} that are not the same; give --data to judge both on the same cases"
        )


def _compared(what: str, scores: Mapping[str, float | None], answer: dict[str, Any]) -> Outcome:
    if CHAMPION not in scores:
        return Outcome(wins=True, reason="there was no champion", answer=answer)
    own, other = scores[CANDIDATE], scores[CHAMPION]
    assert own is not None
    assert other is not None
    where = f" on {len(answer['cases'])} cases" if "cases" in answer else ""
    if own > other:
        return Outcome(wins=True, reason=f"{what} {own:.4f} beats {other:.4f}{where}", answer=answer)
    stays = f"{what} {own:.4f} does not beat {other:.4f}; the champion stays"
    return Outcome(wins=False, reason=stays, answer=answer)
