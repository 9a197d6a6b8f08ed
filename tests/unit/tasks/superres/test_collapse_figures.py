"""The picture and the page of a calibration."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest

from glioray.tasks.superres.collapse_figures import calibration_markdown, planted_figure
from glioray.tasks.superres.config import COLLAPSE_COMPONENTS, CollapseConfig
from glioray.tasks.superres.planted import Calibration

PARTS = dict.fromkeys(COLLAPSE_COMPONENTS, 0.0)
ROWS = [
    Calibration("black", "collapsed", 1.0, "conditioning", PARTS | {"conditioning": 1.0}, True),
    Calibration("stripes", "collapsed", 0.4, "artefact", PARTS | {"artefact": 0.4}, False),
    Calibration("real", "healthy", 0.0, "texture", PARTS, True),
    Calibration("bicubic", "healthy", 0.35, "texture", PARTS | {"texture": 0.35}, False),
]


def test_each_row_is_drawn_with_its_score():
    images = np.random.default_rng(0).random((9, 24, 16), dtype=np.float32)
    outputs = {row.name: images + number for number, row in enumerate(ROWS)}
    outputs["black"][3] = np.nan
    figure = planted_figure(ROWS, images, images[:, ::4, ::4], outputs)
    axes = [axes for axes in figure.axes if axes.images]
    assert [one.get_title() for one in axes] == ["inputs", "truth", *(row.name for row in ROWS)]
    assert [one.get_xlabel() for one in axes[2:]] == [
        "1.00 conditioning",
        "0.40 artefact",
        "0.00",
        "0.35 texture",
    ]
    wrong = [one.get_title() for one in axes if one.title.get_color() == "#c1121f"]
    assert wrong == ["stripes", "bicubic"]
    drawn = np.asarray(axes[3].images[0].get_array())
    np.testing.assert_array_equal(drawn, np.concatenate(outputs["stripes"][[0, 3, 6]], 1))
    figure.savefig(io.BytesIO(), format="png")


def test_two_images_cannot_be_shown():
    with pytest.raises(ValueError, match="there are 2 images to show; expected at least 3"):
        planted_figure([], np.zeros((2, 8, 8), np.float32), np.zeros((2, 4, 4), np.float32), {})


def test_the_page_says_which_bound_to_look_at():
    text = calibration_markdown(ROWS, CollapseConfig(), title="64 images", picture="p.png")
    assert "# Collapse score: 64 images" in text
    assert "![Three outputs of each row with their score](p.png)" in text
    assert (
        "'stripes' is collapsed and scores 0.40, by artefact at most; expected 0.5 or more, so lower" in text
    )
    assert "collapse.artefact, now (6.0, 14.0)" in text
    assert "'bicubic' is healthy and scores 0.35 by texture; expected less than 0.3, so raise" in text
    assert "| stripes | collapsed | 0.40 (!) | 0.00 | 0.00 | 0.00 | 0.00 | 0.40 | 0.00 |" in text
    good = calibration_markdown(
        [dataclasses.replace(row, is_ok=True) for row in ROWS], CollapseConfig(), title="", picture=""
    )
    assert "Every planted output scores 0.5 or more, every healthy output less than 0.3." in good
    assert "(!)" not in good
