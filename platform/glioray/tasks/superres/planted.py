"""Planted collapsed and dead outputs, and healthy ones, to calibrate the collapse score."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glioray.metrics.image import image_metrics
from glioray.tasks.superres.collapse import Degrade, collapse_report, fault_word, lost_share
from glioray.tasks.superres.config import DEAD, CollapseConfig
from glioray.tasks.superres.degrade import upsample

HEALTHY_LIMIT = 0.3
"""Healthy outputs score less; from the configured threshold on they would count as collapsed."""


@dataclass(frozen=True)
class Scene:
    """The ingredients of planted outputs.

    Attributes:
        hr: (N, H, W) in [0, 1], the truth.
        lr: (N, h, w), the inputs.
        bicubic: (N, H, W), the upsampled inputs.
        rng: for random draws.
    """

    hr: Tensor
    lr: Tensor
    bicubic: Tensor
    rng: np.random.Generator

    def noise(self, *shape: int) -> Tensor:
        """Draw normal noise."""
        return torch.from_numpy(self.rng.standard_normal(shape, dtype=np.float32)).to(self.hr.device)


Maker = Callable[[Scene], Tensor]
"""Outputs (N, H, W) for the inputs of a scene."""


def plant(name: str, hr: Tensor, lr: Tensor) -> Tensor:
    """Make the outputs (N, H, W) float32 of a generator with the named fault (or of a healthy one); deterministic.

    Args:
        name: of `PLANTED` or `HEALTHY`.
        hr: (N, H, W) in [0, 1], the truth.
        lr: (N, h, w), the inputs.

    Raises:
        ValueError: unknown name.
    """
    makers = PLANTED | HEALTHY
    if name not in makers:
        raise ValueError(f"'{name}' is not a planted output; choose from {', '.join(makers)}")
    bicubic = upsample(lr[:, None], (hr.shape[-2], hr.shape[-1]))[:, 0]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return makers[name](Scene(hr.float(), lr.float(), bicubic, rng)).float()


@dataclass(frozen=True)
class Calibration:
    """One row of the calibration table.

    Attributes:
        name: of the outputs.
        expected: "collapsed", "dead" or "healthy".
        score: their collapse score.
        reason: the component with that score.
        components: all components, by name.
        is_ok: whether the score is on the expected side of its bound; of a dead one, by its own component.
    """

    name: str
    expected: str
    score: float
    reason: str
    components: dict[str, float]
    is_ok: bool


def calibrate(
    hr: Tensor,
    lr: Tensor,
    degrade: Degrade,
    config: CollapseConfig,
    more_healthy: Mapping[str, Tensor] | None = None,
) -> list[Calibration]:
    """Score each planted output (expected to reach the threshold) and each healthy one (expected below 0.3).

    Args:
        hr: (N, H, W) in [0, 1], the truth.
        lr: (N, h, w), the inputs.
        degrade: the degradation.
        config: the bounds to check.
        more_healthy: further outputs expected to be healthy, such as those of trained models.

    Raises:
        ValueError: as `collapse_report`.
    """
    rows = []
    healthy = {name: plant(name, hr, lr) for name in HEALTHY} | dict(more_healthy or {})
    for name in (*PLANTED, *healthy):
        is_planted = name in PLANTED
        outputs = plant(name, hr, lr) if is_planted else healthy[name]
        lost = _lost_share(name, outputs, hr, lr)
        report = collapse_report(outputs, hr, lr, degrade, config, lost=lost)
        expected = "healthy" if not is_planted else DEAD if name in AFTER_PIXELS else "collapsed"
        is_ok = report.score >= config.threshold if is_planted else report.score < HEALTHY_LIMIT
        is_ok &= expected == "healthy" or fault_word(report.reason) == expected
        rows.append(Calibration(name, expected, report.score, report.reason, report.components, is_ok))
    return rows


def _lost_share(name: str, outputs: Tensor, hr: Tensor, lr: Tensor) -> float:
    """`lost_share` of outputs that follow a pixel stage with a gain, else 0; quality is by HFEN."""
    if name not in AFTER_PIXELS:
        return 0.0
    bicubic, lr_size = plant("bicubic", hr, lr), (lr.shape[-2], lr.shape[-1])
    before, now = (
        image_metrics(sr, hr, bicubic, lr_size=lr_size) for sr in (plant("some detail", hr, lr), outputs)
    )
    return lost_share(before, now)


def advise(row: Calibration, config: CollapseConfig) -> str:
    """Name the bound to adjust for a row on the wrong side, in one sentence."""
    found = f"'{row.name}' is {row.expected} and scores {row.score:.2f}"
    bounds = f"collapse.{row.reason}, now {getattr(config, row.reason)}"
    if row.expected == "healthy":
        return f"{found} by {row.reason}; expected less than {HEALTHY_LIMIT:g}, so raise {bounds}"
    return f"{found}, by {row.reason} at most; expected {config.threshold:g} or more, so lower {bounds}"


def _one_real(scene: Scene) -> Tensor:
    return scene.hr[len(scene.hr) // 3].expand_as(scene.hr)


def _prototypes(num: int) -> Maker:
    """Output one of a few real images for each input."""

    def make(scene: Scene) -> Tensor:
        kept = scene.rng.choice(len(scene.hr), min(num, len(scene.hr)), replace=False)
        return scene.hr[torch.from_numpy(scene.rng.choice(kept, len(scene.hr)))]

    return make


def _nearest(share: float) -> Maker:
    """Output the nearest of a share of the real images: memorisation instead of generation."""

    def make(scene: Scene) -> Tensor:
        num = max(2, round(share * len(scene.hr)))
        kept = torch.from_numpy(scene.rng.choice(len(scene.hr), num, replace=False))
        distances = torch.cdist(scene.lr.flatten(1), scene.lr[kept].flatten(1))
        return scene.hr[kept[distances.argmin(1)]]

    return make


def _permuted(scene: Scene) -> Tensor:
    return scene.hr.roll(1, 0)


def _partly_mean(share: float) -> Maker:
    """Output the mean image for a share of the inputs, the truth for all others."""

    def make(scene: Scene) -> Tensor:
        made = scene.hr.clone()
        chosen = scene.rng.permutation(len(made))[: round(share * len(made))]
        made[torch.from_numpy(chosen)] = scene.hr.mean(0)
        return made

    return make


def _cells(scene: Scene, cell: int, *, both: bool) -> Tensor:
    """Make (H, W) of 1 and -1, alternating every `cell` pixels along columns or both axes."""
    rows, columns = (torch.arange(side, device=scene.hr.device) // cell for side in scene.hr.shape[-2:])
    parity = columns[None] + (rows[:, None] if both else torch.zeros_like(rows)[:, None])
    return 1.0 - 2.0 * (parity % 2)


def _checkerboard(cell: int, amplitude: float) -> Maker:
    """Add the checkerboard that transposed convolutions or pixel shuffle can leave."""
    return lambda scene: scene.bicubic + amplitude * _cells(scene, cell, both=True)


def _stripes(scene: Scene) -> Tensor:
    return scene.bicubic + 0.03 * _cells(scene, 1, both=False)


def _texture(scene: Scene) -> Tensor:
    """Add the same invented detail to every image."""
    return scene.bicubic + 0.05 * scene.noise(*scene.hr.shape[1:])


def _untrained(scene: Scene) -> Tensor:
    """Output a random network without a skip from its input."""
    features = scene.lr[:, None]
    for wide, deep in ((1, 16), (16, 16), (16, 1)):
        weights = scene.noise(deep, wide, 3, 3) * (2 / (9 * wide)) ** 0.5
        features = F.conv2d(F.leaky_relu(features, 0.2), weights, padding=1)
    return F.interpolate(features, scene.hr.shape[-2:])[:, 0]


def _with_nan(scene: Scene) -> Tensor:
    made = scene.hr.clone()
    made[0, : made.shape[1] // 3] = torch.nan
    return made


def _with_inf(scene: Scene) -> Tensor:
    made = scene.bicubic.clone()
    made[-1, -1, -1] = torch.inf
    return made


def _blurred(scene: Scene) -> Tensor:
    """Output the truth, blurred by 0.6 pixels."""
    x = torch.arange(-2, 3, dtype=torch.float32, device=scene.hr.device)
    window = torch.exp(-0.5 * (x / 0.6).square())
    window = window / window.sum()
    padded = F.pad(scene.hr[:, None], (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(padded, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))[:, 0]


def _detail(share: float) -> Maker:
    """Output bicubic with a share of the missing detail; 0.4 is what a generator trained by L1 may add."""
    return lambda scene: scene.bicubic + share * (scene.hr - scene.bicubic)


def _invented_detail(scene: Scene) -> Tensor:
    """Output bicubic with realistic detail in the wrong places, as an adversarially trained generator does."""
    return scene.bicubic + 0.6 * (scene.hr - scene.bicubic).roll(1, 0)


def _untrained_skip(scene: Scene) -> Tensor:
    """Output bicubic plus a random network with near-zero output."""
    weights = scene.noise(1, 1, 5, 5)
    detail = F.conv2d(scene.bicubic[:, None], weights - weights.mean(), padding=2)
    return scene.bicubic + 0.01 * detail[:, 0]


PLANTED: dict[str, Maker] = {
    "constant": lambda scene: torch.full_like(scene.hr, 0.4),
    "black": lambda scene: torch.zeros_like(scene.hr),
    "white": lambda scene: torch.ones_like(scene.hr),
    "mean image": lambda scene: scene.hr.mean(0).expand_as(scene.hr),
    "faded into the mean": lambda scene: 0.85 * scene.hr.mean(0) + 0.15 * scene.hr,
    "one real image": _one_real,
    "2 prototypes": _prototypes(2),
    "8 prototypes": _prototypes(8),
    "an eighth, nearest": _nearest(1 / 8),
    "three eighths, nearest": _nearest(3 / 8),
    "permuted": _permuted,
    "half the mean": _partly_mean(1 / 2),
    "quarter the mean": _partly_mean(1 / 4),
    "checkerboard 1 px, 0.02": _checkerboard(1, 0.02),
    "checkerboard 1 px, 0.05": _checkerboard(1, 0.05),
    "checkerboard 2 px, 0.02": _checkerboard(2, 0.02),
    "checkerboard 2 px, 0.05": _checkerboard(2, 0.05),
    "stripes 1 px, 0.03": _stripes,
    "same texture": _texture,
    "noise": lambda scene: scene.noise(*scene.hr.shape).mul(0.2).add(0.4),
    "buried in noise": lambda scene: scene.bicubic + 0.2 * scene.noise(*scene.hr.shape),
    "saturated": lambda scene: 4 * scene.bicubic,
    "inverted": lambda scene: 1 - scene.hr,
    "half intensity": lambda scene: 0.5 * scene.hr,
    "untrained": _untrained,
    "exploded": lambda scene: 1e6 * scene.noise(*scene.hr.shape),
    "not a number": _with_nan,
    "infinite": _with_inf,
    "bicubic, after pixels": lambda scene: scene.bicubic,
    "hardly any detail, after pixels": _detail(0.05),
    "untrained on bicubic, after pixels": _untrained_skip,
}

HEALTHY: dict[str, Maker] = {
    "real": lambda scene: scene.hr,
    "bicubic": lambda scene: scene.bicubic,
    "slightly blurred": _blurred,
    "some detail": _detail(0.4),
    "invented detail": _invented_detail,
    "untrained on bicubic": _untrained_skip,
    "some detail, after pixels": _detail(0.4),
    "less detail, after pixels": _detail(0.25),
}

AFTER_PIXELS = frozenset(name for name in (*PLANTED, *HEALTHY) if name.endswith(", after pixels"))
"""Outputs of the adversarial stage after a pixel stage that ended with "some detail"; the planted ones are dead."""
