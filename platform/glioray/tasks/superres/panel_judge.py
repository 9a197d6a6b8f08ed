"""Scoring a generator on its panel: image metrics beside bicubic's, the collapse score, the objective."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from glioray.metrics.image import image_metrics
from glioray.tasks.superres.collapse import (
    CollapseReport,
    CollapseWatch,
    collapse_report,
    fault_word,
    lost_share,
)
from glioray.tasks.superres.config import COLLAPSE_COMPONENTS, GanConfig
from glioray.tasks.superres.degrade import degrade, upsample
from glioray.tasks.superres.lpips import Lpips
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.panel import Panel


class PanelJudge:
    """Scores one generator after another on the same images, and remembers the latest scores.

    Attributes:
        panel: the images.
        lr: (N, C, h, w), degraded from them once, with noise.
        bicubic: (N, C, H, W), upsampled from `lr`.
        sr: (N, C, H, W), of the latest generator, not clipped.
    """

    def __init__(self, panel: Panel, config: GanConfig, lpips: Lpips | None = None) -> None:
        self.panel, self.config = panel, config
        self.distance = None if lpips is None else lpips.foreground_and_whole
        self.figures: dict[str, float] | None = None
        self.pixel: dict[str, float] = {}
        self.size = (config.degrade.lr_size, config.degrade.lr_size)
        rngs = [np.random.default_rng([config.train.seed, number, 11]) for number in range(len(panel))]
        self.lr = degrade(panel.hr, self.size, config.degrade, rngs)
        self.bicubic = upsample(self.lr, (panel.hr.shape[-2], panel.hr.shape[-1]))
        self.sr: Tensor = self.bicubic
        self.watch = CollapseWatch(config.collapse)

    def __call__(self, resolver: SuperResolver, is_adversarial: bool) -> dict[str, Any]:
        """Score the next generator of the run.

        Returns: `metrics`, all finite; `verdict` ("healthy", "collapsed" or "dead") and `reason`.
        """
        size = (self.panel.hr.shape[-2], self.panel.hr.shape[-1])
        if is_adversarial and not self.pixel and "psnr" in resolver.nets:
            found = self._measure(resolver.images(self.lr, size, blend=0.0))
            self.pixel = {name: found[name] for name in ("gain_psnr", "quality")}
        self.sr = resolver.images(self.lr, size)
        figures = self._measure(self.sr)
        lost = lost_share(self.pixel, figures) if self.pixel else 0.0
        report = self.score(self.sr, lost)
        is_collapsed = self.watch.judge(report, adversarial=is_adversarial)
        metrics = {
            **figures,
            **{f"pixel_{name}": value for name, value in self.pixel.items()},
            "collapse_score": report.score,
            **{f"collapse_{name}": value for name, value in report.components.items()},
            "collapse_reason": float(COLLAPSE_COMPONENTS.index(report.reason)),
            "is_collapsed": float(is_collapsed),
            "objective": self.watch.objective(figures["quality"]),
        }
        # A model is judged by its current outputs: one bad evaluation is enough, whatever came before.
        bad = is_collapsed or report.score >= self.config.collapse.threshold
        return {
            "metrics": metrics,
            "verdict": fault_word(report.reason) if bad else "healthy",
            "reason": report.reason,
        }

    def _measure(self, sr: Tensor) -> dict[str, float]:
        self.figures = image_metrics(
            _folded(sr),
            _folded(self.panel.hr),
            _folded(self.bicubic),
            lr_size=self.size,
            lpips=self.distance,
            previous=self.figures,
        )
        return self.figures

    def score(self, sr: Tensor, lost: float = 0.0) -> CollapseReport:
        """Compute the collapse score of outputs (N, C, H, W); every channel counts as an image.

        Args:
            sr: the outputs.
            lost: `lost_share` of the pixel stage's gain.
        """

        def again(images: Tensor) -> Tensor:
            return degrade(images[:, None], self.size, self.config.degrade)[:, 0]

        lr, hr = _folded(self.lr), _folded(self.panel.hr)
        return collapse_report(_folded(sr), hr, lr, again, self.config.collapse, lost=lost)

    def state(self) -> dict[str, Any]:
        """Return plain values to resume from."""
        return {**self.watch.state(), "pixel": self.pixel}

    def load_state(self, state: dict[str, Any]) -> None:
        """Resume from the result of `state`."""
        self.watch.load_state(state)
        # Older checkpoints have none; it is measured again.
        self.pixel = dict(state.get("pixel", {}))


def _folded(images: Tensor) -> Tensor:
    """Reshape (N, C, H, W) to (N * C, H, W)."""
    return torch.flatten(images, 0, 1)
