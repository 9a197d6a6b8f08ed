"""The figure of a search's trials."""

import pytest
from matplotlib.figure import Figure

from glioray.reports.trials import trials_figure


def _legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_failed_trials_are_never_the_best():
    rows = [
        {"trial": 0, "objective": 0.4, "setting": 1e-3, "state": "complete"},
        {"trial": 1, "objective": 0.6, "setting": 1e-4, "state": "pruned"},
        {"trial": 2, "objective": 9.0, "setting": 1e-2, "state": "failed"},
        {"trial": 3, "objective": float("nan"), "setting": 1e-2, "state": "complete"},
    ]
    figure = trials_figure(rows)
    assert figure.get_suptitle() == "Best: trial 1, 0.600"
    assert _legend(figure) == ["complete", "pruned", "failed", "no value"]
    heights = sorted(float(y) for points in figure.axes[0].collections for _, y in points.get_offsets())
    assert heights[-2:] == [0.4, 0.6]
    assert max(heights[:2]) < 0.4


def test_unknown_states_are_refused():
    with pytest.raises(ValueError, match="'PRUNED' is not a trial's state"):
        trials_figure([{"trial": 0, "objective": 1.0, "setting": 1.0, "state": "PRUNED"}])


def test_no_trials():
    assert [text.get_text() for axes in trials_figure([]).axes for text in axes.texts] == [
        "no trials yet"
    ] * 2


def test_another_setting_than_the_learning_rate():
    rows = [{"trial": 0, "objective": 0.4, "setting": 0.0, "state": "complete"}]
    right = trials_figure(rows, label="augment.strength", is_log=False).axes[1]
    assert (right.get_xlabel(), right.get_xscale()) == ("augment.strength", "linear")
    assert len(right.collections) == 1
