#!/usr/bin/env python3
"""Scale: time and peak memory of what grows with the number of cases, without a voxel: 1,000 to 100,000 cases.

    python tests/benchmarks/bench_scale.py
    python tests/benchmarks/bench_scale.py --stages discover,manifest --cases 1000,10000

Each stage and number of cases is measured in a process of its own: CPU seconds, and the peak of its memory above what it
held before (Linux). Cases are names and entries made here; a `train` run's own work on voxels grows with the slices drawn alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterator, MutableSequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from measure import refuse

if TYPE_CHECKING:
    from glioray.cases.manifest import CaseEntry, Manifest
    from glioray.storage import ObjectInfo

_CASES = (1000, 10_000, 100_000)
_MODALITIES = ("t1", "t1c", "t2", "flair")
_SLICES = 100
# Of the time a case over a hundred times the cases: sorting and caches take some, and what is quadratic a hundred.
_MAX_GROWTH = 5.0


class _Listed:
    """A storage of names alone.

    Args:
        keys: of its objects.
    """

    uri = "s3://bucket/cases"

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys

    def list(self, prefix: str = "", *, unlisted: MutableSequence[Any] | None = None) -> Iterator[ObjectInfo]:
        from glioray.storage import ObjectInfo

        return (ObjectInfo(key=key, size_bytes=2_000_000, stamp="e") for key in self.keys)

    def exists(self, key: str) -> bool:
        return False


def _id(number: int) -> str:
    return f"BraTS-GLI-{number:06d}-000"


def _keys(num_cases: int, *, flat: bool) -> list[str]:
    return [
        f"{'' if flat else f'{_id(n)}/'}{_id(n)}-{token}.nii.gz"
        for n in range(num_cases)
        for token in ("t1n", "t1c", "t2w", "t2f", "seg")
    ]


def _entry(number: int) -> CaseEntry:
    from glioray.cases.casefiles import CaseFiles, patient_of
    from glioray.cases.manifest import CaseEntry

    name = _id(number)
    images = {m: f"{name}/{name}-{m}.nii.gz" for m in _MODALITIES}
    mask = f"{name}/{name}-seg.nii.gz"
    files = CaseFiles(case_id=name, patient_id=patient_of(name), layout="brats2023", images=images, mask=mask)
    return CaseEntry(
        files=files,
        checksum=f"{number:064x}",
        checksums={key: f"{number:060x}{place:04x}" for place, key in enumerate(files.keys())},
        shape=(240, 240, 155),
        spacing_mm=(1.0, 1.0, 1.0),
        convention="brats-et3",
        label_voxels={"ncr": 10_000, "ed": 40_000, "et": 15_000, "rc": 0},
        brain_voxels=1_400_000,
        digests={name: f"{number:060x}{place:04x}" for place, name in enumerate((*_MODALITIES, "mask"))},
        # As many numbers as a case of four modalities has.
        fingerprint={f"number-{place}": float(number + place) for place in range(30)},
    )


def _manifest(num_cases: int) -> Manifest:
    from glioray.cases.manifest import build_manifest

    return build_manifest("s3://bucket/cases", ((_entry(number), []) for number in range(num_cases)))


def _discover(num_cases: int, *, flat: bool) -> Callable[[], Any]:
    from glioray.cases.layouts import discover_cases

    storage: Any = _Listed(_keys(num_cases, flat=flat))

    def work() -> None:
        cases, problems = discover_cases(storage)
        assert (len(cases), problems) == (num_cases, [])

    return work


def _build(num_cases: int) -> Callable[[], Any]:
    from glioray.cases.manifest import build_manifest

    checked: list[tuple[CaseEntry | None, list[Any]]] = [(_entry(number), []) for number in range(num_cases)]
    return lambda: build_manifest("s3://bucket/cases", checked)


def _write(num_cases: int) -> Callable[[], Any]:
    return _manifest(num_cases).to_json


def _load(num_cases: int) -> Callable[[], Any]:
    from glioray.cases.manifest import Manifest

    text = _manifest(num_cases).to_json()
    return lambda: Manifest.from_json(text)


def _folds(num_cases: int) -> Callable[[], Any]:
    manifest = _manifest(num_cases)

    def work() -> None:
        dealt = manifest.with_folds(5)
        assert sum(len(dealt.with_fold(number).select("val")) for number in range(5)) == num_cases

    return work


def _plan(num_cases: int) -> Callable[[], Any]:
    """What a run sends to each of its ranks."""
    manifest = _manifest(num_cases)
    return lambda: pickle.loads(pickle.dumps(manifest))


def _sample(num_cases: int) -> Callable[[], Any]:
    """The order of an epoch of one node that holds all cases."""
    from glioray.config import SampleConfig
    from glioray.slices.store import EpochSampler

    tumour_px = np.tile(np.where(np.arange(_SLICES) % 3, 500, 0), num_cases)
    numbers = np.repeat(np.arange(num_cases), _SLICES)

    def work() -> None:
        sampler = EpochSampler(tumour_px, numbers, SampleConfig(), 32, seed=0)
        assert len(sampler.epoch(1)) == sampler.num_steps

    return work


def _search(num_cases: int) -> Callable[[], Any]:
    """The table of a search of as many trials."""
    from glioray.engine.trials import build_row, format_table, rank_rows
    from glioray.tasks import load_task

    search: Any = load_task("segmentation").search
    results = [
        SimpleNamespace(
            metrics={"percent": 100, "objective": number / num_cases, "trial_id": f"{number:08x}", "epoch": 3, "step": 30,
                     "config": {"optim.lr": 0.001}, "dice_mean": 0.5, "num_slices": 960, "progress": 1.0},
            error=None, config={"optim.lr": 0.001}, path=f"s3://bucket/runs/{number:08x}",
        )
        for number in range(num_cases)
    ]  # fmt: skip

    def work() -> None:
        rows = rank_rows([build_row(result, search) for result in results])
        assert format_table(rows, search.columns)

    return work


STAGES: dict[str, Callable[[int], Callable[[], Any]]] = {
    "discover": lambda num_cases: _discover(num_cases, flat=False),
    "discover in one folder": lambda num_cases: _discover(num_cases, flat=True),
    "build the manifest": _build,
    "write it": _write,
    "load it": _load,
    "five folds": _folds,
    "send a plan": _plan,
    "an epoch's order": _sample,
    "a search's table": _search,
}


def _measure(stage: str, num_cases: int, answer: Any) -> None:
    work = STAGES[stage](num_cases)
    gc.collect()
    gc.freeze()
    # What the preparation took at its peak does not count: 5 sets the peak to what is held now.
    Path("/proc/self/clear_refs").write_text("5")
    before, began = _peak_bytes(), time.process_time()
    work()
    answer.send((time.process_time() - began, _peak_bytes() - before))


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(map(str, _CASES)), help="numbers of cases, rising")
    parser.add_argument("--stages", default=",".join(STAGES), help="separated by commas")
    args = parser.parse_args()
    counts = [int(count) for count in args.cases.split(",")]
    stages = args.stages.split(",")
    if unknown := sorted(set(stages) - set(STAGES)):
        refuse(f"--stages names {', '.join(unknown)}; expected some of {', '.join(STAGES)}")
    context = multiprocessing.get_context("spawn")
    found: dict[str, dict[int, dict[str, float]]] = {}
    for stage in stages:
        for count in counts:
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_measure, args=(stage, count, there))
            process.start()
            # Without this end, its death would be waited for for ever.
            there.close()
            seconds, memory = here.recv()
            process.join()
            found.setdefault(stage, {})[count] = {
                "us_per_case": round(1e6 * seconds / count, 2),
                "bytes_per_case": round(memory / count),
            }
            print(
                f"{stage:24} {count:8,} cases {1e6 * seconds / count:9.1f} us and {memory / count:8,.0f} bytes a case",
                flush=True,
            )
    growth = {
        stage: round(sizes[counts[-1]]["us_per_case"] / sizes[counts[0]]["us_per_case"], 2)
        for stage, sizes in found.items()
    }
    print(json.dumps({
        "benchmark": "scale", "cores": os.cpu_count(), "stages": found, "growth": growth,
        "target": _MAX_GROWTH, "reached": max(growth.values()) <= _MAX_GROWTH,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
