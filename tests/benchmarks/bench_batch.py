#!/usr/bin/env python3
"""Many cases: time and memory of preparing and of predicting 100 to 10,000 cases of 12 x 12 x 8 voxels, by the jobs.

    python tests/benchmarks/bench_batch.py
    python tests/benchmarks/bench_batch.py --cases 100,1000,10000,100000 --jobs prepare

So small a case costs what its bookkeeping costs: files that are opened, tasks, records, masks that are written. Each job runs
as a user starts it, on a Ray of its own. The time a case is that beyond the smallest number's, which is mostly Ray's start.
Memory is the peak of the job's own process, which must hold the list of cases and nothing else of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import PLATFORM, refuse

from glioray.cases.nifti import encode_volume

ROOT = PLATFORM.parent
_TOKENS = ("t1n", "t1c", "t2w", "t2f", "seg")
_SHAPE, _BRAIN = (12, 12, 8), np.s_[2:-2, 2:-2, 1:-1]
# Of the time a case from the second number on: what is quadratic grows as the numbers do.
_MAX_GROWTH = 2.0
_TRAIN = (
    "--recipe", "unet_tiny", "--max-epochs", "1", "--set", "sample.steps_per_epoch=2", "--set",
    "train.num_validations=1", "--set", "train.precision=fp32", "--run-name", "tiny",
)  # fmt: skip


def write_cases(folder: Path, num_cases: int) -> None:
    """Cases of noise, each another patient's, with a tumour of five voxels."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    for number in range(num_cases):
        name = f"BraTS-GLI-{number:06d}-000"
        (folder / name).mkdir(parents=True)
        noise = np.random.default_rng(number)
        for token in _TOKENS:
            if token == "seg":
                array = np.zeros(_SHAPE, np.uint8)
                array[3:8, 4, 4] = (1, 1, 2, 2, 3)
            else:
                array = np.zeros(_SHAPE, np.int16)
                array[_BRAIN] = noise.integers(1, 900, array[_BRAIN].shape)
            (folder / name / f"{name}-{token}.nii.gz").write_bytes(encode_volume(array, affine))


def run_job(home: Path, *command: str) -> tuple[float, float, dict[str, Any]]:
    """Seconds of a job, the peak memory of its own process in bytes, and its answer."""
    env = {**os.environ, "HOME": str(home), "GLIORAY_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    began, peak = time.monotonic(), 0
    with (home / "log").open("wb") as log, (home / "answer").open("wb") as answer:
        script, *flags = command
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "jobs" / script), *flags, "--storage", str(home / "runs")],
            env=env, cwd=home, stdout=answer, stderr=log,
        )  # fmt: skip
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.2)
        code = process.wait()
    if code:
        refuse(f"{command[0]} ended with {code}: {(home / 'log').read_text()[-2000:]}")
    return time.monotonic() - began, peak, json.loads((home / "answer").read_text().splitlines()[-1])


def measure(job: str, num_cases: int, folder: Path) -> tuple[float, float]:
    """Seconds and bytes of a job over so many cases."""
    home = folder / f"{job}-{num_cases}"
    home.mkdir()
    data = folder / f"cases-{num_cases}"
    if not data.exists():
        write_cases(data, num_cases)
    if job == "prepare":
        seconds, peak, answer = run_job(home, "prepare.py", "--data", str(data), "--out", str(home / "out"))
        found = answer["num_cases"]
    else:
        model = train_tiny(folder)
        seconds, peak, answer = run_job(
            home, "predict.py", "--model", model, "--data", str(data), "--out", str(home / "out")
        )
        found = len(answer["masks"])
    if found != num_cases:
        refuse(f"{job} answered for {found} of {num_cases} cases")
    return seconds, peak


def train_tiny(folder: Path) -> str:
    """A model that has seen few steps; of one training for all."""
    home = folder / "model"
    if not home.exists():
        home.mkdir()
        write_cases(home / "cases", 20)
        run_job(home, "train_unet.py", "--data", str(home / "cases"), *_TRAIN)
    return str(home / "runs" / "tiny")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="100,1000,10000", help="numbers of cases, rising")
    parser.add_argument("--jobs", default="prepare,predict", help="separated by commas")
    args = parser.parse_args()
    counts, jobs = [int(count) for count in args.cases.split(",")], args.jobs.split(",")
    if unknown := set(jobs) - {"prepare", "predict"}:
        refuse(f"--jobs names {', '.join(sorted(unknown))}; expected prepare, predict or both")
    if len(counts) < 2 or sorted(set(counts)) != counts or counts[0] < 1:
        refuse("--cases needs two or more rising numbers")
    found: dict[str, dict[int, dict[str, float]]] = {}
    growth = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        for job in jobs:
            base_s, base_bytes = measure(job, counts[0], Path(scratch))
            print(f"{job:8} {counts[0]:8,} cases {base_s:8.1f} s, {base_bytes / 1e6:6.0f} MB", flush=True)
            for count in counts[1:]:
                seconds, peak = measure(job, count, Path(scratch))
                more = count - counts[0]
                found.setdefault(job, {})[count] = {
                    "seconds": round(seconds, 1),
                    "ms_per_case": round(1000 * (seconds - base_s) / more, 2),
                    "megabytes": round(peak / 1e6),
                    "bytes_per_case": round((peak - base_bytes) / more),
                }
                print(
                    f"{job:8} {count:8,} cases {seconds:8.1f} s, {peak / 1e6:6.0f} MB; beyond the first's: "
                    f"{1000 * (seconds - base_s) / more:.2f} ms and {(peak - base_bytes) / more:,.0f} bytes a case",
                    flush=True,
                )
            rows = [found[job][count]["ms_per_case"] for count in counts[1:]]
            growth[job] = round(rows[-1] / rows[0], 2)
    print(json.dumps({
        "benchmark": "batch", "cores": os.cpu_count(), "jobs": found, "growth": growth, "target": _MAX_GROWTH,
        "reached": max(growth.values()) <= _MAX_GROWTH,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
