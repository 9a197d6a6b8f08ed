"""A segmentation model against the champion, by the objective of a search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glioray.cases.manifest import Manifest
from glioray.engine.promotion import CANDIDATE, CHAMPION, Outcome, check_same_cases, compare_scores
from glioray.engine.task import ModelPackage
from glioray.errors import UsageError
from glioray.tasks.segmentation.case_metrics import mean_region_dice
from glioray.tasks.segmentation.evaluation import evaluate_cases, select_labelled_cases
from glioray.tasks.segmentation.objective import Sizes, objective, sizes_of_metrics


def compare_segmentation(packages: Mapping[str, ModelPackage], manifest: Manifest | None) -> Outcome:
    """Compare the objectives of both (see `objective`); see `engine.promotion.compare_to_champion`.

    Raises:
        UsageError: what was recorded of their validations does not compare.
        DataError: no case is new to both.
    """
    specs = {role: package.spec for role, package in packages.items()}
    dice: dict[str, Any] = {}
    sizes: dict[str, dict[str, dict[str, Sizes]]] = {}
    if manifest is not None:
        entries = select_labelled_cases(manifest, specs)
        for role, package in packages.items():
            cases = evaluate_cases(package.folder, manifest.data, entries)[0]
            dice[role] = {
                case_id: {region: metrics["dice"] for region, metrics in case.items()}
                for case_id, case in cases.items()
            }
            sizes[role] = {case_id: sizes_of_metrics(case) for case_id, case in cases.items()}
    else:
        fitted = [role for role, spec in specs.items() if spec.config.postprocess.fit_thresholds]
        if fitted and CHAMPION in specs:
            raise UsageError(
                f"the thresholds of the {fitted[0]} were fitted on the cases that its Dice was recorded on, which "
                "inflates it; give --data with patients that neither model has seen"
            )
        dice = {role: spec.val_cases for role, spec in specs.items()}
        sizes = {role: spec.val_sizes for role, spec in specs.items()}
    check_same_cases(dice)
    if CHAMPION in specs and (older := [role for role in specs if dice[role] and not sizes[role]]):
        raise UsageError(
            f"the package of the {older[0]} records no volumes of its validation cases, as an earlier version of "
            "glioray wrote it; give --data to evaluate both on the same cases"
        )
    means = {role: mean_region_dice(cases) if cases else None for role, cases in dice.items()}
    terms = {role: objective(list(cases.values())) for role, cases in sizes.items()}
    scores = {role: found.get("objective") for role, found in terms.items()}
    answer = {
        "objective": scores,
        "dice_mean": means,
        "false_alarms": {role: found.get("false_alarms") for role, found in terms.items()},
        "cases": sorted(dice[CANDIDATE]),
    }
    return compare_scores("objective", scores, answer)
