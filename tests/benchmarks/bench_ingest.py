#!/usr/bin/env python3
"""Ingest: from the files of a case to z-scored slices in memory, one thread, against MONAI's usual chain.

GLIORAY_REAL_DATA=DIR python tests/benchmarks/bench_ingest.py

Both read the same cases from a warm page cache, in turns, in one process with the same allocator settings.
Each measurement is one round over all the cases, in seconds a case.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import brats_folder, refuse, same_environment, tell

if TYPE_CHECKING:
    from glioray.cases.load import Case
    from glioray.slices.preprocess import SliceStack

TARGET = 3.0
_WARM_ROUNDS = 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10, help="of the data set, at most")
    parser.add_argument("--rounds", type=int, default=7, help="over the cases, each way")
    args = parser.parse_args()
    if args.cases < 1 or args.rounds < 1:
        refuse("--cases and --rounds are at least 1")
    folder = brats_folder()

    from glioray.engine.on_ray.connect import WORKER_ENVIRONMENT

    same_environment({**WORKER_ENVIRONMENT, "OMP_NUM_THREADS": "1"})
    measure(folder, args.cases, args.rounds)


def measure(folder: Path, num_cases: int, num_rounds: int) -> None:
    """Check that both make the same slices, then measure them in turns."""
    import torch
    from monai_chain import MonaiChain

    from glioray.cases.layouts import discover_cases
    from glioray.cases.load import load_case
    from glioray.config import PreprocessConfig
    from glioray.slices.preprocess import preprocess
    from glioray.storage import open_storage

    torch.set_num_threads(1)
    storage = open_storage(folder)
    cases = discover_cases(storage)[0][:num_cases]
    config = PreprocessConfig()
    monai = MonaiChain(config.size)

    def with_glioray(index: int) -> SliceStack:
        return preprocess(load_case(storage, cases[index]), config)[0]

    def with_monai(index: int) -> object:
        return monai.slices(folder / cases[index].case_id)

    ways: dict[str, Callable[[int], object]] = {"glioray": with_glioray, "MONAI": with_monai}
    furthest = 0.0
    for files in cases:
        case = load_case(storage, files)
        there = preprocess(case, config)[0]
        furthest = max(furthest, largest_difference(there, monai.volume(folder / files.case_id), case))
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(_WARM_ROUNDS + num_rounds):
        seconds = dict.fromkeys(ways, 0.0)
        for index in range(len(cases)):
            for name, way in ways.items():
                began = time.perf_counter()
                result = way(index)
                seconds[name] += time.perf_counter() - began
                del result
        if number >= _WARM_ROUNDS:
            for name, total in seconds.items():
                figures[name].append(total / len(cases))
    tell(
        figures,
        "glioray",
        "s a case",
        more_is_better=False,
        target=TARGET,
        cases=len(cases),
        threads=1,
        largest_difference=f"{furthest:.2g} of float16's rounding",
    )


def largest_difference(ours: SliceStack, monai: dict[str, Any], case: Case) -> float:
    """Between the two ways' slices, voxel by voxel, as multiples of float16's rounding; ends where it is above 2.

    A modality that is 0 somewhere inside the brain is left out: MONAI then takes its statistics without those
    voxels, and glioray over the same brain for all modalities.
    """
    import numpy as np

    from glioray.cases.load import brain_mask

    image = monai["image"]
    offset = np.rint((np.linalg.inv(case.affine) @ image.affine.numpy())[:3, 3]).astype(int)
    theirs = np.zeros_like(case.images, dtype=np.float32)
    there, here = [slice(None)], [slice(None)]
    for start, length, limit in zip(offset, image.shape[1:], case.images.shape[1:], strict=True):
        low, high = max(start, 0), min(start + length, limit)
        there.append(slice(low, high))
        here.append(slice(low - start, high - start))
    theirs[tuple(there)] = image.numpy()[tuple(here)]
    restored = ours.restore(ours.images.swapaxes(0, 1)).astype(np.float32)
    alike = ((case.images != 0) | ~brain_mask(case.images)).all(axis=(1, 2, 3))
    rounding = np.maximum(np.abs(theirs[alike]), 1) * np.finfo(np.float16).eps
    furthest = float((np.abs(restored[alike] - theirs[alike]) / rounding).max(initial=0))
    if furthest > 2:
        refuse(
            f"the two ways give different slices of {ours.case_id}: {furthest:.3g} times float16's rounding"
        )
    return furthest


if __name__ == "__main__":
    main()
