"""Figures of a training run."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from glioray.reports.images import LABEL_COLOURS
from glioray.tasks.segmentation.figures import learning_curves, overlay_figure


def _slices() -> tuple[np.ndarray, np.ndarray]:
    images = np.zeros((2, 48, 40))
    images[:, 8:40, 8:32] = np.linspace(-1, 3, 24)
    labels = np.zeros((2, 48, 40), np.uint8)
    labels[:, 12:30, 12:28] = 2
    labels[:, 16:24, 16:24] = 3
    labels[:, 18:22, 18:22] = 1
    return images, labels


def _legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_overlay_colours_exactly_the_labelled_pixels():
    images, labels = _slices()
    figure = overlay_figure(images, np.zeros_like(labels), labels, ["a", "b"])
    image, truth, prediction = (figure.axes[2 * row].images[0].get_array() for row in range(3))
    np.testing.assert_array_equal(image, truth)
    differs = (image != prediction).any(axis=-1)
    np.testing.assert_array_equal(differs, labels[0] > 0)
    for value, name in ((1, "ncr"), (2, "ed"), (3, "et")):
        shift = (prediction - image)[labels[0] == value]
        towards = np.array(to_rgb(LABEL_COLOURS[name])) - image[labels[0] == value]
        np.testing.assert_allclose(shift, 0.45 * towards, atol=1e-6)


def test_overlay_names_rows_slices_and_labels():
    images, labels = _slices()
    figure = overlay_figure(images, labels, labels, ["case 1", "case 2"])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["case 1", "case 2"]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["image", "truth", "prediction"]
    assert _legend(figure) == ["NCR (necrotic core)", "ED (oedema)", "ET (enhancing)"]


def test_overlay_without_truth_and_with_a_resection_cavity():
    images, labels = _slices()
    labels[0, 30:34, 12:20] = 4
    figure = overlay_figure(images, None, labels, ["a", "b"])
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["image", "prediction"]
    assert _legend(figure)[-1] == "RC (resection cavity)"


@pytest.mark.parametrize("image", [np.zeros((1, 32, 32)), np.full((1, 32, 32), np.nan)], ids=["empty", "nan"])
def test_overlay_of_an_image_without_content_is_drawn(image: np.ndarray):
    figure = overlay_figure(image, None, np.full((1, 32, 32), 2, np.uint8), ["x"])
    figure.canvas.draw()
    assert np.isfinite(figure.axes[1].images[0].get_array()).all()


def test_overlay_refuses_shapes_that_differ():
    images, labels = _slices()
    with pytest.raises(ValueError, match=r"\(1, 48, 40\).*expected the same"):
        overlay_figure(images, None, labels[:1], ["a", "b"])
    with pytest.raises(ValueError, match="1 titles for 2 slices"):
        overlay_figure(images, None, labels, ["a"])


def test_learning_curves_skip_the_epochs_without_validation():
    history = [
        {"epoch": 3, "loss": 1.0},
        {"epoch": 4, "loss": 0.5, "dice_wt": 0.7, "dice_mean": 0.6, "lr": 1e-3},
    ]
    left, right = learning_curves(history).axes
    assert [(line.get_label(), list(line.get_xdata())) for line in left.lines] == [("loss", [3.0, 4.0])]
    assert [(line.get_label(), list(line.get_ydata())) for line in right.lines] == [
        ("WT", [0.7]),
        ("mean", [0.6]),
    ]


def test_learning_curves_of_nothing_say_so():
    left, right = learning_curves([]).axes
    assert [text.get_text() for text in left.texts + right.texts] == ["no loss yet", "no validation yet"]
