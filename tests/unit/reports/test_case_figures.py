"""Figures of cases and of their preprocessing."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from glioray.reports.case_figures import cases_figure, preparation_figure


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


def test_preparation_shows_each_slice_before_and_after():
    images, _ = _slices()
    titles = ["t1", "flair"]
    figure = preparation_figure(list(images), [images[0, :24, :20], images[1] * 0], titles)
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes[:2]] == titles
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["before", "after"]
    shapes = [axes.images[0].get_array().shape[:2] for axes in figure.axes]
    assert shapes == [(48, 40), (48, 40), (24, 20), (48, 40)]
    assert not figure.axes[3].images[0].get_array().any()
    with pytest.raises(ValueError, match=r"\[2, 1, 2\]; expected equal numbers"):
        preparation_figure(list(images), [images[0]], titles)


def test_cases_show_all_modalities_and_the_labels_over_the_last():
    images, labels = _slices()
    stacks = [np.stack([images[0], 2 * images[0]]), images[1:]]
    figure = cases_figure(stacks, list(labels), ["case 1", "case 2"], [("t1", "flair"), ("t2",)])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["t1", "flair", "labels on flair", "t2", "labels on t2", ""]
    plain, over = (figure.axes[column].images[0].get_array() for column in (1, 2))
    np.testing.assert_array_equal((plain != over).any(axis=-1), labels[0] > 0)
    assert _legend(figure) == ["NCR (necrotic core)", "ED (oedema)", "ET (enhancing)"]
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["case 1", "case 2"]


def test_lists_of_different_lengths_are_refused():
    images, labels = _slices()
    with pytest.raises(ValueError, match=r"are \[1, 2, 1, 1\]; expected equal numbers"):
        cases_figure([images], list(labels), ["a"], [("t1", "t2")])
