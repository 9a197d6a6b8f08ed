#!/usr/bin/env python3
"""Latency and memory of the endpoint under a steady load.

    python tests/benchmarks/bench_steady.py --minutes 20 --picture steady.png

The model of `--model` segments a real case, of which every so many voxels are kept, `--per-minute` times a minute. After
the first tenth, which warms up, the first and the last quarter of the rest are compared. The target is growth below 5 %.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil
import requests
from bench_serve import read_files
from matplotlib.figure import Figure
from serving import DEADLINE_S, ROOT, running, services, serving

_SAMPLE_S = 5
_TITLE = re.compile(
    r"^ray::(?:ServeReplica:glioray:)?(segmentation|Gateway|Champions|ProxyActor|ServeController)\b"
)
"""Of Serve's processes."""

Series = list[tuple[float, float]]
"""(minute, value) of each measurement."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--per-minute", type=float, default=30, help="requests")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--stride", type=int, default=4, help="of the voxels that are kept, along each axis")
    parser.add_argument("--picture", type=Path, help="PNG of latency and memory")
    args = parser.parse_args()
    files = read_files(args.stride)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        ray = stack.enter_context(running(services.start_ray_head(Path(scratch), num_cpus=2, cwd=ROOT)))
        url = stack.enter_context(serving({**os.environ, **ray.env}, "--model", args.model))
        latency, memory, statuses = load(url, files, ray.pid, args.minutes, 60 / args.per_minute)
    if args.picture is not None:
        draw(latency, memory).savefig(args.picture, dpi=100)
    result = {
        "cores": os.cpu_count(),
        "minutes": args.minutes,
        "requests": len(latency),
        "statuses": statuses,
        "latency_s": compare(latency),
        "memory_mb": compare(memory["all"]),
    }
    print(json.dumps(result))


def load(
    url: str, files: dict[str, bytes], pid: int, minutes: float, every_s: float
) -> tuple[Series, dict[str, Series], dict[int, int]]:
    """Send a request each `every_s` seconds, whether those before are answered or not.

    Returns: the seconds of each request, the MB of each of Serve's processes, and the number of answers by status.
    """
    latency: Series = []
    memory: dict[str, Series] = {}
    statuses: dict[int, int] = {}
    done = threading.Event()
    begun = time.monotonic()

    def send() -> None:
        sent = time.monotonic()
        answer = requests.post(f"{url}/v1/segment", files=files, timeout=DEADLINE_S)
        latency.append(((sent - begun) / 60, time.monotonic() - sent))
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1

    def watch() -> None:
        while not done.wait(_SAMPLE_S):
            minute, used = (time.monotonic() - begun) / 60, dict.fromkeys(["all"], 0.0)
            for process in psutil.Process(pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if found := _TITLE.match(" ".join(process.cmdline())):
                        used[found[1]] = process.memory_full_info().uss / 1e6
                        used["all"] += used[found[1]]
            for name, value in used.items():
                memory.setdefault(name, []).append((minute, value))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        sent = []
        while time.monotonic() - begun < 60 * minutes:
            sent.append(pool.submit(send))
            time.sleep(max(0, begun + len(sent) * every_s - time.monotonic()))
    done.set()
    watcher.join()
    for future in sent:
        future.result()
    return sorted(latency), memory, statuses


def compare(series: Series) -> dict[str, float]:
    """Medians of the first and the last quarter after the first tenth, and the growth from one to the other."""
    end = series[-1][0]
    quarter = 0.9 * end / 4
    first = statistics.median(value for minute, value in series if 0.1 * end <= minute < 0.1 * end + quarter)
    last = statistics.median(value for minute, value in series if minute >= end - quarter)
    return {"first": round(first, 3), "last": round(last, 3), "growth": round(last / first - 1, 3)}


def draw(latency: Series, memory: dict[str, Series]) -> Figure:
    """Latency above memory, by minute."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(*_columns(latency), ".", markersize=3, color="#5b8def", label="a request")
    by_minute: dict[int, list[float]] = {}
    for minute, value in latency:
        by_minute.setdefault(int(minute), []).append(value)
    medians = [(minute + 0.5, statistics.median(values)) for minute, values in by_minute.items()]
    above.plot(*_columns(medians), color="#d1495b", label="median of a minute")
    above.set(ylabel="seconds", ylim=(0, None))
    above.legend(frameon=False)
    for name, series in sorted(memory.items()):
        below.plot(*_columns(series), label=name)
    below.set(
        xlabel="minutes", ylabel="MB of its own", ylim=(0, 1.4 * max(value for _, value in memory["all"]))
    )
    below.legend(frameon=False, ncols=3)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _columns(series: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [minute for minute, _ in series], [value for _, value in series]


if __name__ == "__main__":
    main()
