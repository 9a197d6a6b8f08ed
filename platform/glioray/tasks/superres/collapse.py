"""The collapse score: whether a super-resolution generator has collapsed, from 0 to 1 over many inputs.

Such a generator has no latent input, so collapse cannot mean "many codes, one image". Instead the score asks: can the
outputs be distinguished as well as the inputs, do they vary as much, is their detail specific to each input, and are they
images at all? Interpolation passes all of these: the score is a constraint on a run, never its objective.

A generator that falls back to interpolation after its pixel stage had gained something is dead: a failure of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glioray.metrics.image import above_nyquist, power_spectrum, psnr
from glioray.tasks.superres.config import COLLAPSE_COMPONENTS, DEAD, CollapseConfig
from glioray.tasks.superres.degrade import upsample

_NEXT_TO_NOTHING = 0.05
"""Share of the real detail's energy that counts as none: what interpolation leaves at the same outline of every head
is about 0.03, and the same in all images of a small panel."""

_LEAST_GAIN_DB = 0.25
"""Gain of the pixel stage over bicubic below which there is nothing to lose: its spread over panels is as large."""

_LEAST_QUALITY = 0.02
"""Quality up to which a generator is no better than bicubic."""

Degrade = Callable[[Tensor], Tensor]
"""(N, H, W) -> (N, h, w): low resolution of images, as the inputs were made, without noise."""


@dataclass(frozen=True)
class CollapseReport:
    """The score of one evaluation.

    Attributes:
        score: 0 (healthy) to 1, the maximum of the components.
        reason: the component with the maximum; if all are 0, the one nearest to its bound.
        components: by name, in the order of `COLLAPSE_COMPONENTS`, each from 0 to 1.
        values: the measured values behind them, in the units of `CollapseConfig`.
        is_finite: whether all outputs are finite.
    """

    score: float
    reason: str
    components: dict[str, float]
    values: dict[str, float] = field(default_factory=dict)
    is_finite: bool = True

    @property
    def collapse(self) -> float:
        """The maximum of all components but "dead"."""
        return max((value for name, value in self.components.items() if name != DEAD), default=self.score)


def fault_word(reason: str) -> str:
    """The state of a run whose score is bad by that component: "dead" or "collapsed"."""
    return DEAD if reason == DEAD else "collapsed"


def describe_evaluation(metrics: Mapping[str, float]) -> str:
    """The component behind the score of an evaluation, with a number."""
    reason = COLLAPSE_COMPONENTS[int(metrics["collapse_reason"])]
    if reason == DEAD:
        gained, now = metrics["pixel_gain_psnr"], metrics["gain_psnr"]
        return f"a gain over bicubic of {now:.2f} dB is left of the {gained:.2f} dB of the pixel stage"
    return f"{reason} {metrics['collapse_score']:.2f}"


def lost_share(before: Mapping[str, float], now: Mapping[str, float]) -> float:
    """The share of the pixel stage's gain in PSNR that is lost, above 1 below bicubic; 0 if there is no loss to speak of.

    A GAN may trade PSNR for quality, so that a quality above the pixel stage's excuses any loss.

    Args:
        before: `image_metrics` of the pixel stage's generator.
        now: those of the current one, on the same panel.
    """
    gained = before["gain_psnr"]
    if gained < _LEAST_GAIN_DB or now["quality"] > max(before["quality"], _LEAST_QUALITY):
        return 0.0
    return 1 - now["gain_psnr"] / gained


@torch.no_grad()
def collapse_report(
    sr: Tensor, hr: Tensor, lr: Tensor, degrade: Degrade, config: CollapseConfig, *, lost: float = 0.0
) -> CollapseReport:
    """Compute the collapse score of a panel's outputs; always finite, whatever the outputs are.

    Args:
        sr: (N, H, W) outputs, not clipped.
        hr: (N, H, W) in [0, 1], the truth.
        lr: (N, h, w), the inputs.
        degrade: the degradation that made them.
        config: the bounds between which each component rises from 0 to 1.
        lost: `lost_share`; of a collapsed generator it does not count, since that has lost its gain, too.

    Raises:
        ValueError: fewer than 2 images, mismatched shapes, or identical inputs.
    """
    if len(hr) < 2 or sr.shape != hr.shape or len(lr) != len(hr):
        raise ValueError(
            f"sr is {tuple(sr.shape)}, hr {tuple(hr.shape)}, lr {tuple(lr.shape)}; expected (N, H, W) twice and "
            "(N, h, w) of at least 2 images"
        )
    sr, hr, lr = sr.float(), hr.float(), lr.float()
    is_finite = bool(torch.isfinite(sr).all())
    outside = ((sr < -0.1) | (sr > 1.1)).float().mean()
    # Clamped, so that no square overflows: one pixel must not decide all components.
    sr = torch.nan_to_num(sr, nan=0.0).clamp(-10, 10)
    size = (hr.shape[-2], hr.shape[-1])
    lr_size = (lr.shape[-2], lr.shape[-1])
    again = degrade(sr)
    values = {
        "invalid": float(outside) if is_finite else 1.0,
        "conditioning": 1 - _recall(again, lr),
        "diversity": _lost_diversity(again, lr),
        "texture": _same_texture(sr - _upsample(again, size), hr - _upsample(degrade(hr), size)),
        "artefact": _artefact_db(sr, hr, lr_size),
        "fidelity": _lost_psnr(sr, hr, _upsample(lr, size)),
        DEAD: lost,
    }
    bounds = {name: getattr(config, name) for name in COLLAPSE_COMPONENTS}
    excess = {name: (values[name] - ok) / (bad - ok) for name, (ok, bad) in bounds.items()}
    components = {name: min(max(excess[name], 0.0), 1.0) for name in COLLAPSE_COMPONENTS}
    if not is_finite:
        components["invalid"] = 1.0
    if max(value for name, value in components.items() if name != DEAD) >= config.threshold:
        components[DEAD] = 0.0
    score = max(components.values())
    ranked = components if score > 0 else excess
    reason = max(COLLAPSE_COMPONENTS, key=lambda name: ranked[name])
    return CollapseReport(score, reason, components, values, is_finite)


class CollapseWatch:
    """Decides whether a run has collapsed or died, from its evaluations in order.

    The first `grace` evaluations of the adversarial stage do not count. Then `patience` bad ones among the last
    `window`, including the current one, mean collapse: at far too high a rate some runs alternate between bicubic and
    nonsense. Non-finite outputs count at once. A run is dead if its latest evaluation is and the `dead_patience` last
    ones, after the grace, are all dead or collapsed: what it had gained does not come back.

    Attributes:
        verdict: of the latest evaluation: "healthy", "collapsed" or "dead".
    """

    def __init__(self, config: CollapseConfig) -> None:
        self.config = config
        self.verdict = "healthy"
        self._num_seen = 0
        self._recent: list[float] = []
        self._dead: list[float] = []

    @property
    def is_collapsed(self) -> bool:
        """Whether the run has collapsed or died."""
        return self.verdict != "healthy"

    def judge(self, report: CollapseReport, *, adversarial: bool = True) -> bool:
        """Add an evaluation and return whether the run has collapsed or died.

        Args:
            report: of the evaluation.
            adversarial: whether it belongs to the adversarial stage; before it, only non-finite outputs count.
        """
        config = self.config
        self._num_seen += adversarial
        if adversarial or not report.is_finite:
            kept = max(config.window, config.dead_patience)
            self._recent = [*self._recent, report.collapse][-kept:]
            self._dead = [*self._dead, report.components.get(DEAD, 0.0)][-kept:]
        first = len(self._recent) - min(max(self._num_seen - config.grace, 0), len(self._recent))
        bad, dead = ([v >= config.threshold for v in part[first:]] for part in (self._recent, self._dead))
        failed = [any(pair) for pair in zip(bad, dead, strict=True)][-config.dead_patience :]
        if not report.is_finite or (sum(bad[-config.window :]) >= config.patience and bad[-1]):
            self.verdict = "collapsed"
        elif len(failed) == config.dead_patience and all(failed) and dead[-1]:
            self.verdict = DEAD
        else:
            self.verdict = "healthy"
        return self.is_collapsed

    def objective(self, quality: float) -> float:
        """Compute what a search maximises: `quality` of a recently healthy run, else -1 minus the score.

        The worst of the last `patience` evaluations of the adversarial stage decides, and whether the latest one is
        dead: every healthy run, whose quality is at least -1, ranks above every other. There is no grace here: ending
        soon after a collapse does not help. Always finite.

        Args:
            quality: -1 to 1, larger is better.
        """
        worst = max([*self._recent[-self.config.patience :], *self._dead[-1:]], default=0.0)
        if worst >= self.config.threshold or not math.isfinite(quality):
            return -1.0 - max(worst, self.config.threshold)
        return min(max(quality, -1.0), 1.0)

    def state(self) -> dict[str, Any]:
        """Return plain values to resume from."""
        return {
            "num_seen": self._num_seen,
            "recent": list(self._recent),
            "dead": list(self._dead),
            "verdict": self.verdict,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Resume from the result of `state`."""
        self._num_seen = int(state["num_seen"])
        self._recent = [float(score) for score in state["recent"]]
        # Older checkpoints know no dead runs.
        self._dead = [float(score) for score in state.get("dead", [0.0] * len(self._recent))]
        if "verdict" in state:
            self.verdict = str(state["verdict"])
        else:
            self.verdict = "collapsed" if state["is_collapsed"] else "healthy"


