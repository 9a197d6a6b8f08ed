"""The pictures of super-resolution: a run's, a search's, a comparison's."""

import io
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from glioray.tasks.superres.comparison_figures import blend_figure, comparison_panel, convergence_figure
from glioray.tasks.superres.config import COLLAPSE_COMPONENTS
from glioray.tasks.superres.figures import PanelRow, gan_curves, panel_figure
from glioray.tasks.superres.search_figures import rates_figure

pytestmark = pytest.mark.contracts


def _row(title: str = "case, slice 3", size: tuple[int, int] = (32, 24), **changes) -> PanelRow:
    rng = np.random.default_rng(0)
    hr = rng.random(size)
    parts = {"lr": hr[::4, ::4], "bicubic": hr * 0.5, "sr": hr * 0.9, "hr": hr, "figures": {"psnr": 27.14}}
    return PanelRow(title, **{**parts, **changes})


def _pixels(figure: Figure) -> tuple[int, int]:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60, bbox_inches="tight")
    return Image.open(buffer).size


def _image(axes) -> np.ndarray:
    return axes.images[0].get_array()


def test_a_panel_has_a_row_a_slice_and_both_errors_on_one_scale():
    row = _row()
    figure = panel_figure([row, _row("another"), _row("third")])
    images = [axes for axes in figure.axes if axes.get_title()]
    assert len(images) == 3 * 8
    first = images[:8]
    assert [axes.get_title().split()[0] for axes in first[:4]] == ["LR", "bicubic", "SR", "HR"]
    assert "27.1 dB" in first[2].get_title()
    np.testing.assert_allclose(_image(first[4]), np.abs(row.bicubic - row.hr))
    np.testing.assert_allclose(_image(first[5]), np.abs(row.sr - row.hr))
    assert first[4].images[0].get_clim() == first[5].images[0].get_clim()
    assert first[6].images[0].get_clim() == first[7].images[0].get_clim()
    width, height = _pixels(figure)
    assert width > 1.5 * height > 0


def test_the_spectrum_is_centred_and_its_frame_is_what_lr_can_hold():
    x = np.arange(64)
    waves = 0.5 + 0.3 * np.cos(2 * np.pi * 20 * x / 64)[None, :].repeat(64, 0)
    row = PanelRow("waves", np.full((16, 16), 0.5), np.full((64, 64), 0.5), waves, waves)
    axes = next(axes for axes in panel_figure([row]).axes if axes.get_title() == "spectrum SR")
    spectrum = _image(axes)
    assert np.unravel_index(spectrum.argmax(), spectrum.shape) == (32, 32)
    assert spectrum[32, 52] > -20
    (frame,) = axes.patches
    assert (frame.get_x(), frame.get_width()) == (24, 16)
    assert not frame.contains_point(axes.transData.transform((52, 32)))


def test_constant_black_and_broken_images_are_drawn():
    black, flat = np.zeros((16, 16)), np.full((16, 16), 0.4)
    broken = flat.copy()
    broken[:4] = math.nan
    broken[5] = math.inf
    rows = [
        PanelRow("black", black[::4, ::4], black, black, black),
        PanelRow("flat", flat[::4, ::4], flat, flat, flat),
        PanelRow("broken", flat[::4, ::4], flat, broken, flat, {"psnr": math.nan}),
        PanelRow("lost", flat[::4, ::4], flat, np.full_like(flat, math.nan), flat),
    ]
    figure = panel_figure(rows)
    _pixels(figure)
    spectra = [axes for axes in figure.axes if axes.get_title().startswith("spectrum")]
    assert all(np.isfinite(_image(axes)).all() for axes in spectra)
    (shown,) = (a for a in figure.axes[16:24] if a.get_title().startswith("SR"))
    np.testing.assert_array_equal(_image(shown).mask[:6].all(1), [True] * 4 + [False, True])
    _pixels(comparison_panel({"a": broken}, flat[::4, ::4], flat, flat))
    _pixels(blend_figure(black[::4, ::4], {0: black}, black))


def test_images_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        panel_figure([])
    with pytest.raises(ValueError, match=r"'case, slice 3' has lr \(8, 6\)"):
        panel_figure([_row(sr=np.zeros((30, 24)))])
    row = _row()
    with pytest.raises(ValueError, match=r"'blend 0 \(PSNR\)' is \(3, 3\)"):
        blend_figure(row.lr, {0: np.zeros((3, 3))}, row.hr)
    with pytest.raises(ValueError, match="no entrant"):
        comparison_panel({}, row.lr, row.bicubic, row.hr)


def _history(epochs: int = 6, begins: int = 3) -> list[dict[str, float]]:
    rows = []
    for epoch in range(1, epochs + 1):
        row = {f"collapse_{name}": 0.01 for name in COLLAPSE_COMPONENTS}
        row |= {"epoch": epoch, "stage": float(epoch >= begins), "num_slices": epoch * 80.0, "minutes": epoch}
        row |= {"train_pixel": 0.1 / epoch, "collapse_score": 0.02, "psnr": 20.0 + epoch, "quality": 0.01}
        row |= {"train_adversarial": 0.7 if epoch >= begins else 0.0, "gain_psnr": math.nan, "hf_db": -8.0}
        rows.append(row)
    return rows


def _named(figure: Figure) -> dict:
    return {axes.get_title(): axes for axes in figure.axes}


