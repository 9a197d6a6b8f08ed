#!/usr/bin/env python3
"""Saves: how much training waits for a slow S3 that it saves its state to.

    GLIORAY_REAL_DATA=DIR python tests/benchmarks/bench_saves.py

The same steps on real cases, in turns: with a save of the training state every `--every` seconds to an S3 server behind a
proxy that holds back the first bytes of each connection and lets few a second pass, and to the same one without saves. A
measurement is the mean time of a step, from the first step's start to the last one's end.
The target is .98 of the speed without saves.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from measure import brats_folder, tell
from serving import running, services

from glioray.cases.layouts import discover_cases
from glioray.cases.manifest import CaseEntry, Manifest, build_manifest, check_case
from glioray.config import PreprocessConfig, with_settings
from glioray.engine.collectives import Ranks
from glioray.engine.on_ray.placement import prepare_case
from glioray.engine.run import RunPlan, train_run
from glioray.errors import CaseError
from glioray.machine import free_port
from glioray.slices.cache import CacheConfig, SliceCache
from glioray.storage import open_storage
from glioray.tasks import load_task
from glioray.tasks.segmentation.recipes import build_recipe

TARGET = 0.98
_PROXY = Path(__file__).resolve().with_name("slow_proxy.py")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="unet_brats")
    parser.add_argument("--steps", type=int, default=300, help="of each run")
    parser.add_argument("--every", type=float, default=60, help="seconds from save to save")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="torch's")
    parser.add_argument(
        "--delay", type=float, default=0.2, help="seconds before a connection passes anything"
    )
    parser.add_argument("--megabytes", type=float, default=4, help="that pass it in a second")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        manifest = read_manifest()
        s3 = services.start_s3(Path(scratch) / "s3", ["runs"])
        with running(s3):
            port, passed = free_port(), Path(scratch) / "passed"
            target = s3.address.rpartition(":")[2]
            rates = [str(args.delay), str(args.megabytes)]
            proxy = subprocess.Popen([sys.executable, _PROXY, str(port), target, *rates, str(passed)])
            try:
                while not passed.exists():
                    time.sleep(0.1)
                os.environ |= {**s3.env, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
                times: dict[str, list[float]] = {"with saves": [], "without": []}
                sent: dict[str, list[float]] = {name: [] for name in times}
                for number in range(args.rounds):
                    for name, minutes in {"with saves": args.every / 60, "without": 1e6}.items():
                        plan = plan_run(
                            Path(scratch), manifest, f"{name.replace(' ', '-')}-{number}", args, minutes
                        )
                        before = int(passed.read_text())
                        times[name].append(1000 * measure(plan, args.steps))
                        sent[name].append((int(passed.read_text()) - before) / 1e6)
                        print(
                            f"round {number + 1}, {name}: {times[name][-1]:.1f} ms a step, {sent[name][-1]:.0f} MB sent",
                            flush=True,
                        )
            finally:
                proxy.terminate()
                proxy.wait()
    tell(
        times, "with saves", "ms a step", more_is_better=False, target=TARGET,
        every_s=args.every, delay_s=args.delay, megabytes_per_s=args.megabytes, threads=args.threads, sent_mb=sent,
    )  # fmt: skip


def read_manifest() -> Manifest:
    """Two real cases to learn from; nothing is validated."""
    storage = open_storage(brats_folder())
    cases = discover_cases(storage)[0][:2]
    return build_manifest(storage.uri, [check_case(storage, files) for files in cases], ratios=(1, 0, 0))


def plan_run(
    scratch: Path, manifest: Manifest, name: str, args: argparse.Namespace, save_minutes: float
) -> RunPlan:
    """One epoch of a recipe, of which each step takes two slices."""
    settings = {
        "train.max_epochs": 1,
        "train.num_validations": 1,
        "train.batch_size": 2,
        "train.precision": "fp32",
        "sample.steps_per_epoch": args.steps,
    }
    config = with_settings(build_recipe(args.recipe), settings)
    return RunPlan(
        task=load_task(config.task),
        config=config,
        manifest=manifest,
        storage=f"s3://runs/{name}",
        run_name=name,
        tracking_uri=f"sqlite:///{scratch}/mlflow.db",
        experiment="saves",
        cache=CacheConfig(folder=str(scratch / "slices")),
        num_threads=args.threads,
        log_model=False,
        save_minutes=save_minutes,
    )


def measure(plan: RunPlan, num_steps: int) -> float:
    """Seconds of a step of a run."""
    metrics: Any = train_run(plan, Ranks(), fill)["metrics"]
    return float(60 * metrics["minutes"] - metrics["validation_s"]) / num_steps


def fill(
    data: str, entries: Sequence[CaseEntry], config: PreprocessConfig, cache: CacheConfig
) -> Mapping[str, CaseError]:
    """Bring cases into the cache in this process."""
    slices = SliceCache(cache, config)
    for entry in entries:
        slices.fill(entry, partial(prepare_case, data, entry, config))
    return {}


if __name__ == "__main__":
    main()