def _upsample(images: Tensor, size: tuple[int, int]) -> Tensor:
    return upsample(images[:, None], size)[:, 0]


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Compute (N, M) squared distances in float64, without the matrix-product trick, which loses small differences."""
    rows = (a.flatten(1), b.flatten(1))
    return torch.cdist(*rows, compute_mode="donot_use_mm_for_euclid_dist").double().square()


def _recall(again: Tensor, lr: Tensor) -> float:
    """Compute the share of outputs that, degraded again, are nearest to their own input (R@1); equal inputs share."""
    distances = _squared_distances(again, lr)
    return float((distances.diagonal() <= distances.min(1).values).double().mean())


def _lost_diversity(again: Tensor, lr: Tensor) -> float:
    """Compute 1 - (Vendi(outputs) - 1) / (Vendi(inputs) - 1): the share of diversity lost.

    Reference: Friedman and Dieng 2023 (arXiv 2210.02410), with a Gaussian kernel whose width the inputs set.
    """
    among = _squared_distances(lr, lr)
    pairs = torch.triu_indices(len(lr), len(lr), 1)
    variance = 0.25 * among[pairs[0], pairs[1]].median()
    if variance <= 0:
        raise ValueError("most inputs of the panel are the same image; expected different slices")
    inputs = _vendi(among, variance)
    return float(1 - (_vendi(_squared_distances(again, again), variance) - 1) / (inputs - 1))


def _vendi(squares: Tensor, variance: Tensor) -> Tensor:
    kernel = torch.exp(-squares / (2 * variance)) / len(squares)
    shares = torch.linalg.eigvalsh(kernel).clamp_min(0)
    return torch.special.entr(shares).sum().exp()


def _same_texture(detail: Tensor, real: Tensor) -> float:
    """Compute the share of detail energy that is the same in every image, minus that of real detail."""
    floor = _NEXT_TO_NOTHING * real.square().sum((1, 2)).mean() + 1e-12

    def share(residuals: Tensor) -> Tensor:
        return residuals.mean(0).square().sum() / (residuals.square().sum((1, 2)).mean() + floor)

    return float(share(detail) - share(real))


def _artefact_db(sr: Tensor, hr: Tensor, lr_size: tuple[int, int]) -> float:
    """Compute the largest excess over the real spectrum above the low resolution's Nyquist frequency, in dB."""
    size = (hr.shape[-2], hr.shape[-1])
    above = above_nyquist(size, lr_size).to(hr.device)
    made, real = (_smooth(power_spectrum(images)) for images in (sr, hr))
    floor = real[above].mean() + 1e-12
    return float(10 * torch.log10((made[above] + floor) / (real[above] + floor)).max())


def _smooth(plane: Tensor) -> Tensor:
    """Smooth by a 3 x 3 mean; frequencies wrap around."""
    padded = F.pad(plane[None, None], (1, 1, 1, 1), mode="circular")
    return F.avg_pool2d(padded, 3, 1)[0, 0]


def _lost_psnr(sr: Tensor, hr: Tensor, bicubic: Tensor) -> float:
    mask = hr > 0
    seen = mask.flatten(1).any(1)
    if not seen.any():
        raise ValueError(f"none of the {len(hr)} images has a foreground; expected values above 0")
    loss = psnr(bicubic, hr, mask) - psnr(sr, hr, mask)
    return float(loss[seen].mean())
