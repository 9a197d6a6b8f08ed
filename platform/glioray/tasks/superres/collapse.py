"""Whether a super-resolution generator has collapsed, as a score from 0 to 1 across many inputs.

Such a generator has no latent input, so that "many codes, one image" cannot be asked. What can be: do the outputs
still tell the inputs apart, do they vary as the inputs do, is their detail their own, and are they images at all?
Interpolation has no fault in that sense: the score is a bound on a run and no aim of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glioray.metrics.image import above_nyquist, power_spectrum, psnr
from glioray.tasks.superres.config import COLLAPSE_COMPONENTS, CollapseConfig
from glioray.tasks.superres.degrade import upsample

_NEXT_TO_NOTHING = 0.05
"""Share of the real detail's energy that counts as none: what interpolation leaves at the same outline of every head
is about 0.03, and the same in all images of a small panel."""

Degrade = Callable[[Tensor], Tensor]
"""(N, H, W) -> (N, h, w): low resolution of images, as the inputs were made, without noise."""


@dataclass(frozen=True)
class CollapseReport:
    """The score of one evaluation.

    Attributes:
        score: 0 (healthy) to 1, the largest of the components.
        reason: which one that is; where all are 0, the one nearest to its bound.
        components: by name, in the order of `COLLAPSE_COMPONENTS`, each from 0 to 1.
        values: what they were made of, in the units of `CollapseConfig`.
        is_finite: whether all outputs are numbers.
    """

    score: float
    reason: str
    components: dict[str, float]
    values: dict[str, float] = field(default_factory=dict)
    is_finite: bool = True


@torch.no_grad()
def collapse_report(
    sr: Tensor, hr: Tensor, lr: Tensor, degrade: Degrade, config: CollapseConfig
) -> CollapseReport:
    """The collapse score of a panel's outputs; every number in it is finite, whatever the outputs are.

    Args:
        sr: (N, H, W) outputs, not clipped.
        hr: (N, H, W) in [0, 1], the truth.
        lr: (N, h, w), what the outputs were made of.
        degrade: what makes low resolution of images.
        config: the bounds between which each component rises from 0 to 1.

    Raises:
        ValueError: fewer than 2 images, shapes that differ, or inputs that are all the same.
    """
    if len(hr) < 2 or sr.shape != hr.shape or len(lr) != len(hr):
        raise ValueError(
            f"sr is {tuple(sr.shape)}, hr {tuple(hr.shape)}, lr {tuple(lr.shape)}; expected (N, H, W) twice and "
            "(N, h, w) of at least 2 images"
        )
    sr, hr, lr = sr.float(), hr.float(), lr.float()
    is_finite = bool(torch.isfinite(sr).all())
    outside = ((sr < -0.1) | (sr > 1.1)).float().mean()
    # Bounded, so that no square of it overflows: one pixel must not decide all the components.
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
    }
    bounds = {name: getattr(config, name) for name in COLLAPSE_COMPONENTS}
    excess = {name: (values[name] - ok) / (bad - ok) for name, (ok, bad) in bounds.items()}
    components = {name: min(max(excess[name], 0.0), 1.0) for name in COLLAPSE_COMPONENTS}
    if not is_finite:
        components["invalid"] = 1.0
    score = max(components.values())
    ranked = components if score > 0 else excess
    reason = max(COLLAPSE_COMPONENTS, key=lambda name: ranked[name])
    return CollapseReport(score, reason, components, values, is_finite)


class CollapseWatch:
    """Whether a run is collapsed, from its evaluations one after another.

    The first `grace` evaluations of the adversarial stage do not count, and it takes `patience` bad ones among the
    last `window`, this one among them: at a rate far too high some runs leap from bicubic to nonsense and back.
    Outputs that are no numbers count at once.

    Attributes:
        is_collapsed: what the latest evaluation said.
    """

    def __init__(self, config: CollapseConfig) -> None:
        self.config = config
        self.is_collapsed = False
        self._num_seen = 0
        self._recent: list[float] = []

    def judge(self, report: CollapseReport, *, adversarial: bool = True) -> bool:
        """Whether the run is collapsed, with this evaluation.

        Args:
            report: of the evaluation.
            adversarial: it is one of the adversarial stage; of another, nothing but non-finite outputs counts.
        """
        config = self.config
        self._num_seen += adversarial
        if adversarial or not report.is_finite:
            self._recent = [*self._recent, report.score][-config.window :]
        num_counted = min(max(self._num_seen - config.grace, 0), len(self._recent))
        bad = [score >= config.threshold for score in self._recent[len(self._recent) - num_counted :]]
        self.is_collapsed = not report.is_finite or (sum(bad) >= config.patience and bad[-1])
        return self.is_collapsed

    def objective(self, quality: float) -> float:
        """What a search makes large: `quality` of a run that was healthy lately, else -1 less the score.

        Any of the last `patience` evaluations of the adversarial stage may be the bad one, and the worst of them is
        the score: every healthy run, whose quality is at least -1, is above every other. There is no grace in this:
        a run that ends soon after it collapsed is no better for it. Always finite.

        Args:
            quality: -1 to 1, larger is better.
        """
        worst = max(self._recent[-self.config.patience :], default=0.0)
        if worst >= self.config.threshold or not math.isfinite(quality):
            return -1.0 - max(worst, self.config.threshold)
        return min(max(quality, -1.0), 1.0)

    def state(self) -> dict[str, Any]:
        """Plain values to go on from."""
        return {"num_seen": self._num_seen, "recent": list(self._recent), "is_collapsed": self.is_collapsed}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._num_seen = int(state["num_seen"])
        self._recent = [float(score) for score in state["recent"]]
        self.is_collapsed = bool(state["is_collapsed"])


def _upsample(images: Tensor, size: tuple[int, int]) -> Tensor:
    return upsample(images[:, None], size)[:, 0]


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) in float64; not by the product of matrices, which loses what near neighbours differ by."""
    rows = (a.flatten(1), b.flatten(1))
    return torch.cdist(*rows, compute_mode="donot_use_mm_for_euclid_dist").double().square()


