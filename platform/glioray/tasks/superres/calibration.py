"""Checking the bounds of the collapse score on a panel of the user's data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.degrade import degrade
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.panel import Panel
from glioray.tasks.superres.panel_judge import PanelJudge
from glioray.tasks.superres.planted import Calibration, calibrate, plant

Images = NDArray[np.float32]


@dataclass(frozen=True)
class CalibratedImages:
    """The scored images; every channel is an image.

    Attributes:
        hr: (N, H, W), the truth.
        lr: (N, h, w), the inputs.
        outputs: (N, H, W), by row name.
    """

    hr: Images
    lr: Images
    outputs: dict[str, Images]


def calibrate_panel(
    panel: Panel, config: GanConfig, resolver: SuperResolver | None = None
) -> tuple[list[Calibration], CalibratedImages]:
    """Score each planted collapse, healthy output and generator of a model; return the rows and the images.

    Args:
        panel: the images.
        config: with the degradation and the bounds.
        resolver: a model with that degradation, whose generators should score as healthy.
    """
    judge = PanelJudge(panel, config)
    size = (panel.hr.shape[-2], panel.hr.shape[-1])
    models: dict[str, Tensor] = {}
    if resolver is not None:
        for stage in resolver.nets:
            made = resolver.images(judge.lr, size, blend=float(stage == "gan"))
            models[f"the model's {stage} generator"] = torch.flatten(made, 0, 1)
    hr, lr = torch.flatten(panel.hr, 0, 1), torch.flatten(judge.lr, 0, 1)
    again = partial(_lower, config=config, size=judge.size)
    rows = calibrate(hr, lr, again, config.collapse, models)
    outputs = {row.name: models[row.name] if row.name in models else plant(row.name, hr, lr) for row in rows}
    numbers = {name: images.numpy() for name, images in outputs.items()}
    return rows, CalibratedImages(hr.numpy(), lr.numpy(), numbers)


def _lower(images: Tensor, config: GanConfig, size: tuple[int, int]) -> Tensor:
    return degrade(images[:, None], size, config.degrade)[:, 0]
