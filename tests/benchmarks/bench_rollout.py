#!/usr/bin/env python3
"""How an endpoint of two replicas changes its version under load, and how it grows by one and shrinks again.

    python tests/benchmarks/bench_rollout.py                 # promotions; then one replica, a second under load, and back
    python tests/benchmarks/bench_rollout.py --rounds 10 --no-scaling

It starts MLflow, Ray and the endpoint itself, with a tiny untrained network on small phantoms. A promotion's `overlap_s` is the
time from the first answer of the new version to the last answer of the old one, by the time at which requests were
answered; `delay_s` is from the promotion to that first answer. Shrinking waits for ten idle minutes.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import statistics
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import requests
import torch
from serving import DEADLINE_S, ROOT, running, services, serving, wait_for

from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case
from glioray.cases.phantom import write_phantoms
from glioray.engine.on_mlflow.registry import log_model, register_model, set_champion
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.engine.serving import MODEL_HEADER
from glioray.storage import open_storage
from glioray.tasks.segmentation.package import ModelSpec, write_package
from glioray.tasks.segmentation.recipes import unet_tiny

NAME = "bench-rollout"
_SETTLED = 12


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6, help="promotions")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--poll-s", type=float, default=1.0, help="seconds between two looks at the alias")
    parser.add_argument("--scaling", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        mlflow = stack.enter_context(running(services.start_mlflow(folder / "mlflow")))
        ray = stack.enter_context(running(services.start_ray_head(folder / "ray", num_cpus=2, cwd=ROOT)))
        env = {**os.environ, **ray.env, **mlflow.env}
        flags = ("--model", f"models:/{NAME}@champion", "--poll-s", str(args.poll_s))
        versions, files = make_models(folder, mlflow.address)
        promote(versions[0], mlflow.address)
        result: dict[str, Any] = {"cores": os.cpu_count(), "clients": args.clients, "poll_s": args.poll_s}
        with serving(env, *flags, "--replicas", "2") as url:
            result |= roll(url, files, versions, mlflow.address, args.rounds, args.clients)
        if args.scaling:
            with serving(env, *flags, "--replicas", "1", "--max-replicas", "2") as url:
                result |= scale(url, files, ray, args.clients)
        print(json.dumps(result))


def make_models(folder: Path, address: str) -> tuple[list[str], dict[str, bytes]]:
    """Two registered versions of an untrained network, and the files of a phantom that they take."""
    storage = open_storage(folder / "phantoms")
    write_phantoms(storage, num_cases=1, shape=(96, 96, 48))
    case_files = discover_cases(storage)[0][0]
    case = load_case(storage, case_files)
    versions = []
    for seed in (0, 1):
        spec = ModelSpec(
            config=unet_tiny(), out_channels=3, spacing_mm=case.spacing_mm, manifest_hash=f"{seed:012}"
        )
        torch.manual_seed(seed)
        net = spec.build().eval()
        write_package(folder / f"package-{seed}", spec, net.state_dict())
        logger = RunLogger.open_run("bench", f"run-{seed}", kind="train", tracking_uri=address)
        log_model(logger, folder / f"package-{seed}", net, torch.zeros(1, 4, 32, 32))
        logger.finish()
        versions.append(register_model(NAME, logger.run_id, {}, tracking_uri=address))
    return versions, {name: storage.read(key) for name, key in case_files.images.items()}


def promote(uri: str, address: str) -> None:
    name, version = uri.removeprefix("models:/").split("/")
    set_champion(name, version, tracking_uri=address)


class Clients:
    """Send requests one after the other, from several threads, until they are stopped.

    Attributes:
        answers: (time, version) of each.
        failures: the statuses that are neither 200 nor 429, with their numbers.
    """

    def __init__(self, url: str, files: dict[str, bytes], number: int) -> None:
        self.url, self.files = url, files
        self.answers: list[tuple[float, str]] = []
        self.failures: collections.Counter[int] = collections.Counter()
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(number)]

    def __enter__(self) -> Clients:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def _run(self) -> None:
        while not self.stopped.is_set():
            answer = requests.post(f"{self.url}/v1/segment", files=self.files, timeout=DEADLINE_S)
            if answer.status_code == 200:
                self.answers.append((time.monotonic(), answer.headers[MODEL_HEADER]))
            elif answer.status_code == 429:
                time.sleep(0.2)
            else:
                self.failures[answer.status_code] += 1


def roll(
    url: str, files: dict[str, bytes], versions: list[str], address: str, rounds: int, number: int
) -> dict[str, Any]:
    """Promote the versions in turn while clients send requests."""
    delays, overlaps = [], []
    with Clients(url, files, number) as clients:
        wait_for(lambda: len(clients.answers) >= 2 * number, "no answers")
        for turn in range(1, rounds + 1):
            new = versions[turn % 2]
            begun = time.monotonic()
            promote(new, address)
            wait_for(partial(is_settled, clients.answers, new, begun), f"{new} is not served")
            since = [(when, version) for when, version in clients.answers if when > begun]
            first = min(when for when, version in since if version == new)
            delays.append(first - begun)
            overlaps.append(max([0.0, *(when - first for when, version in since if version != new)]))
            print(f"promotion {turn}: first answer after {delays[-1]:.2f} s, both for {overlaps[-1]:.2f} s")
    return {
        "promotions": rounds,
        "delay_s": summary(delays),
        "overlap_s": summary(overlaps),
        "answers": len(clients.answers),
        "failures": dict(clients.failures),
    }


def is_settled(answers: list[tuple[float, str]], version: str, begun: float) -> bool:
    """Whether the last dozen of the answers since then are all of the version."""
    late = [served for when, served in list(answers) if when > begun][-_SETTLED:]
    return len(late) == _SETTLED and set(late) == {version}


def scale(url: str, files: dict[str, bytes], ray: Any, number: int) -> dict[str, Any]:
    """Send requests until there are two replicas, and then none until there is one."""
    begun = time.monotonic()
    with Clients(url, files, number) as clients:
        wait_for(lambda: count_replicas(ray) == 2, "there is no second replica")
        grown = time.monotonic()
        print(f"a second replica after {grown - begun:.1f} s")
        time.sleep(20)
    idle = time.monotonic()
    wait_for(lambda: count_replicas(ray) == 1, "the second replica stays")
    print(f"one replica after {time.monotonic() - idle:.0f} idle s")
    return {
        "grown_s": round(grown - begun, 1),
        "shrunk_s": round(time.monotonic() - idle),
        "failures_scaling": dict(clients.failures),
    }


def count_replicas(ray: Any) -> int:
    """The replicas of the segmentation that run, by Serve's own page."""
    token = Path(ray.env["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
    page = requests.get(
        f"{ray.env['RAY_API_SERVER_ADDRESS']}/api/serve/applications/",
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
    )
    page.raise_for_status()
    deployments = page.json()["applications"]["glioray"]["deployments"]
    return sum(replica["state"] == "RUNNING" for replica in deployments["segmentation"]["replicas"])


def summary(seconds: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(seconds), 2), "most": round(max(seconds), 2)}


if __name__ == "__main__":
    main()
