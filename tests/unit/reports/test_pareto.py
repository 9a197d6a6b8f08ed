"""The front of two objectives, and its figure."""

from __future__ import annotations

from glioray.reports.pareto import pareto_figure, pareto_front


def test_the_front_has_the_points_that_no_other_dominates():
    points = {"a": (0, 1), "b": (1, 0), "c": (0, 0), "d": (1, 0)}
    assert pareto_front(points) == ["a", "b", "d"]
    assert pareto_front(points, (False, True)) == ["a"]
    assert pareto_front(points, (False, False)) == ["c"]
    assert pareto_front({}) == []


def test_the_front_is_drawn_without_unhealthy_trials():
    rows = [
        {"trial": 0, "y": 0.4, "x": -1.0, "is_healthy": True},
        {"trial": 1, "y": 0.1, "x": 2.0, "is_healthy": True},
        {"trial": 2, "y": 0.05, "x": 1.0, "is_healthy": True},
        {"trial": 3, "y": 0.9, "x": 3.0, "is_healthy": False},
        {"trial": 4, "y": None, "x": 3.0, "is_healthy": True},
    ]
    figure = pareto_figure(rows, labels=("gain", "quality"), baselines=(0.0, None), unhealthy="collapsed")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["0", "1"]
    assert axes.get_title() == "Quality against gain"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["healthy", "collapsed", "front"]
    assert [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == ":"] == [[0.0, 0.0]]
    figure.canvas.draw()


def test_cost_is_the_better_the_smaller():
    rows = [
        {"trial": number, "x": cost, "y": dice, "is_healthy": True}
        for number, (cost, dice) in enumerate([(4.0, 0.8), (1.0, 0.7), (2.0, 0.6)])
    ]
    assert [text.get_text() for text in pareto_figure(rows, maximize=(False, True)).axes[0].texts] == [
        "1",
        "0",
    ]


def test_a_figure_without_trials_says_so():
    assert [text.get_text() for text in pareto_figure([]).axes[0].texts] == ["no trials yet"]
