"""What the training cases look like is kept with a model, and a report says how a case differs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

import glioray
from glioray.cases.fingerprint import find_ranges, measure_fingerprint
from glioray.cases.layouts import discover_cases
from glioray.cases.load import Case, load_case
from glioray.cases.manifest import Manifest, build_manifest, check_case
from glioray.cases.phantom import write_phantoms
from glioray.engine.run import RunPlan
from glioray.engine.task import Task
from glioray.storage import Storage, open_storage
from glioray.tasks.segmentation.findings import flag_case
from glioray.tasks.segmentation.package import ModelSpec, join_packages, parse_spec, write_package
from glioray.tasks.segmentation.task import SegmentationTask
from glioray.tasks.segmentation.training import _first_spec

Specs = Callable[..., ModelSpec]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    storage = open_storage(tmp_path_factory.mktemp("data"))
    write_phantoms(storage, num_cases=10, shape=(48, 48, 32), spacing_mm=3.6)
    return storage


@pytest.fixture(scope="module")
def manifest(storage: Storage) -> Manifest:
    checked = [check_case(storage, files, is_stated=True) for files in discover_cases(storage)[0]]
    return build_manifest(storage.uri, checked)


def _plan(manifest: Manifest, spec: ModelSpec) -> RunPlan:
    return RunPlan(
        task=cast(Task, SegmentationTask()),
        config=spec.config,
        manifest=manifest,
        storage="runs",
        run_name="run",
        tracking_uri="",
        experiment="",
    )


@pytest.mark.contracts
def test_a_model_keeps_the_ranges_of_its_training_cases(manifest: Manifest, make_spec: Specs) -> None:
    spec = _first_spec(_plan(manifest, make_spec()))
    train = manifest.select("train")
    assert len(train) == 8
    assert spec.train_ranges == find_ranges([entry.fingerprint for entry in train])
    low, high = spec.train_ranges["corr:t1,t2"]
    assert -1 < low < high < 0
    assert parse_spec(spec.to_json()) == spec
    older = [replace(entry, fingerprint={}) for entry in manifest.cases]
    assert _first_spec(_plan(replace(manifest, cases=tuple(older)), make_spec())).train_ranges == {}


def test_older_files_have_none(manifest: Manifest, make_spec: Specs) -> None:
    text = json.loads(manifest.to_json())
    assert Manifest.from_json(json.dumps(text)) == manifest
    for entry in text["cases"]:
        assert entry.pop("fingerprint")
    older = Manifest.from_json(json.dumps(text))
    assert {len(entry.fingerprint) for entry in older.cases} == {0}
    assert older.hash == manifest.hash
    described = json.loads(make_spec().to_json())
    del described["train_ranges"]
    assert parse_spec(json.dumps(described)).train_ranges == {}


def test_an_ensemble_has_seen_what_its_members_have(make_spec: Specs, tmp_path: Path) -> None:
    for name, ranges in {"a": {"brain_ml": (1.0, 2.0)}, "b": {"brain_ml": (1.5, 3.0)}, "c": {}}.items():
        spec = dataclasses.replace(make_spec(), train_ranges=ranges)
        write_package(tmp_path / name, spec, spec.build().state_dict())
    join = [tmp_path / name for name in "abc"]
    assert join_packages(join[:2], tmp_path / "ab").train_ranges == {"brain_ml": (1.0, 3.0)}
    assert join_packages(join, tmp_path / "abc").train_ranges == {}


def test_the_report_says_how_a_case_differs(storage: Storage, manifest: Manifest, make_spec: Specs) -> None:
    ranges = _first_spec(_plan(manifest, make_spec())).train_ranges
    case = load_case(storage, manifest.select("val")[0].files)
    assert case.mask is not None

    def flags(case: Case, is_scan: bool = True) -> list[str]:
        return flag_case(case, mask, case.spacing_mm, ranges, is_scan=is_scan)

    mask = case.mask
    assert flags(case) == []
    swapped = replace(case, images=case.images[[2, 1, 0, 3]])
    assert "T1 looks like the T2 of the training cases" in flags(swapped)[0]
    noise = np.random.default_rng(0).normal(0, 3 * case.images[0].std(), case.images.shape)
    noisy = replace(case, images=np.where(case.images > 0, np.abs(case.images + noise) + 1, 0))
    assert any("noisier" in flag for flag in flags(noisy))
    # What was super-resolved, or has other voxels, has another grain by itself.
    assert not any("noisier" in flag for flag in flags(noisy, is_scan=False))
    # One sentence on the volume is enough.
    large = replace(case, affine=case.affine @ np.diag([1.4, 1.4, 1.4, 1]), spacing_mm=(5.0, 5.0, 5.0))
    assert sum("are not background" in flag for flag in flags(large)) == 1


@pytest.mark.real
def test_the_starter_knows_its_cases_and_a_swap(real_data: Path) -> None:
    spec = glioray.load_model("starter", device="cpu").spec
    case = glioray.load_case(real_data / "brats2021" / "BraTS2021_01481")
    found = measure_fingerprint(case.images, case.modalities, case.spacing_mm)
    for name, (low, high) in spec.train_ranges.items():
        assert low <= found[name] <= high, name
    assert case.mask is not None
    assert flag_case(case, case.mask, spec.spacing_mm, spec.train_ranges) == []
    swapped = replace(case, images=case.images[[0, 1, 3, 2]])
    assert (
        "T2 looks like the FLAIR of the training cases"
        in flag_case(swapped, case.mask, spec.spacing_mm, spec.train_ranges)[0]
    )
