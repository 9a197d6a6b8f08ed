"""A segmentation model against the champion, by mean Dice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glioray.cases.manifest import Manifest
from glioray.engine.promotion import CANDIDATE, CHAMPION, Outcome, check_same_cases, compare_scores
from glioray.engine.task import ModelPackage
from glioray.errors import UsageError
from glioray.tasks.segmentation.case_metrics import mean_region_dice
from glioray.tasks.segmentation.evaluation import evaluate_cases, select_labelled_cases


def compare_segmentation(packages: Mapping[str, ModelPackage], manifest: Manifest | None) -> Outcome:
    """Compare the mean Dice of WT, TC and ET; see `engine.promotion.compare_to_champion`.

    Raises:
        UsageError: the recorded Dice values do not compare.
        DataError: no case is new to both.
    """
    specs = {role: package.spec for role, package in packages.items()}
    dice: dict[str, Any]
    if manifest is not None:
        entries = select_labelled_cases(manifest, specs)
        dice = {}
        for role, package in packages.items():
            cases = evaluate_cases(package.folder, manifest.data, entries)[0]
            dice[role] = {
                case_id: {region: metrics["dice"] for region, metrics in case.items()}
                for case_id, case in cases.items()
            }
    else:
        fitted = [role for role, spec in specs.items() if spec.config.postprocess.fit_thresholds]
        if fitted and CHAMPION in specs:
            raise UsageError(
                f"the thresholds of the {fitted[0]} were fitted on the cases that its Dice was recorded on, which "
                "inflates it; give --data with patients that neither model has seen"
            )
        dice = {role: spec.val_cases for role, spec in specs.items()}
    check_same_cases(dice)
    scores = {role: mean_region_dice(cases) if cases else None for role, cases in dice.items()}
    return compare_scores("mean Dice", scores, {"dice_mean": scores, "cases": sorted(dice[CANDIDATE])})
