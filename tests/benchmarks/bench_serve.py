#!/usr/bin/env python3
"""The endpoint beside servers that are written by hand, with the same network, files and threads.

    python tests/benchmarks/bench_serve.py                       # a real case, every fourth voxel, 1, 4 and 16 clients
    python tests/benchmarks/bench_serve.py --stride 1 --requests 4 --clients 1
    python tests/benchmarks/bench_serve.py --bentoml PYTHON      # an interpreter that imports bentoml and glioray

Every server predicts one case at a time on `--threads` threads, with the model of `--model`. The servers take turns,
`--rounds` times. Besides the requests a second, each has its overhead: the median time of a lone client's request, less
that of the bare prediction, decoding and encoding in this process.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import requests
import torch
from measure import brats_folder, refuse, tell

from glioray.cases.labels import from_internal
from glioray.cases.load import load_case_from_bytes
from glioray.cases.nifti import encode_mask, encode_volume, read_volume
from glioray.machine import free_port
from glioray.tasks import open_package
from glioray.tasks.segmentation.files import choose_convention
from glioray.tasks.segmentation.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]
CASE = "BraTS2021_01485"
START_S = 180

BY_HAND = """
import sys, threading
import torch, uvicorn
from fastapi import FastAPI, Response, UploadFile
from glioray.cases.labels import from_internal
from glioray.cases.load import load_case_from_bytes
from glioray.cases.nifti import encode_mask
from glioray.tasks.segmentation.files import choose_convention
from glioray.tasks.segmentation.predictor import Predictor
from pathlib import Path

torch.set_num_threads(int(sys.argv[3]))
model = Predictor.load(Path(sys.argv[1]), "cpu")
lock, app = threading.Lock(), FastAPI()

@app.post("/v1/segment")
def segment(t1: UploadFile, t1c: UploadFile, t2: UploadFile, flair: UploadFile):
    files = {"t1": t1, "t1c": t1c, "t2": t2, "flair": flair}
    case = load_case_from_bytes({name: file.file.read() for name, file in files.items()})
    with lock:
        torch.set_num_threads(int(sys.argv[3]))
        mask = model.predict(case)
    mask = from_internal(mask, choose_convention(None, model.spec))
    return Response(encode_mask(mask, like=case.reference), media_type="application/gzip")

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
"""

BENTO = """
import os, threading
from pathlib import Path
from typing import Annotated
import bentoml, torch
from bentoml.validators import ContentType
from glioray.cases.labels import from_internal
from glioray.cases.load import load_case_from_bytes
from glioray.cases.nifti import encode_mask
from glioray.tasks.segmentation.files import choose_convention
from glioray.tasks.segmentation.predictor import Predictor

@bentoml.service(workers=1, traffic={"timeout": 600, "concurrency": 64})
class Segmenter:
    def __init__(self) -> None:
        torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
        self.model, self.lock = Predictor.load(Path(os.environ["BENCH_MODEL"]), "cpu"), threading.Lock()

    @bentoml.api(route="/v1/segment")
    def segment(self, t1: Path, t1c: Path, t2: Path, flair: Path) -> Path:
        files = {"t1": t1, "t1c": t1c, "t2": t2, "flair": flair}
        case = load_case_from_bytes({name: file.read_bytes() for name, file in files.items()})
        with self.lock:
            torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
            mask = self.model.predict(case)
        mask = from_internal(mask, choose_convention(None, self.model.spec))
        out = t1.with_name("mask.nii.gz")
        out.write_bytes(encode_mask(mask, like=case.reference))
        return out
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--stride", type=int, default=4, help="of the voxels that are kept, along each axis")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=32, help="of all clients together, a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bentoml", metavar="PYTHON", help="an interpreter that imports bentoml and glioray")
    args = parser.parse_args()
    if min(args.stride, args.threads, args.requests, args.rounds, *args.clients) < 1:
        refuse("numbers are at least 1")
    files = read_files(args.stride)
    # Every server keeps fp32, as a measured choice could differ between them.
    with tempfile.TemporaryDirectory() as scratch:
        package = open_package(args.model, Path(scratch) / "package").folder
        bare, expected = time_bare(package, files, args.threads, args.requests)
        servers: dict[str, Callable[[], contextlib.AbstractContextManager[str]]] = {
            "glioray": lambda: serve_ours(args.model, args.threads),
            "glioray, HAProxy": lambda: serve_ours(args.model, args.threads, RAY_SERVE_ENABLE_HA_PROXY="1"),
            "FastAPI by hand": lambda: serve_by_hand(package, args.threads, Path(scratch)),
        }
        if args.bentoml:
            servers["BentoML"] = lambda: serve_bento(args.bentoml, package, args.threads, Path(scratch))
        rates: dict[int, dict[str, list[float]]] = {
            clients: {name: [] for name in servers} for clients in args.clients
        }
        lone: dict[str, list[float]] = {name: [] for name in servers}
        slowest: dict[int, dict[str, list[float]]] = {
            clients: {name: [] for name in servers} for clients in args.clients
        }
        for _ in range(args.rounds):
            for name, serve in servers.items():
                with serve() as url:
                    send(url, files, expected)  # warms up
                    lone[name] += [send(url, files, expected) for _ in range(min(args.requests, 10))]
                    for clients in args.clients:
                        seconds, times = load(url, files, expected, clients, args.requests)
                        rates[clients][name].append(args.requests / seconds)
                        slowest[clients][name] += times
        for clients in args.clients:
            print(f"\n{clients} client(s)")
            tell(
                rates[clients], "glioray", "requests/s", more_is_better=True, target=0.9, clients=clients,
                helped=["glioray, HAProxy"],
                p99_s={name: round(float(np.percentile(times, 99)), 3) for name, times in slowest[clients].items()},
                bare_s=round(statistics.median(bare), 4),
                overhead_ms={
                    name: round(1000 * (statistics.median(times) - statistics.median(bare)), 1)
                    for name, times in lone.items()
                },
            )  # fmt: skip


