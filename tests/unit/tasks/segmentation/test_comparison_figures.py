"""Figures of a comparison of segmentation models."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from glioray.tasks.segmentation.comparison_figures import (
    case_by_case_figure,
    confusion_figure,
    dice_against_figure,
    dice_by_region_figure,
    training_curves_figure,
)


def drawn(figure: Figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return np.asarray(Image.open(buffer).convert("RGB"))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


ROWS = [
    ("best", {"mean": (0.8, 0.7, 0.9), "wt": (0.9, 0.8, 0.95), "tc": (0.8, 0.6, 0.9), "et": (0.7, 0.5, 0.8)}),
    ("wt only", {"mean": (0.5, 0.4, 0.6), "wt": (0.5, 0.4, 0.6)}),
]


def test_a_line_an_entrant_a_point_a_region():
    figure = dice_by_region_figure(ROWS)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["best", "wt only"]
    assert axes.yaxis_inverted()
    assert [len(container.lines[0].get_xdata()) for container in axes.containers] == [2, 2, 1, 1]
    np.testing.assert_allclose(axes.containers[0].lines[0].get_xdata(), [0.8, 0.5])
    assert drawn(figure).std() > 0


def test_curves_and_points():
    figure = dice_against_figure(
        {"a": [(1, 0.2), (2, 0.5)], "b": [(3, 0.4)], "none": []}, "minutes", log=True
    )
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    assert axes.get_xscale() == "log"
    assert drawn(figure).std() > 0


def test_every_case_under_every_entrant():
    figure = case_by_case_figure([("a", {"c1": 0.25, "c2": 0.5}), ("b", {"c2": 0.75})])
    assert texts(figure) == ["0.25", "0.50", "0.75"]  # what b was not judged on stays empty
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["c1", "c2"]
    assert drawn(figure).std() > 0


def test_rows_of_a_confusion_matrix_add_up_to_one():
    counts = np.zeros((5, 5), int)
    counts[0, 0], counts[1, 1], counts[1, 2], counts[3, 0] = 90, 3, 1, 5
    figure = confusion_figure([("net", counts)])
    # Labels that occur nowhere are left out: here the cavity.
    names = ["background", "ncr", "ed", "et"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == names
    values = np.array(texts(figure), float).reshape(4, 4)
    np.testing.assert_allclose(values[1], [0, 0.75, 0.25, 0])
    np.testing.assert_allclose(values[3], [1, 0, 0, 0])
    assert drawn(figure).std() > 0


def test_a_line_a_run_a_colour_an_entrant():
    figure = training_curves_figure({"a": [[(1, 2.0), (2, 1.0)], [(1, 2.2), (2, 1.1)]], "b": [[(1, 3.0)]]})
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert colours[0] == colours[1] != colours[2]
    assert drawn(figure).std() > 0


def test_runs_that_left_no_row_do_not_break_the_pictures():
    assert drawn(dice_against_figure({"a": []}, "minutes")).size > 0
    assert drawn(training_curves_figure({"a": [[]]})).size > 0
    (line,) = training_curves_figure({"a": [[], [(1, 2.0)]]}).axes[0].lines
    assert line.get_label() == "a"
