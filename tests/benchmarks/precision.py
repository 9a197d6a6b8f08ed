#!/usr/bin/env python3
"""Training and prediction in the precision that `train.precision=auto` chooses, beside both fixed ones.

    python tests/benchmarks/precision.py                      # unet_small, one thread, its own batches
    python tests/benchmarks/precision.py --recipe unet_tiny --threads 2

The three settings take turns, `--rounds` times; each figure is the median of its rounds. Batches are random numbers of
the recipe's size. The time that "auto" takes to choose, once for a machine, a network and a size, is reported separately.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time

import numpy as np
import torch
from measure import refuse

from glioray.config import with_settings
from glioray.engine.collectives import Ranks
from glioray.engine.precision import has_bf16
from glioray.slices.preprocess import SliceStack
from glioray.slices.store import Batch
from glioray.tasks.segmentation.learner import SegmentationLearner
from glioray.tasks.segmentation.package import ModelSpec
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.segmentation.recipes import RECIPES, build_recipe

SETTINGS = ("auto", "fp32", "bf16")
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="unet_small", choices=RECIPES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--steps", type=int, default=4, help="training steps, and batches to predict, a round"
    )
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if min(args.threads, args.steps, args.rounds) < 1:
        refuse("--threads, --steps and --rounds are at least 1")
    torch.set_num_threads(args.threads)
    # A folder of its own: what is remembered from an earlier time would not be measured.
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GLIORAY_CACHE"] = folder
        _tell(args, *_measure(args))


def _measure(
    args: argparse.Namespace,
) -> tuple[dict[str, dict[str, list[float]]], dict[str, str], dict[str, float]]:
    """Slices/s by work and setting, what "auto" chose, and the seconds that took."""
    config = build_recipe(args.recipe)
    rng = np.random.default_rng(0)
    batch = _batch(rng, config.train.batch_size, config.preprocess.num_channels, config.preprocess.size)
    learners, predictors = {}, {}
    for setting in SETTINGS:
        own = with_settings(config, {"train.precision": setting})
        spec = ModelSpec(config=own, out_channels=3, spacing_mm=(1.0, 1.0, 1.0), manifest_hash="")
        learners[setting] = SegmentationLearner(own, spec, [], Ranks(), CPU)
        predictors[setting] = Predictor(spec, spec.build())
    stack = _stack(rng, 16 * args.steps, config.preprocess.num_channels, config.preprocess.size)
    began = time.perf_counter()
    learners["auto"].train_step(batch, 1, 0.5)
    chosen, seconds = (
        {"training": learners["auto"].precisions["training"]},
        {"training": time.perf_counter() - began},
    )
    began = time.perf_counter()
    chosen["prediction"] = predictors["auto"].precision
    seconds["prediction"] = time.perf_counter() - began
    rates: dict[str, dict[str, list[float]]] = {work: {name: [] for name in SETTINGS} for work in chosen}
    for _ in range(args.rounds):
        for setting in SETTINGS:
            learners[setting].train_step(batch, 1, 0.5)  # warms up
            began = time.perf_counter()
            for _ in range(args.steps):
                learners[setting].train_step(batch, 1, 0.5)
            passed = time.perf_counter() - began
            rates["training"][setting].append(args.steps * len(batch.images) / passed)
            began = time.perf_counter()
            predictors[setting].probs_of_stacks([stack])
            rates["prediction"][setting].append(len(stack.images) / (time.perf_counter() - began))
    return rates, chosen, seconds


def _batch(rng: np.random.Generator, num: int, channels: int, size: tuple[int, int]) -> Batch:
    return Batch(
        images=torch.from_numpy(rng.standard_normal((num, channels, *size), np.float32)),
        masks=torch.from_numpy(rng.integers(0, 4, (num, *size), np.uint8)),
        positions=np.arange(num),
        lateral=np.ones(num, bool),
    )


def _stack(rng: np.random.Generator, num: int, channels: int, size: tuple[int, int]) -> SliceStack:
    height, width = size
    return SliceStack(
        case_id="c",
        plane="axial",
        images=rng.standard_normal((num, channels, height, width), np.float32).astype(np.float16),
        mask=None,
        origin=(0, 0, 0),
        shape=(width, height, num),
        spacing_mm=(1.0, 1.0, 1.0),
        label_voxels=(0,) * 5,
    )


def _tell(
    args: argparse.Namespace,
    rates: dict[str, dict[str, list[float]]],
    chosen: dict[str, str],
    seconds: dict[str, float],
) -> None:
    line = {
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "has_bf16": has_bf16(CPU),
        "unit": "slices/s",
    }
    for work, by_setting in rates.items():
        medians = {name: round(statistics.median(found), 2) for name, found in by_setting.items()}
        for name, found in by_setting.items():
            print(
                f"{work:10}  {name:5}  {medians[name]:8.2f}  ({min(found):.2f} to {max(found):.2f}) slices/s"
            )
        line[work] = {
            "chosen": chosen[work],
            "medians": medians,
            "ratio_to_fp32": round(medians["auto"] / medians["fp32"], 3),
            "ratio_to_bf16": round(medians["auto"] / medians["bf16"], 3),
            "seconds_to_choose": round(seconds[work], 1),
        }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
