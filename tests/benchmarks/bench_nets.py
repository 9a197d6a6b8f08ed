#!/usr/bin/env python3
"""Training throughput and memory of every network: forward, loss, backward and optimiser step on data at hand.

    python tests/benchmarks/bench_nets.py                                   # on a GPU: batches of 128 x 4 x 192 x 160
    python tests/benchmarks/bench_nets.py --batch 4 --rounds 3 --stem-stride 2 --nets unet,u2netp     # on a CPU

Networks run in turns, `--rounds` times; each figure is the median of its rounds. Tensors are random, made on the
device: what is measured is the network and not the feed (see bench_feed.py). bf16 autocast where the device
computes in bf16, channels last, region Dice + BCE, AdamW. A network that does not fit the memory is reported as such.

NVIDIA publishes 1345 images/s for the 2-D U-Net of its nnU-Net on one A100 80 GB (DeepLearningExamples,
PyTorch/Segmentation/nnUNet: batch 128, AMP, 192 x 160 x 4). It is printed beside and no rival of this run: another
machine, and a network whose width (32 to 512 in seven levels) is none of ours by default.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

import torch
from measure import refuse
from torch import nn

from glioray.engine.precision import autocast, has_bf16, to_device
from glioray.losses import build_loss
from glioray.nets import SEGMENTATION_NETS, build_net

PUBLISHED = 1345.0
_LIKE_NVIDIA = ("dynunet", {"width": 32, "depth": 6})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, nargs=2, default=(192, 160), metavar=("H", "W"))
    parser.add_argument("--stem-stride", type=int, default=1, choices=(1, 2, 4))
    parser.add_argument("--steps", type=int, default=5, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nets", default=",".join(SEGMENTATION_NETS), help="comma-separated (default: all)")
    parser.add_argument("--width", type=int, help="of every network, for small machines")
    args = parser.parse_args()
    if min(args.batch, args.steps, args.rounds) < 1:
        refuse("--batch, --steps and --rounds are at least 1")
    names = args.nets.split(",")
    if unknown := [name for name in names if name not in SEGMENTATION_NETS]:
        refuse(f"No network '{unknown[0]}'; available: {', '.join(SEGMENTATION_NETS)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = (args.batch, 4, *args.size)
    images = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    masks = torch.randint(0, 4, (args.batch, *args.size), dtype=torch.uint8, device=device)
    entrants: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in names}
    if args.nets == ",".join(SEGMENTATION_NETS) and not args.width:
        entrants["dynunet as NVIDIA's"] = _LIKE_NVIDIA
    rows: dict[str, dict[str, Any]] = {}
    for round_number in range(args.rounds):
        for label, (name, options) in entrants.items():
            row = rows.setdefault(label, {"rates": []})
            if "failed" in row:
                continue
            if args.width:
                options = {**options, "width": args.width}
            try:
                found = _measure(
                    name, {**options, "stem_stride": args.stem_stride}, images, masks, args.steps
                )
            except torch.OutOfMemoryError:
                row["failed"] = f"does not fit the memory at batch {args.batch}"
                continue
            row["rates"].append(found.pop("rate"))
            row |= found
            print(
                f"round {round_number + 1}/{args.rounds}: {label} {row['rates'][-1]:.1f} slices/s",
                file=sys.stderr,
            )
    _tell(rows, device, args)


def _measure(
    name: str, options: dict[str, Any], images: torch.Tensor, masks: torch.Tensor, steps: int
) -> dict[str, Any]:
    """Slices/s of `steps` training steps after two for warming up, peak memory in GiB and parameters."""
    device = images.device
    torch.manual_seed(0)
    net = to_device(build_net(name, in_channels=4, out_channels=3, **options), device).train()
    loss = build_loss("region_dice_bce")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = 0.0
    for step in range(2 + steps):
        if step == 2:
            _wait(device)
            began = time.perf_counter()
        with autocast(device, "bf16" if has_bf16(device) else "fp32"):
            outputs = net(images)
        optimizer.zero_grad(set_to_none=True)
        loss(outputs, masks).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    _wait(device)
    seconds = time.perf_counter() - began
    return {
        "rate": steps * len(images) / seconds,
        "num_parameters": sum(parameter.numel() for parameter in net.parameters()),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _tell(rows: dict[str, dict[str, Any]], device: torch.device, args: argparse.Namespace) -> None:
    medians = {label: statistics.median(row["rates"]) for label, row in rows.items() if row["rates"]}
    width = max(map(len, rows))
    print(f"{'':{width}}  {'slices/s':>10}  {'least':>8}  {'most':>8}  {'parameters':>12}  {'peak GiB':>8}")
    for label, row in sorted(rows.items(), key=lambda item: -medians.get(item[0], 0.0)):
        if label not in medians:
            print(f"{label:{width}}  {row['failed']}")
            continue
        peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        print(
            f"{label:{width}}  {medians[label]:10.1f}  {min(row['rates']):8.1f}  {max(row['rates']):8.1f}"
            f"  {row['num_parameters']:12,}  {peak:>8}"
        )
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    )
    print(f"on {name}; NVIDIA's own 2-D U-Net on an A100: {PUBLISHED:g} images/s (published)")
    line = {
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "device": name,
        "bf16": has_bf16(device),
        "batch": args.batch,
        "size": list(args.size),
        "unit": "slices/s",
        "medians": {label: float(f"{value:.4g}") for label, value in medians.items()},
        "peak_gib": {label: round(row["peak_gib"], 2) for label, row in rows.items() if row.get("peak_gib")},
        "failed": {label: row["failed"] for label, row in rows.items() if "failed" in row},
        "published": PUBLISHED,
        "ratios_to_published": {label: round(value / PUBLISHED, 3) for label, value in medians.items()},
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