def test_curves_show_what_there_is_and_where_the_adversarial_stage_begins():
    figure = gan_curves(_history())
    cells = _named(figure)
    assert len(figure.axes) == 10
    losses = cells["Generator's losses"]
    lines = {line.get_label(): line for line in losses.lines}
    assert list(lines["adversarial"].get_xdata()) == [3, 4, 5, 6]  # 0 has no place on a logarithmic axis
    assert [line.get_xdata()[0] for line in losses.lines if line.get_linestyle() == "--"] == [3]
    score = next(line for line in cells["Collapse"].lines if line.get_label() == "score")
    assert score.get_linewidth() > 2
    assert len(cells["Collapse"].lines) == len(COLLAPSE_COMPONENTS) + 3
    assert [text.get_text() for text in cells["PSNR gain over bicubic"].texts] == ["nothing yet"]
    _pixels(figure)


@pytest.mark.parametrize("history", [[], [{}], _history(1), [{"train_pixel": 0.0}], _history(4, begins=1)])
def test_curves_of_odd_histories(history):
    figure = gan_curves(history)
    assert not any(line.get_linestyle() == "--" for axes in figure.axes for line in axes.lines)
    _pixels(figure)


def _trials() -> list[dict]:
    rates = [(1e-5, 2e-5), (1e-4, 1e-4), (1e-2, 1e-2), (5e-3, 2e-2), (1e-3, 3e-4)]
    rows = [
        {"trial": n, "lr_g": g, "lr_d": d, "state": "complete", "score": 0.02, "objective": 0.1 * n}
        for n, (g, d) in enumerate(rates)
    ]
    for number in (2, 3):
        rows[number] |= {"state": "collapsed", "score": 1.0, "objective": -2.0, "reason": "conditioning"}
    rows[4] |= {"state": "pruned"}
    return rows


def test_rates_show_where_collapse_lives():
    figure = rates_figure([*_trials(), {"trial": 9, "lr_g": 1e-4, "lr_d": 1e-4, "state": "failed"}])
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["conditioning"] * 2
    assert "trial 1," in figure.get_suptitle()
    (ground,) = (c for c in axes.collections if "contour" in type(c).__name__.lower())
    inside = ground.get_paths()[0]
    assert inside.contains_point((8e-3, 1.2e-2))
    assert not inside.contains_point((1e-4, 1e-4))
    _pixels(figure)


def test_nothing_is_shaded_where_all_trials_are_alike():
    healthy = [row for row in _trials() if row["state"] == "complete"]
    for rows in (healthy, healthy[:1], [{"trial": 0, "lr_g": None, "lr_d": 1e-3, "state": "running"}], []):
        figure = rates_figure(rows)
        assert not any("contour" in type(c).__name__.lower() for c in figure.axes[0].collections)
        _pixels(figure)
    with pytest.raises(ValueError, match="'lost' is not a trial's state; the states are complete"):
        rates_figure([{"trial": 0, "lr_g": 1, "lr_d": 1, "state": "lost"}])


def test_a_blend_strip_goes_from_the_psnr_model_to_the_gan():
    row = _row(size=(33, 47), lr=np.random.default_rng(1).random((9, 13)))
    figure = blend_figure(row.lr, {1: row.sr, 0: row.bicubic, 0.5: row.hr}, row.hr)
    titles = [axes.get_title() for axes in figure.axes[:5]]
    assert titles == ["LR 9 x 13", "blend 0 (PSNR)", "blend 0.5", "blend 1 (GAN)", "HR"]
    _pixels(figure)


def test_what_is_enlarged_is_the_same_place_in_every_column_and_has_the_detail():
    hr = np.full((60, 48), 0.2)
    hr[40:52:2, 30:42] = 0.9
    row = _row(hr=hr, sr=hr, bicubic=hr * 0.5, lr=hr[::4, ::4])
    figure = comparison_panel({"SRGAN": row.sr, "ESRGAN": row.hr}, row.lr, row.bicubic, row.hr)
    assert len(figure.axes) == 3 * 5
    top, middle = figure.axes[:5], figure.axes[5:10]
    np.testing.assert_array_equal(_image(middle[2]), _image(middle[4]))
    assert _image(middle[4]).shape == (16, 16)
    assert _image(middle[4]).std() > 0.25
    np.testing.assert_allclose(_image(middle[1]), _image(middle[4]) * 0.5)
    assert _image(middle[0]).shape == (4, 4)
    (frame,) = top[4].patches
    assert frame.get_y() + 0.5 >= 34
    _pixels(figure)


def test_convergence_is_the_mean_and_range_as_far_as_all_runs_got():
    slow = [row | {"psnr": row["psnr"] - 2, "bicubic_psnr": 21.0} for row in _history(6)]
    stopped = [*_history(3), _history(4)[3] | {"is_collapsed": 1.0, "collapse_score": 0.9}]
    figure = convergence_figure({"SRGAN": [slow, stopped], "ESRGAN": [_history(5)], "none": [[]]})
    psnr = figure.axes[0]
    lines = {line.get_label(): line for line in psnr.lines}
    np.testing.assert_allclose(lines["SRGAN"].get_xdata(), [80, 160, 240, 320])
    np.testing.assert_allclose(lines["SRGAN"].get_ydata(), [20, 21, 22, 23])
    assert set(lines) >= {"SRGAN", "ESRGAN", "bicubic"}
    assert len(psnr.collections) == 1
    assert [line.get_xdata()[0] for line in psnr.lines if line.get_marker() == "X"] == [320]
    assert [text.get_text() for text in figure.axes[1].texts] == ["nothing yet"]
    _pixels(figure)
    _pixels(convergence_figure({}))
    with pytest.raises(ValueError, match="x is 'hours'; expected one of"):
        convergence_figure({}, x="hours")
