"""The rival of `bench_feed.py`: a process with MONAI's CacheDataset that runs an epoch at each line of stdin.

python monai_feed.py FOLDER BATCH CASE... prints "ready", and then a JSON line for each "0", "2" or "thread":
worker processes of its DataLoader, or its ThreadDataLoader.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, DataLoader, ThreadDataLoader
from monai.transforms import EnsureTyped
from monai_chain import MonaiChain

SIZE = (192, 160)


def main() -> None:
    folder, batch, cases = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    torch.set_num_threads(1)
    dataset = cached_slices(folder, cases)
    loaders: dict[str, Any] = {
        "0": DataLoader(dataset, batch_size=batch, shuffle=True),
        "2": DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=2, persistent_workers=True),
        "thread": ThreadDataLoader(dataset, batch_size=batch, shuffle=True),
    }
    print("ready", flush=True)
    for line in sys.stdin:
        began, num_slices = time.perf_counter(), 0
        for item in loaders[line.strip()]:
            num_slices += len(item["image"])
        rate = num_slices / (time.perf_counter() - began)
        kinds = [str(item["image"].dtype), str(item["label"].dtype)]
        answer = {
            "rate": rate,
            "num_slices": num_slices,
            "kinds": kinds,
            "shape": list(item["image"].shape[1:]),
        }
        print(json.dumps(answer), flush=True)


def cached_slices(folder: Path, cases: list[str]) -> CacheDataset:
    """All slices of the cases, each in memory of its own: MONAI copies the whole storage of a view."""
    chain = MonaiChain(SIZE)
    samples = []
    for case_id in cases:
        images, labels = chain.slices(folder / case_id)
        for image, label in zip(images, labels, strict=True):
            samples.append({"image": image.clone(), "label": label.to(torch.uint8)})
    return CacheDataset(samples, EnsureTyped(["image", "label"], track_meta=False), progress=False)


if __name__ == "__main__":
    main()