def read_files(stride: int) -> dict[str, bytes]:
    """The four files of a case, of which every so many voxels are kept."""
    folder = brats_folder() / CASE
    files = {}
    for name, suffix in {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair"}.items():
        data = (folder / f"{CASE}_{suffix}.nii.gz").read_bytes()
        if stride > 1:
            volume = read_volume(data, name=name)
            # The spacing stays, as a model refuses voxels of another size.
            data = encode_volume(volume.array[::stride, ::stride, ::stride], volume.affine)
        files[name] = data
    return files


def time_bare(package: Path, files: dict[str, bytes], threads: int, number: int) -> tuple[list[float], bytes]:
    """Seconds of files to a mask without a server, and the mask."""
    torch.set_num_threads(threads)
    model = Predictor.load(package, "cpu")
    times, mask = [], b""
    for count in range(min(number, 10) + 1):
        began = time.perf_counter()
        case = load_case_from_bytes(files)
        labels = from_internal(model.predict(case), choose_convention(None, model.spec))
        mask = encode_mask(labels, like=case.reference)
        if count:
            times.append(time.perf_counter() - began)
    return times, mask


def send(url: str, files: dict[str, bytes], expected: bytes) -> float:
    """Seconds of one request, whose mask must be the expected one."""
    began = time.perf_counter()
    answer = requests.post(f"{url}/v1/segment", files=files, timeout=600)
    passed = time.perf_counter() - began
    answer.raise_for_status()
    if answer.content != expected:
        different = np.mean(
            read_volume(answer.content, name="mask").array != read_volume(expected, name="mask").array
        )
        if different > 1e-3:
            raise SystemExit(f"the mask differs in {100 * different:.2f} % of its voxels")
    return passed


def load(
    url: str, files: dict[str, bytes], expected: bytes, clients: int, number: int
) -> tuple[float, list[float]]:
    """Seconds of all requests together, and of each."""

    def patient() -> float:
        began = time.perf_counter()
        while True:
            try:
                send(url, files, expected)
            except requests.HTTPError as error:
                if error.response.status_code not in (429, 503):
                    raise
                time.sleep(0.2)
                continue
            return time.perf_counter() - began

    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        times = list(pool.map(lambda _: patient(), range(number)))
    return time.perf_counter() - began, times


@contextlib.contextmanager
def started(command: list[str], url: str, ready: str, **variables: str) -> Iterator[str]:
    """The address of a server while its process runs."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "platform"), **variables}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + START_S
            while True:
                with contextlib.suppress(requests.RequestException):
                    if requests.get(f"{url}{ready}", timeout=5).status_code < 400:
                        break
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    why = "ended" if process.poll() is not None else f"was not ready within {START_S} s"
                    raise SystemExit(f"{command[1]} {why}:\n{log.read()[-4000:].decode(errors='replace')}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(60)


def serve_ours(model: str, threads: int, **variables: str) -> contextlib.AbstractContextManager[str]:
    port = free_port()
    # fmt: off
    command = [
        sys.executable, str(ROOT / "serve" / "app.py"), "--model", model, "--superres", "none",
        "--port", str(port), "--cpus", str(threads),
    ]
    # fmt: on
    return started(command, f"http://127.0.0.1:{port}", "/readyz", **variables)


def serve_by_hand(package: Path, threads: int, scratch: Path) -> contextlib.AbstractContextManager[str]:
    port, script = free_port(), scratch / "by_hand.py"
    script.write_text(BY_HAND)
    command = [sys.executable, str(script), str(package), str(port), str(threads)]
    return started(command, f"http://127.0.0.1:{port}", "/openapi.json")


def serve_bento(
    python: str, package: Path, threads: int, scratch: Path
) -> contextlib.AbstractContextManager[str]:
    port = free_port()
    (scratch / "bento_service.py").write_text(BENTO)
    # fmt: off
    command = [
        python, "-m", "bentoml", "serve", "bento_service:Segmenter", "--working-dir", str(scratch), "--port", str(port),
    ]
    # fmt: on
    variables = {
        "BENCH_MODEL": str(package),
        "BENCH_THREADS": str(threads),
        "BENTOML_DO_NOT_TRACK": "true",
    }  # fmt: skip
    return started(command, f"http://127.0.0.1:{port}", "/readyz", **variables)


if __name__ == "__main__":
    print(json.dumps({"cores": os.cpu_count(), "capability": torch.backends.cpu.get_cpu_capability()}))
    main()
