"""The export of a super-resolution model: its last generator at the model's own scale."""

from __future__ import annotations

from pathlib import Path

import torch

from glioray.engine.task import Export
from glioray.nets.gan import FixedScale
from glioray.tasks.superres.files import describe_files
from glioray.tasks.superres.package import read_superres


def export_superres(package: Path) -> Export:
    """Prepare a package for MLflow; see `engine.task.Task.export`.

    The network maps (B, C, h, w) in [0, 1] to (B, C, scale h, scale w), not clipped. Where the scale is whole, h and
    w are free.
    """
    spec, nets = read_superres(package)
    config = spec.config
    # As they were read: weights laid out for channels-last images are exported with a warning.
    net = FixedScale(nets["gan" if "gan" in nets else "psnr"], config.degrade.scale)
    size = config.degrade.lr_size
    return Export(net, torch.zeros(1, config.num_channels, size, size), files=describe_files(spec))
