"""A super-resolution model logged with its run: its package, and its last generator as an export."""

from __future__ import annotations

from pathlib import Path

import torch

from glioray.engine.on_mlflow.registry import log_model
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.nets.gan import AtScale
from glioray.tasks.superres.package import read_superres


def log_superres_package(logger: RunLogger, package: Path) -> str:
    """Log the model of a package's folder with an MLflow run; its URI.

    The export is the generator that the training ended with, at the model's own scale: (B, C, h, w) in [0, 1] to
    (B, C, scale h, scale w), not clipped. Where the scale is whole, h and w are free.
    """
    spec, nets = read_superres(package)
    config = spec.config
    # As they were read: weights laid out for channels-last images are exported with a warning.
    net = AtScale(nets["gan" if "gan" in nets else "psnr"], config.degrade.scale)
    size = config.degrade.lr_size
    return log_model(logger, package, net, torch.zeros(1, config.num_channels, size, size))
