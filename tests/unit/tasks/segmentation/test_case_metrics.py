"""Metrics of whole cases, and their page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from glioray.cases.conventions import CONVENTIONS
from glioray.cases.load import Case
from glioray.errors import CaseError
from glioray.metrics.lesionwise import lesionwise_scores
from glioray.metrics.surface import surface_metrics
from glioray.reports.case_metrics import mean_metrics, metric_intervals
from glioray.tasks.segmentation.case_metrics import (
    case_metrics,
    case_slice_sums,
    evaluate_case,
    mean_region_dice,
)
from glioray.tasks.segmentation.evaluation_page import evaluation_markdown
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.segmentation.slicewise import slicewise_table

OVERLAP = ["dice", "sensitivity", "specificity", "precision", "iou"]
NAMES = [
    *OVERLAP,
    "hd95_mm",
    "surface_dice",
    "lesion_dice",
    "lesion_hd95_mm",
    "volume_ml",
    "true_volume_ml",
    "volume_error_ml",
]


def test_a_perfect_prediction(case: Case):
    assert case.mask is not None
    metrics = case_metrics(case, case.mask)
    assert list(metrics) == ["wt", "tc", "et", "ncr", "ed"]
    voxel_ml = np.prod(case.spacing_mm) / 1000
    for name, labels in {"wt": (1, 2, 3), "tc": (1, 3), "et": (3,), "ncr": (1,), "ed": (2,)}.items():
        assert list(metrics[name]) == NAMES
        ml = np.isin(case.mask, labels).sum() * voxel_ml
        assert ml > 0
        assert metrics[name] == pytest.approx(
            {
                **dict.fromkeys([*OVERLAP, "surface_dice", "lesion_dice"], 1.0),
                **dict.fromkeys(["hd95_mm", "lesion_hd95_mm", "volume_error_ml"], 0.0),
                "volume_ml": ml,
                "true_volume_ml": ml,
            }
        )


def test_a_shifted_prediction(case: Case):
    assert case.mask is not None
    shifted = np.roll(case.mask, 2, axis=0)
    metrics = case_metrics(case, shifted)
    for name, labels in {"wt": (1, 2, 3), "et": (3,)}.items():
        truth, found = np.isin(case.mask, labels), np.isin(shifted, labels)
        both = (truth & found).sum()
        assert metrics[name]["dice"] == pytest.approx(2 * both / (truth.sum() + found.sum()))
        assert metrics[name]["iou"] == pytest.approx(both / (truth | found).sum())
        assert metrics[name]["precision"] == pytest.approx(both / found.sum())
        surface = surface_metrics(truth, found, case.spacing_mm)
        assert {key: metrics[name][key] for key in surface} == surface
        assert surface["hd95_mm"] > 0
        lesions = lesionwise_scores(truth, found, case.spacing_mm)
        assert (metrics[name]["lesion_dice"], metrics[name]["lesion_hd95_mm"]) == (
            lesions.dice,
            lesions.hd95_mm,
        )


def test_what_is_missed_and_what_is_made_up(case: Case):
    assert case.mask is not None
    without = np.where(case.mask == 3, 1, case.mask).astype(np.uint8)
    ml = (case.mask == 3).sum() * np.prod(case.spacing_mm) / 1000
    missed = case_metrics(case, without)["et"]
    assert (missed["dice"], missed["hd95_mm"], missed["volume_ml"]) == (0, 374, 0)
    assert (missed["lesion_dice"], missed["lesion_hd95_mm"], missed["surface_dice"]) == (0, 374, 0)
    assert missed["volume_error_ml"] == pytest.approx(-ml)
    made_up = case_metrics(replace(case, mask=without), case.mask)["et"]
    assert (made_up["dice"], made_up["hd95_mm"], made_up["true_volume_ml"]) == (0, 374, 0)
    assert made_up["volume_error_ml"] == pytest.approx(ml)
    neither = case_metrics(replace(case, mask=without), without)["et"]
    assert (neither["dice"], neither["hd95_mm"]) == (1, 0)
    assert (neither["lesion_dice"], neither["lesion_hd95_mm"], neither["surface_dice"]) == (1, 0, 1)


def test_slices_are_the_axial_ones_through_the_brain(case: Case):
    assert case.mask is not None
    sums = case_slice_sums(case, case.mask)
    through_brain = (case.images != 0).any(axis=(0, 1, 2))
    assert 0 < through_brain.sum() < case.mask.shape[2]
    assert sums["ed"]["num_slices"] == through_brain.sum()
    assert sums["ed"]["num_with_class"] == (case.mask == 2).any(axis=(0, 1)).sum()
    table = slicewise_table([sums])
    assert all(table[name]["dice"] == 1 for name in ("background", "ncr", "ed", "et", "mean"))


def test_a_model_on_a_real_network(make_predictor: Callable[..., Predictor], case: Case):
    predictor = make_predictor()
    metrics, slices = evaluate_case(predictor, case)
    prediction = predictor.predict(case)
    assert (metrics, slices) == (case_metrics(case, prediction), case_slice_sums(case, prediction))
    assert metrics["wt"]["volume_ml"] == pytest.approx(
        np.isin(prediction, (1, 2, 3)).sum() * np.prod(case.spacing_mm) / 1000
    )


def test_a_case_without_a_mask_cannot_be_evaluated(make_predictor: Callable[..., Predictor], case: Case):
    with pytest.raises(CaseError, match="it has no mask to judge by; add the mask or leave the case out"):
        evaluate_case(make_predictor(), replace(case, mask=None))


def test_mean_region_dice_is_over_the_three_regions_alone():
    cases = {
        "a": {"wt": 0.9, "tc": 0.6, "et": 0.3, "ncr": 0.0},
        "b": {"wt": 0.3, "tc": 0.3, "et": 0.3, "rc": 1.0},
    }
    assert mean_region_dice(cases) == pytest.approx(0.45)


def test_the_page_has_both_tables_and_says_which_one_inflates_scores(case: Case):
    assert case.mask is not None
    shifted = np.roll(case.mask, 1, axis=1)
    cases = {"a": case_metrics(case, case.mask), "b": case_metrics(case, shifted)}
    table = slicewise_table([case_slice_sums(case, case.mask), case_slice_sums(case, shifted)])
    page = evaluation_markdown(cases, {"a": "p", "b": "q"}, table, title="models:/x/1 on val cases")
    lines = page.splitlines()
    assert lines[0] == "# models:/x/1 on val cases"
    dice = cases["b"]["wt"]["dice"]
    row = next(line for line in lines if line.startswith("| WT |"))
    assert row.startswith(f"| WT | 2 | {(1 + dice) / 2:.3f} [{dice:.3f}, 1.000] |")
    assert sum(line.startswith(("| WT |", "| TC |", "| ET |", "| NCR |", "| ED |")) for line in lines) == 8
    assert "Slice-level metrics inflate scores" in page
    assert "2 cases of 2 patients" in page
    assert "| column average |" in page
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert widths == {13, 8}


def test_brats_2026_is_added_and_leaves_out_what_is_rightly_empty(case: Case):
    pytest.importorskip("panoptica")
    assert case.mask is not None
    shifted = np.roll(case.mask, 1, axis=1)
    without = np.where(case.mask == 3, 1, case.mask).astype(np.uint8)
    cases = {
        "a": case_metrics(case, shifted, rule="brats2026"),
        "b": case_metrics(replace(case, mask=without), without, rule="brats2026"),
    }
    assert list(cases["a"]["wt"])[: len(NAMES)] == NAMES
    assert cases["a"]["wt"] | case_metrics(case, shifted)["wt"] == cases["a"]["wt"]
    assert "brats2026_dice" not in cases["b"]["et"]
    assert (cases["b"]["et"]["dice"], cases["b"]["et"]["brats2026_missed"]) == (1, 0)
    assert mean_metrics(cases)["et"]["brats2026_dice"] == cases["a"]["et"]["brats2026_dice"]
    patients = {"a": "p", "b": "q"}
    intervals = metric_intervals(cases, patients)
    assert "brats2026_dice" in intervals["wt"]
    assert "brats2026_dice" not in intervals["et"]
    table = slicewise_table([case_slice_sums(case, shifted)])
    lines = evaluation_markdown(cases, patients, table, title="t").splitlines()
    section = lines[lines.index("## By the rule of BraTS 2026") :]
    row = next(line for line in section if line.startswith("| ET |"))
    assert row.startswith(f"| ET | 1 | {cases['a']['et']['brats2026_dice']:.3f} |")
    plain = evaluation_markdown({"a": case_metrics(case, shifted)}, {"a": "p"}, table, title="t")
    assert "2026" not in plain


def test_one_patient_has_means_without_intervals(case: Case):
    assert case.mask is not None
    cases = {"a": case_metrics(case, case.mask)}
    table = slicewise_table([case_slice_sums(case, case.mask)])
    assert metric_intervals(cases, {"a": "p"}) == {}
    page = evaluation_markdown(cases, {"a": "p"}, table, title="t")
    assert "| WT | 1 | 1.000 | 1.000 |" in page
    assert "With one patient there are no intervals" in page
    assert "too narrow" not in page


def test_the_page_names_the_cases_that_it_leaves_out(case: Case):
    assert case.mask is not None
    cases = {"a": case_metrics(case, case.mask)}
    table = slicewise_table([case_slice_sums(case, case.mask)])
    page = evaluation_markdown(
        cases, {"a": "p", "b": "q"}, table, title="t", failed={"b": "it has no\nbrain"}
    )
    assert "Means over 1 cases of 1 patients" in page
    assert "Not among them: b (it has no brain)." in page


def test_a_mask_that_labels_the_whole_tumour_alone_is_evaluated_by_that(case: Case):
    assert case.mask is not None
    inside = np.isin(case.mask, (1, 2, 3))
    whole = replace(case, mask=np.where(inside, np.uint8(2), np.uint8(0)), convention=CONVENTIONS["wt"])
    metrics, usual = case_metrics(whole, case.mask), case_metrics(case, case.mask)
    assert metrics == {"wt": pytest.approx(usual["wt"])}
    table = slicewise_table([case_slice_sums(whole, case.mask)])
    assert list(table) == ["background", "wt", "mean"]
    assert table["wt"]["dice"] == 1
    assert 0 < table["wt"]["share_with_class"] < 1
    # Beside cases that tell all, each region's mean is over the cases that report it.
    both = {"a": metrics, "b": usual}
    assert mean_metrics(both)["tc"] == pytest.approx(usual["tc"])
    dice = {name: {region: f["dice"] for region, f in case.items()} for name, case in both.items()}
    assert mean_region_dice({**dice, "c": {"wt": 0.0}}) == pytest.approx(2 / 3)
