"""How super-resolution GANs are judged in a comparison."""

from __future__ import annotations

import pytest

from glioray.tasks.superres import comparison as module
from glioray.tasks.superres.comparison import SuperResComparison


@pytest.mark.parametrize(
    ("is_collapsed", "objective", "stopped", "state", "reason"),
    [
        (0.0, -1.0, "", "complete", ""),
        # Bad in its last evaluation, one too few for the watch; or the config does not stop collapsed runs.
        (0.0, -1.7, "", "collapsed", "collapsed at its end: texture 0.70"),
        (1.0, -1.7, "", "collapsed", "collapsed at its end: texture 0.70"),
        (1.0, -1.7, "collapsed: texture 0.70", "collapsed", "collapsed: texture 0.70"),
    ],
)
def test_run_that_ends_collapsed_is_never_healthy(
    is_collapsed: float, objective: float, stopped: str, state: str, reason: str
):
    last = {
        "is_collapsed": is_collapsed,
        "objective": objective,
        "collapse_reason": 3.0,
        "collapse_score": 0.7,
    }
    assert module._verdict(last, stopped) == {"state": state, "reason": reason}


def test_a_dead_run_is_not_called_collapsed():
    last = {
        "is_collapsed": 1.0,
        "objective": -1.9,
        "collapse_reason": 6.0,
        "collapse_score": 0.9,
        "gain_psnr": 0.05,
        "pixel_gain_psnr": 1.5,
    }
    found = module._verdict(last, "")
    assert found["state"] == "dead" in SuperResComparison.states
    assert found["reason"].startswith("dead at its end: a gain over bicubic of 0.05 dB is left")


def test_summary_is_the_quality_or_why_it_collapsed():
    comparison = SuperResComparison()
    complete = {"state": "complete", "reason": "", "figures": {"quality": 0.25}}
    assert comparison.summarize(complete) == "quality 0.250"
    collapsed = {**complete, "state": "collapsed", "reason": "collapsed: texture 0.90"}
    assert comparison.summarize(collapsed) == "collapsed: texture 0.90"
