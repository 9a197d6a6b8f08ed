"""The search space of segmentation networks, and the objective of its trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from glioray.cases.manifest import Manifest
from glioray.config import with_settings
from glioray.engine.search import Objective, Row, Search
from glioray.engine.space import Space
from glioray.engine.trials import count_rows
from glioray.errors import DataError
from glioray.nets import build_net
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.space import recipe_values, unet_space

OBJECTIVE = "objective"
_NUM_VALIDATIONS = 5
_WORST_GFLOPS = 1e9


class SegmentationSearch(Search):
    """Searches for the largest `objective` (see `objective`); a Pareto search, for that at the least cost of inference.

    The cost is the arithmetic of one slice's forward pass (`gflops`): known before the training, the same on any
    machine, and it counts width, depth and image size, which the number of parameters does not all do. Auto-nnU-Net
    takes the training time instead, which here is fixed where a search has `minutes`, and else depends on what runs
    beside a trial. The recipe's own space varies the cost by the width alone: `--search` adds depth, size or network.

    Reference: Becktepe, Hennig, Oeltze-Jafra, Lindauer 2025, Auto-nnU-Net (arXiv 2505.16561).
    """

    worst = -1.0
    objective = OBJECTIVE
    rate = "optim.lr"
    kept_metrics = ("dice_", "objective", "present_dice", "false_alarms", "train_", "gflops")
    columns = ("percent", "dice_mean", "false_alarms", "gflops")
    # Weight decay is part of the optimiser's state, which a member takes over from another.
    mutable = ("optim.lr", "augment.strength", "loss.options.ce_weight", "loss.options.dice_weight")

    def check_data(self, manifest: Manifest, config: RunConfig) -> None:
        if not manifest.select("val") and config.sample.slice_split is None:
            raise DataError(
                "a search compares trials on validation cases and the split has none; choose another --fold"
            )

    def prepare(self, config: RunConfig) -> RunConfig:
        return with_settings(config, {"train.num_validations": _NUM_VALIDATIONS})

    def space(self, config: RunConfig, given: Sequence[str] = ()) -> Space:
        return unet_space(config)

    def values(self, config: RunConfig) -> dict[str, Any]:
        return recipe_values(config)

    def static_metrics(self, config: RunConfig) -> dict[str, float]:
        return {"gflops": gflops_per_slice(config)}

    def to_report(self, metrics: Mapping[str, float], config: RunConfig) -> dict[str, Any]:
        objective = metrics.get(OBJECTIVE, self.worst)
        if not math.isfinite(objective):
            objective = self.worst
        is_healthy = self.is_healthy(objective, config)
        return {
            **metrics,
            OBJECTIVE: objective,
            "objective_or_penalty": objective,
            "gflops_or_penalty": metrics["gflops"] if is_healthy else _WORST_GFLOPS,
            "percent": int(100 * metrics["progress"]),
        }

    def objectives(self, config: RunConfig) -> tuple[Objective, Objective]:
        return (
            Objective(
                metric=OBJECTIVE,
                reported="objective_or_penalty",
                label="Dice of present regions less false alarms",
                worst=self.worst,
            ),
            Objective(
                metric="gflops",
                reported="gflops_or_penalty",
                label="GFLOPs per slice",
                worst=_WORST_GFLOPS,
                maximize=False,
            ),
        )

    def summarize(self, rows: Sequence[Row]) -> dict[str, Any]:
        return count_rows(rows)

    def describe(self, summary: Mapping[str, Any], mode: str) -> str:
        if mode == "pbt":
            return (
                f"{summary['num_complete']} of {summary['num_trials']} members completed and {summary['num_failed']} "
                "failed. Members that lagged continued from better ones; the settings are those that each ended with.\n"
            )
        return (
            f"{summary['num_complete']} of {summary['num_trials']} trials completed; {summary['num_failed']} failed, "
            f"{summary['num_pruned']} were pruned by ASHA, which saved {summary['saved_by_asha']:.0%} of "
            f"{summary['planned_steps']} planned steps.\n"
        )

    def version_tags(self, metrics: Mapping[str, float]) -> dict[str, str]:
        shown = ("dice_", OBJECTIVE, "false_alarms")
        return {name: f"{value:.4f}" for name, value in metrics.items() if name.startswith(shown)}


def gflops_per_slice(config: RunConfig) -> float:
    """Billions of floating-point operations of the network's forward pass over one slice.

    Convolutions, matrix products and attention count, a multiplication and an addition each; the rest does not.
    """
    preprocess = config.preprocess
    with torch.device("meta"), torch.no_grad():
        net = build_net(
            config.net.name, in_channels=preprocess.num_channels, out_channels=3, **config.net.options
        ).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(1, preprocess.num_channels, *preprocess.size))
    return float(counter.get_total_flops()) / 1e9
