#!/usr/bin/env python3
"""Feed: batches of 128 shuffled slices from the second epoch on, as a worker of Ray Train gets them.

GLIORAY_REAL_DATA=DIR python tests/benchmarks/bench_feed.py

Against MONAI's CacheDataset with its DataLoader (0 and 2 worker processes) and its ThreadDataLoader, in a
process of its own: once as it comes and once with the settings of glibc's allocator that glioray gives to its
workers. All ways deliver float32 images 4 x 192 x 160 and uint8 masks without augmentation, run in turns on
one thread a process, and each measurement is one epoch. The target is against the best of MONAI as it comes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import brats_folder, refuse, tell

if TYPE_CHECKING:
    from glioray.cases.manifest import CaseEntry

TARGET = 2.0
BATCH = 128
_RIVAL = Path(__file__).resolve().with_name("monai_feed.py")
_LOADERS = {"0": "0 workers", "2": "2 workers", "thread": "ThreadDataLoader"}
_SAME_ALLOCATOR = ", glioray's allocator"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10, help="of the data set, at most")
    parser.add_argument("--epochs", type=int, default=15, help="measured, each way")
    args = parser.parse_args()
    if args.cases < 1 or args.epochs < 1:
        refuse("--cases and --epochs are at least 1")
    folder = brats_folder()
    os.environ.pop("RAY_ADDRESS", None)  # a Ray of this process's own

    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    from glioray.engine.on_ray.connect import connect
    from glioray.engine.on_ray.data import index_data
    from glioray.engine.on_ray.resources import worker_resources

    # Hidden in a dict from mypy, which sees the signature of an older RunConfig.
    quiet: dict[str, Any] = {"logging_config": ray.train.LoggingConfig(log_level="WARNING")}
    with tempfile.TemporaryDirectory(prefix="glioray-feed-") as scratch:
        connect()
        try:
            entries = index_data(str(folder), scratch).select("all")[: args.cases]
            TorchTrainer(
                _worker,
                train_loop_config={
                    "data": str(folder),
                    "entries": entries,
                    "scratch": scratch,
                    "epochs": args.epochs,
                },
                scaling_config=ray.train.ScalingConfig(
                    num_workers=1, resources_per_worker=worker_resources(1).resources()
                ),
                run_config=ray.train.RunConfig(name="feed", storage_path=scratch, **quiet),
            ).fit()
        finally:
            ray.shutdown()
        answer = json.loads((Path(scratch) / "answer.json").read_text())
    figures = answer.pop("figures")
    tell(
        figures,
        "glioray",
        "slices/s",
        more_is_better=True,
        target=TARGET,
        helped=[name for name in figures if name.endswith(_SAME_ALLOCATOR)],
        batch=BATCH,
        threads=1,
        **answer,
    )


def _worker(settings: dict[str, Any]) -> None:
    """In a worker of Ray Train: measure all ways in turns."""
    import torch

    from glioray.engine.on_ray.connect import WORKER_ENVIRONMENT

    torch.set_num_threads(1)
    plain = {name: value for name, value in os.environ.items() if name not in WORKER_ENVIRONMENT}
    if len(plain) + len(WORKER_ENVIRONMENT) != len(os.environ):
        raise RuntimeError(
            "the worker lacks the allocator's settings that glioray.engine.on_ray.connect.connect gives"
        )
    with ExitStack() as stack:
        ways = {"glioray": _glioray(settings["data"], settings["entries"], settings["scratch"])}
        for suffix, environment in (("", plain), (_SAME_ALLOCATOR, dict(os.environ))):
            ask = stack.enter_context(_monai(settings["data"], settings["entries"], environment))
            for loader, name in _LOADERS.items():
                ways[f"MONAI CacheDataset, {name}{suffix}"] = partial(ask, loader)
        figures: dict[str, list[float]] = {name: [] for name in ways}
        # The first epoch of each is not measured: pages are touched and worker processes begin.
        for number in range(1 + settings["epochs"]):
            for name, way in ways.items():
                rate = way()
                if number:
                    figures[name].append(rate)
    answer = {"figures": figures, "cases": len(settings["entries"])}
    (Path(settings["scratch"]) / "answer.json").write_text(json.dumps(answer))


def _glioray(data: str, entries: list[CaseEntry], scratch: str) -> Callable[[], float]:
    """Runs an epoch; returns slices/s."""
    import torch

    from glioray.config import PreprocessConfig, SampleConfig
    from glioray.engine.on_ray.placement import fill_cache
    from glioray.slices.cache import CacheConfig, SliceCache
    from glioray.slices.store import EpochSampler, SliceFeed, SliceStore

    config, cache = PreprocessConfig(), CacheConfig(folder=str(Path(scratch) / "cache"))
    fill_cache(data, entries, config, cache)
    found = [SliceCache(cache, config).get(entry) for entry in entries]
    store = SliceStore([stack for stacks in found if stacks for stack in stacks], config)
    store.warm(cache.memory_bytes)
    sampler = EpochSampler(store.tumour_px(), store.case_numbers(), SampleConfig(), BATCH, seed=0)
    feed = SliceFeed(store, sampler, (0, 1), sampler.num_steps)
    numbers = iter(range(sys.maxsize))

    def epoch() -> float:
        began, num_slices = time.perf_counter(), 0
        for batch in feed.epoch(next(numbers)):
            num_slices += len(batch.images)
        rate = num_slices / (time.perf_counter() - began)
        kinds = [batch.images.dtype, batch.masks.dtype]
        if kinds != [torch.float32, torch.uint8] or batch.images.shape[1:] != (4, *config.size):
            raise TypeError(f"glioray delivers {kinds} of {tuple(batch.images.shape)}")
        return rate

    return epoch


@contextmanager
def _monai(
    data: str, entries: list[CaseEntry], environment: Mapping[str, str]
) -> Iterator[Callable[[str], float]]:
    """A process of `monai_feed.py`; asked for a loader, it runs an epoch and answers slices/s."""
    command = [sys.executable, str(_RIVAL), data, str(BATCH), *(entry.case_id for entry in entries)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        questions, answers = process.stdin, process.stdout
        if questions is None or answers is None or answers.readline() != "ready\n":
            raise RuntimeError("the rival's process did not start; its log is above")

        def ask(loader: str) -> float:
            print(loader, file=questions, flush=True)
            answer = json.loads(answers.readline())
            if answer["kinds"] != ["torch.float32", "torch.uint8"] or answer["shape"] != [4, 160, 192]:
                raise TypeError(f"MONAI delivers {answer['kinds']} of {answer['shape']}")
            return float(answer["rate"])

        yield ask
        questions.close()


if __name__ == "__main__":
    main()