def _recall(again: Tensor, lr: Tensor) -> float:
    """The share of outputs that, brought down again, are nearest to their own input (R@1); equal inputs share."""
    distances = _squared_distances(again, lr)
    return float((distances.diagonal() <= distances.min(1).values).double().mean())


def _lost_diversity(again: Tensor, lr: Tensor) -> float:
    """1 less the share of the inputs' Vendi score, less 1, that the outputs keep.

    Reference: Friedman and Dieng 2023 (arXiv 2210.02410), with a Gaussian kernel of a width that the inputs set.
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
    """The share of the detail's energy that is the same in every image, beyond that of real detail."""
    floor = _NEXT_TO_NOTHING * real.square().sum((1, 2)).mean() + 1e-12

    def share(residuals: Tensor) -> Tensor:
        return residuals.mean(0).square().sum() / (residuals.square().sum((1, 2)).mean() + floor)

    return float(share(detail) - share(real))


def _artefact_db(sr: Tensor, hr: Tensor, lr_size: tuple[int, int]) -> float:
    """By how much the spectrum stands out over the real one, at worst, above the low resolution's Nyquist frequency."""
    size = (hr.shape[-2], hr.shape[-1])
    above = above_nyquist(size, lr_size).to(hr.device)
    made, real = (_smooth(power_spectrum(images)) for images in (sr, hr))
    floor = real[above].mean() + 1e-12
    return float(10 * torch.log10((made[above] + floor) / (real[above] + floor)).max())


def _smooth(plane: Tensor) -> Tensor:
    """A 3 x 3 mean; frequencies go round."""
    padded = F.pad(plane[None, None], (1, 1, 1, 1), mode="circular")
    return F.avg_pool2d(padded, 3, 1)[0, 0]


def _lost_psnr(sr: Tensor, hr: Tensor, bicubic: Tensor) -> float:
    mask = hr > 0
    seen = mask.flatten(1).any(1)
    if not seen.any():
        raise ValueError(f"none of the {len(hr)} images has a foreground; expected values above 0")
    loss = psnr(bicubic, hr, mask) - psnr(sr, hr, mask)
    return float(loss[seen].mean())
