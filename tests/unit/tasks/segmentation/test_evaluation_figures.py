"""The best, the median and the worst case of an evaluation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from glioray.cases.layouts import discover_cases
from glioray.cases.load import Case, load_case
from glioray.reports.case_metrics import CaseMetrics
from glioray.storage import open_storage
from glioray.tasks.segmentation.evaluation_figures import choose_cases, extremes_figure, sketch_case


def _metrics(**dice: float) -> dict[str, CaseMetrics]:
    return {name: {region: {"dice": value} for region in ("wt", "tc", "et")} for name, value in dice.items()}


@pytest.fixture(scope="module")
def case(phantom_data: Path) -> Case:
    storage = open_storage(phantom_data)
    return load_case(storage, discover_cases(storage)[0][0])


def test_cases_are_chosen_by_mean_dice_and_then_by_name():
    cases = _metrics(a=0.5, b=0.9, c=0.1, d=0.5, e=0.7)
    assert choose_cases(cases) == {"best": "b", "median": "a", "worst": "c"}
    assert choose_cases(_metrics(a=0.5, b=0.9)) == {"best": "b", "worst": "a"}
    assert choose_cases(_metrics(a=0.5)) == {"best": "a"}


@pytest.mark.contracts
def test_a_sketch_is_the_slice_with_the_most_tumour_upright(case: Case):
    prediction = np.zeros_like(case.mask)
    z = int((case.mask > 0).sum(axis=(0, 1)).argmax())
    prediction[:, :, 0] = 2
    prediction[0:50, 0:50, z] = 1
    sketch = json.loads(json.dumps(sketch_case(case, prediction)))
    assert (sketch["z"], sketch["modality"]) == (z, "flair")
    drawn = extremes_figure(_metrics(x=0.25), {"x": sketch})
    image, truth, answer = (axes.images[0].get_array() for axes in drawn.axes)
    # The prediction's corner lies at the patient's left back: below in the figure, on its left.
    assert (np.abs(answer - image).sum(-1)[-50:, :50] > 0).all()
    assert not (np.abs(answer - image).sum(-1)[:-50, 50:] > 0).any()
    expected = np.rot90(case.mask[:, :, z]) > 0
    assert np.array_equal(np.abs(truth - image).sum(-1) > 0, expected)
    healthy = dataclasses.replace(case, mask=np.zeros_like(case.mask))
    assert sketch_case(healthy, prediction)["z"] == 0


def test_a_figure_has_a_column_for_each_case_and_takes_cases_of_different_sizes(case: Case):
    smaller = dataclasses.replace(case, images=case.images[:, 8:-8, 4:-4], mask=case.mask[8:-8, 4:-4])
    sketches = {
        name: sketch_case(one, one.mask) for name, one in zip("abc", (case, smaller, case), strict=True)
    }
    figure = extremes_figure(_metrics(a=0.9, b=0.5, c=0.2), sketches)
    assert isinstance(figure, Figure)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert [title.split("\n")[0] for title in titles] == ["best: a", "median: b", "worst: c"]
    assert "mean Dice 0.500, flair, z=" in titles[1]
    assert len(figure.axes) == 9
